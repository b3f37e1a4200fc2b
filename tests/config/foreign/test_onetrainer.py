from __future__ import annotations

import json
from typing import Any

import pytest

from extensions_lib.config.codec import check_partial
from extensions_lib.config.foreign.read import recipe_of_metadata, recipe_of_table
from extensions_lib.config.foreign.recipe import Recipe
from extensions_lib.errors import ConfigError

# What its own preset for a LoRA of Stable Diffusion XL gives, and a little more.
LORA: dict[str, Any] = {
    "training_method": "LORA", "model_type": "STABLE_DIFFUSION_XL_10_BASE", "batch_size": 4, "learning_rate": 3e-4,
    "base_model_name": "org/xl", "resolution": "1024", "output_model_destination": "models/my lora.safetensors",
    "output_model_format": "KOHYA_LORA", "layer_filter_preset": "attn-mlp", "backup_after": 10,
    "text_encoder": {"train": False, "weight_dtype": "FLOAT_16"}, "text_encoder_2": {"train": False},
    "vae": {"weight_dtype": "FLOAT_32"}, "unet": {"weight_dtype": "FLOAT_16"}, "lora_rank": 24, "lora_alpha": 12.0,
}  # fmt: skip


def of(num_pictures: int | None = 20, **changes: Any) -> Recipe:
    return recipe_of_table({**LORA, **changes}, num_pictures)


def texts(recipe: Recipe) -> dict[str, str]:
    return {each.name: each.text for each in recipe.unmapped}


def test_a_preset_is_read_with_the_defaults_of_the_program() -> None:
    recipe = of()
    check_partial(recipe.table)
    assert (recipe.source, recipe.base_model) == ("a OneTrainer config", "org/xl")
    assert {name: recipe.table["method"][name] for name in ("kind", "rank", "alpha", "train_text_encoder")} == {
        "kind": "lora", "rank": 24, "alpha": 12.0, "train_text_encoder": False,
    }  # fmt: skip
    assert recipe.table["training"] == {
        "num_samples": 2000, "max_train_steps": 0, "train_batch_size": 4, "gradient_accumulation_steps": 1,
        "gradient_checkpointing": True, "max_grad_norm": 1.0, "ema_decay": 0.0, "mixed_precision": "fp16",
        "loss_weighting": "none", "noise_offset": 0.0,
    }  # fmt: skip
    # 200 batches of warm-up in 100 epochs of 5 batches.
    assert recipe.table["optimizer"] == {
        "learning_rate": 3e-4, "lr_scheduler": "constant_with_warmup", "lr_warmup_ratio": 0.4, "optimizer": "adamw",
        "weight_decay": 0.01, "min_lr_ratio": 0.0,
    }  # fmt: skip
    assert recipe.table["dataset"] == {"resolution_px": 1024, "use_buckets": True}
    assert recipe.table["name"] == "my lora"
    assert texts(recipe).keys() == {"base_model_name"}
    assert [each.text for each in recipe.approximated] == ["epochs as 2000 samples"]


def test_epochs_and_warmup_steps_need_the_number_of_pictures() -> None:
    recipe = of(num_pictures=None)
    assert "num_samples" not in recipe.table["training"]
    assert texts(recipe).keys() == {"epochs", "learning_rate_warmup_steps", "base_model_name"}


@pytest.mark.parametrize(
    ("changes", "path", "value"),
    [
        ({"learning_rate_warmup_steps": 0.1}, "optimizer.lr_warmup_ratio", 0.1),
        ({"unet": {"learning_rate": 1e-5}}, "optimizer.learning_rate", 1e-5),
        ({"text_encoder": {"train": True, "learning_rate": 1e-6}}, "method.text_encoder_learning_rate", 1e-6),
        ({"learning_rate_scheduler": "COSINE"}, "optimizer.lr_scheduler", "cosine"),
        ({"learning_rate_min_factor": 0.1}, "optimizer.min_lr_ratio", 0.1),
        ({"optimizer": {"optimizer": "PRODIGY", "weight_decay": 0.02, "beta1": 0.8}}, "optimizer.optimizer", "prodigy"),
        ({"optimizer": {"optimizer": "ADAMW", "weight_decay": 0.02}}, "optimizer.weight_decay", 0.02),
        ({"ema": "CPU", "ema_decay": 0.99}, "training.ema_decay", 0.99),
        ({"train_dtype": "BFLOAT_16"}, "training.mixed_precision", "bf16"),
        ({"output_dtype": "FLOAT_32"}, "output.dtype", "fp32"),
        ({"mse_strength": 0.0, "huber_strength": 1.0, "huber_delta": 0.2}, "training.loss_type", "huber"),
        ({"loss_weight_fn": "MIN_SNR_GAMMA", "loss_weight_strength": 5.0}, "training.loss_weighting", "min_snr"),
        ({"loss_weight_fn": "DEBIASED_ESTIMATION"}, "training.loss_weighting", "debiased"),
        ({"clip_grad_norm": None}, "training.max_grad_norm", 0.0),
        ({"min_noising_strength": 0.1}, "training.min_timestep", 100),
        ({"text_encoder_layer_skip": 1}, "training.clip_skip", 2),
        ({"save_every": 50, "save_every_unit": "STEP"}, "training.save_every_steps", 50),
        ({"resolution": "512,768"}, "dataset.resolution_px", 512),
    ],
)  # fmt: skip
def test_each_setting_by_its_rule(changes: dict[str, Any], path: str, value: Any) -> None:
    section, _, name = path.partition(".")
    assert of(**changes).table[section][name] == value


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"learning_rate_scheduler": "REX"}, "learning_rate_scheduler"),
        ({"optimizer": {"optimizer": "CAME"}}, "optimizer.optimizer"),
        ({"mae_strength": 0.5}, "mae_strength"),
        ({"timestep_distribution": "LOGIT_NORMAL"}, "timestep_distribution"),
        ({"loss_weight_fn": "P2"}, "loss_weight_fn"),
        ({"rescale_noise_scheduler_to_zero_terminal_snr": True}, "rescale_noise_scheduler_to_zero_terminal_snr"),
        ({"save_every": 1, "save_every_unit": "EPOCH"}, "save_every, save_every_unit"),
        ({"invented": 3}, "invented"),
        ({"lora_rank": 4096}, "lora_rank"),
    ],
)
def test_what_does_not_map_is_named(changes: dict[str, Any], name: str) -> None:
    assert set(texts(of(**changes))) - {"base_model_name"} == {name}


def test_concepts_and_samples_become_folder_captions_and_preview_prompts() -> None:
    concept = {
        "path": "/pics/cat", "enabled": True, "type": "STANDARD", "include_subdirectories": True,
        "image": {"enable_random_flip": True}, "text": {"enable_tag_shuffling": True, "keep_tags_count": 2},
    }  # fmt: skip
    prior = {**concept, "path": "/pics/class", "type": "PRIOR_PREDICTION"}
    sample = {"prompt": "a cat", "width": 512, "height": 768, "seed": 7, "diffusion_steps": 30, "cfg_scale": 6.0}
    recipe = of(concepts=[concept, prior, {**concept, "path": "/pics/dog"}], samples=[sample, {"prompt": ""}])
    dataset = recipe.table["dataset"]
    assert (dataset["folder"], dataset["flip"], dataset["shuffle_tags"], dataset["keep_first_tags"]) == (
        "/pics/cat", True, True, 2,
    )  # fmt: skip
    assert recipe.table["preview"]["prompts"] == [
        {"prompt": "a cat", "negative_prompt": "", "seed": 7, "width_px": 512, "height_px": 768, "num_steps": 30,
         "guidance_scale": 6.0},
    ]  # fmt: skip
    assert [each.text for each in recipe.approximated if each.name == "concepts"] == [
        "1 more concepts are left out: one folder is trained; "
        "give the class prompt for what the prior concept did (prior.kind frozen_base)"
    ]


def test_an_embedding() -> None:
    table = {
        "training_method": "EMBEDDING", "base_model_name": "/m/sd.safetensors", "learning_rate": 3e-4,
        "embedding": {"token_count": 4, "initial_embedding_text": "cat"}, "embedding_learning_rate": 1e-3,
    }  # fmt: skip
    recipe = recipe_of_table(table, 10)
    assert recipe.table["method"] == {
        "kind": "textual_inversion", "vectors_per_token": 4, "initializer_text": "cat", "relative_learning_rate": 0.0,
    }  # fmt: skip
    assert (recipe.table["optimizer"]["learning_rate"], recipe.table["base_model"]) == (1e-3, "/m/sd.safetensors")
    assert texts(recipe) == {}


def test_its_settings_in_a_file_are_read_too() -> None:
    recipe = recipe_of_metadata({"ot_config": json.dumps(LORA), "ot_branch": "master"}, {}, "lora", 20)
    assert recipe.table == of().table
    with pytest.raises(ConfigError, match="ot_config: is damaged"):
        recipe_of_metadata({"ot_config": "{"}, {}, "lora")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_type": "FLUX_DEV_1"}, "is 'FLUX_DEV_1', accepted are Stable Diffusion 1, 2 and XL"),
        ({"training_method": "FINE_TUNE_VAE"}, "is 'FINE_TUNE_VAE', accepted are LORA, EMBEDDING, FINE_TUNE"),
    ],
)
def test_what_cannot_be_trained_here_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        of(**changes)


def test_a_fine_tune_changes_the_checkpoint() -> None:
    assert of(training_method="FINE_TUNE").table["method"]["kind"] == "dreambooth"
