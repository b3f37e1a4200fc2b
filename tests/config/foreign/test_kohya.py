from __future__ import annotations

import json
from typing import Any

import pytest

from extensions_lib.config.codec import check_partial
from extensions_lib.config.foreign.read import recipe_of_metadata, recipe_of_table
from extensions_lib.config.foreign.recipe import Recipe

# As a file from a model site has it, every setting written; folder names and tags left out.
METADATA = {
    "ss_network_module": "networks.lora", "ss_network_dim": "32", "ss_network_alpha": "16.0",
    "ss_network_args": '{"conv_dim": "8", "conv_alpha": "4", "block_dims": "2,2", "rank_dropout": "0.1"}',
    "ss_learning_rate": "0.0001", "ss_unet_lr": "0.0002", "ss_text_encoder_lr": "5e-05",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))",
    "ss_max_train_steps": "1500", "ss_steps": "1500", "ss_num_epochs": "10", "ss_epoch": "10",
    "ss_lr_scheduler": "cosine_with_restarts", "ss_lr_warmup_steps": "75", "ss_batch_size_per_device": "2",
    "ss_total_batch_size": "2", "ss_gradient_accumulation_steps": "1", "ss_gradient_checkpointing": "True",
    "ss_min_snr_gamma": "5.0", "ss_debiased_estimation": "False", "ss_noise_offset": "0.0357", "ss_clip_skip": "2",
    "ss_multires_noise_iterations": "None", "ss_multires_noise_discount": "0.3", "ss_adaptive_noise_scale": "None",
    "ss_mixed_precision": "bf16", "ss_full_fp16": "False", "ss_seed": "42", "ss_resolution": "(512, 512)",
    "ss_zero_terminal_snr": "False", "ss_keep_tokens": "2", "ss_shuffle_caption": "True", "ss_flip_aug": "False",
    "ss_color_aug": "False", "ss_random_crop": "False", "ss_caption_dropout_rate": "0.05", "ss_max_grad_norm": "1.0",
    "ss_caption_dropout_every_n_epochs": "0", "ss_caption_tag_dropout_rate": "0.1", "ss_enable_bucket": "True",
    "ss_bucket_no_upscale": "True", "ss_min_bucket_reso": "256", "ss_max_bucket_reso": "1024", "ss_loss_type": "l2",
    "ss_huber_schedule": "snr", "ss_huber_c": "0.1", "ss_prior_loss_weight": "1.0", "ss_max_token_length": "225",
    "ss_num_train_images": "300", "ss_num_reg_images": "0", "ss_scale_weight_norms": "None", "ss_v2": "False",
    "ss_network_dropout": "None", "ss_lowram": "False", "ss_cache_latents": "True", "ss_output_name": "cat",
    "ss_session_id": "7", "ss_training_started_at": "1.0", "ss_training_finished_at": "2.0", "ss_tag_frequency": "{}",
    "ss_dataset_dirs": "{}", "ss_bucket_info": "null", "ss_base_model_version": "sd_v1", "ss_training_comment": "None",
    "ss_sd_scripts_commit_hash": "abc", "ss_sd_model_name": "v1-5.safetensors", "ss_new_sd_model_hash": "ab" * 32,
    "sshs_model_hash": "cd" * 32, "ss_face_crop_aug_range": "None", "ss_ip_noise_gamma": "None",
}  # fmt: skip


def of(**changes: Any) -> Recipe:
    changed = {f"ss_{name}": value for name, value in changes.items()}
    return recipe_of_metadata({**METADATA, **changed}, {}, "lora")


def texts(recipe: Recipe) -> dict[str, str]:
    return {each.name: each.text for each in recipe.unmapped}


def test_a_whole_file_becomes_a_job() -> None:
    recipe = of()
    check_partial(recipe.table)
    assert recipe.source == "a file trained with kohya's sd-scripts"
    assert (recipe.base_model, recipe.base_hash) == ("v1-5.safetensors", "ab" * 32)
    table = recipe.table
    assert {name: table["method"][name] for name in ("rank", "alpha", "conv_rank", "conv_alpha")} == {
        "rank": 32, "alpha": 16.0, "conv_rank": 8, "conv_alpha": 4.0,
    }  # fmt: skip
    assert (table["method"]["train_text_encoder"], table["method"]["text_encoder_learning_rate"]) == (True, 5e-5)
    assert table["optimizer"] == {
        "learning_rate": 2e-4, "optimizer": "adamw8bit", "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99,
        "lr_scheduler": "cosine_with_restarts", "lr_warmup_ratio": 0.05, "min_lr_ratio": 0.0,
    }  # fmt: skip
    assert table["training"] == {
        "num_samples": 3000, "max_train_steps": 0, "train_batch_size": 2, "gradient_accumulation_steps": 1,
        "gradient_checkpointing": True, "max_grad_norm": 1.0, "seed": 42, "mixed_precision": "bf16", "clip_skip": 2,
        "loss_weighting": "min_snr", "min_snr_gamma": 5.0, "loss_type": "mse", "huber_c": 0.1, "noise_offset": 0.0357,
        "pyramid_noise_discount": 0.0,
    }  # fmt: skip
    assert table["dataset"] == {
        "caption_template": "[filewords]", "shuffle_tags": True, "keep_first_tags": 2, "caption_dropout_rate": 0.05,
        "tag_dropout_rate": 0.1, "flip": False, "use_buckets": True, "allow_upscale": False, "resolution_px": 512,
    }  # fmt: skip
    assert texts(recipe) == {"network_args": "no such settings here: block_dims=2,2"}
    assert recipe.approximated == ()


@pytest.mark.parametrize(
    ("changes", "path", "value"),
    [
        ({"min_snr_gamma": "None"}, "training.loss_weighting", "none"),
        ({"min_snr_gamma": "None", "debiased_estimation": "True"}, "training.loss_weighting", "debiased"),
        ({"network_args": "{}"}, "method.conv_rank", None),
        ({"network_alpha": "None"}, "method.alpha", 1.0),
        ({"network_alpha": "0"}, "method.alpha", 32.0),
        ({"text_encoder_lr": "None"}, "method.text_encoder_learning_rate", 1e-4),
        ({"text_encoder_lr": "0"}, "method.train_text_encoder", False),
        ({"text_encoder_lr": "[1e-5, 2e-5]"}, "method.text_encoder_learning_rate", 1e-5),
        ({"unet_lr": "None"}, "optimizer.learning_rate", 1e-4),
        ({"optimizer": "torch.optim.adamw.AdamW"}, "optimizer.optimizer", "adamw"),
        ({"optimizer": "transformers.optimization.Adafactor(clip=False)"}, "optimizer.optimizer", "adafactor"),
        ({"optimizer": "prodigyopt.prodigy.Prodigy(d_coef=2.0)"}, "optimizer.optimizer", "prodigy"),
        ({"optimizer": "lion_pytorch.lion_pytorch.Lion"}, "optimizer.optimizer", "lion"),
        ({"lr_scheduler": "constant_with_warmup"}, "optimizer.lr_scheduler", "constant_with_warmup"),
        ({"lr_warmup_steps": "0"}, "optimizer.lr_warmup_ratio", 0.0),
        ({"gradient_accumulation_steps": "4"}, "training.num_samples", 12000),
        ({"total_batch_size": "4"}, "training.gradient_accumulation_steps", 2),
        ({"total_batch_size": "4"}, "training.num_samples", 6000),
        ({"multires_noise_iterations": "6", "noise_offset": "None"}, "training.pyramid_noise_discount", 0.3),
        ({"clip_skip": "None"}, "training.clip_skip", 1),
        ({"mixed_precision": "no"}, "training.mixed_precision", "fp32"),
        ({"loss_type": "huber"}, "training.loss_type", "huber"),
        ({"ip_noise_gamma": "0.1"}, "training.input_perturbation", 0.1),
        ({"training_comment": "a cat"}, "output.description", "a cat"),
        ({"resolution": "(512, 768)"}, "dataset.resolution_px", 624),
        ({"resolution": "768"}, "dataset.resolution_px", 768),
    ],
)  # fmt: skip
def test_each_setting_by_its_rule(changes: dict[str, str], path: str, value: Any) -> None:
    section, _, name = path.partition(".")
    assert of(**changes).table[section].get(name) == value


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"algo": "loha"}, {"algorithm": "loha", "rank": 32, "conv_rank": 32, "conv_alpha": 16.0, "layers": "full"}),
        ({"algo": "locon", "conv_dim": "4"}, {"algorithm": "lora", "conv_rank": 4, "conv_alpha": 16.0}),
        ({"algo": "loha", "preset": "attn-mlp"}, {"algorithm": "loha", "layers": "attention+mlp"}),
        ({"algo": "lokr", "factor": "8"}, {"algorithm": "lokr", "lokr_factor": 8}),
        ({"algo": "lora", "rs_lora": "True", "train_norm": "True"}, {"rs_lora": True, "train_norms": True}),
        ({"dropout": "0.1", "rank_dropout": "0.2", "module_dropout": "0.3"},
         {"dropout": 0.1, "rank_dropout": 0.2, "module_dropout": 0.3}),
        ({"dora_wd": "True", "wd_on_out": "False"}, {"dora": True}),
    ],
)  # fmt: skip
def test_the_networks_of_lycoris(settings: dict[str, str], method: dict[str, Any]) -> None:
    recipe = of(network_module="lycoris.kohya", network_args=json.dumps(settings))
    assert {name: recipe.table["method"].get(name) for name in method} == method
    assert texts(recipe) == {}
    assert recipe.approximated == ()


def test_dora_on_the_output_axis_and_a_whole_lokr_matrix() -> None:
    dora = of(network_module="lycoris.kohya", network_args='{"algo": "lora", "dora_wd": "True"}')
    assert [each.text for each in dora.approximated] == [
        "DoRA on the input axis, the one the WebUI computes; there it was on the output axis"
    ]
    lokr = of(network_module="lycoris.kohya", network_dim="100000", network_args='{"algo": "lokr", "factor": "6"}')
    assert lokr.table["method"]["lokr_whole"] is True
    assert {"rank", "alpha", "conv_rank"}.isdisjoint(lokr.table["method"])


@pytest.mark.parametrize(
    ("changes", "name", "text"),
    [
        ({"zero_terminal_snr": "True"}, "zero_terminal_snr", "follows from the base model here"),
        ({"color_aug": "True"}, "color_aug", "colours are not changed here"),
        ({"loss_type": "l1"}, "loss_type", "accepted are l2, huber, smooth_l1"),
        ({"network_dim": "2000"}, "network_dim", "method.rank is 2000, accepted are 1 to 1024"),
        ({"noise_offset": "3"}, "noise_offset", "training.noise_offset is 3.0, accepted are 0 to 1"),
        ({"optimizer": "dadaptation.DAdaptAdam"}, "optimizer_type, optimizer_args", "dadaptadam is none of"),
        ({"lr_scheduler": "inverse_sqrt"}, "lr_scheduler", "accepted are constant, "),
        ({"network_module": "networks.oft"}, "network_module, network_args", "oft is none of lora, locon, "),
        ({"max_bucket_reso": "1536"}, "max_bucket_reso", "sides of buckets follow from the resolution here"),
        ({"invented": "5"}, "invented", "is not known to Train Studio"),
    ],
)
def test_what_does_not_map_is_named_with_its_reason(changes: dict[str, str], name: str, text: str) -> None:
    assert texts(of(**changes))[name].startswith(text)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"steps": "1000"}, "the file was saved after 1000 of 1500 steps; the length is that of the whole run"),
        ({"total_batch_size": "4"}, "2 devices as accumulation"),
        ({"optimizer": "bitsandbytes.optim.adamw.PagedAdamW8bit"}, "pagedadamw8bit as adamw8bit"),
        ({"optimizer": "prodigyopt.prodigy.Prodigy(decouple=True,d_coef=2.0)"}, "without d_coef=2.0"),
        ({"resolution": "(512, 768)"}, "pictures keep their own shapes in buckets of this area"),
        ({"text_encoder_lr": "[1e-5, 2e-5]"}, "2 rates of text encoders as the first"),
        ({"debiased_estimation": "True"}, "debiased estimation as well, which cannot be combined"),
    ],
)
def test_what_is_only_about_right_says_so(changes: dict[str, str], text: str) -> None:
    assert [each.text for each in of(**changes).approximated] == [text]


def test_several_datasets_become_one_and_the_others_are_listed() -> None:
    first = {"batch_size_per_device": 4, "resolution": [768, 768], "enable_bucket": True, "bucket_info": {},
             "num_train_images": 300, "tag_frequency": {}, "is_dreambooth": True,
             "subsets": [{"img_count": 20, "num_repeats": 10, "keep_tokens": 1, "image_dir": "10_cat", "is_reg": False},
                         {"img_count": 99, "num_repeats": 1, "image_dir": "1_animal", "is_reg": True},
                         {"img_count": 5, "num_repeats": 20, "keep_tokens": 1, "image_dir": "20_cat"}]}  # fmt: skip
    recipe = of(datasets=json.dumps([first]), batch_size_per_device="1")
    assert (recipe.table["training"]["train_batch_size"], recipe.table["dataset"]["resolution_px"]) == (4, 768)
    assert (recipe.table["dataset"]["repeats"], recipe.table["dataset"]["keep_first_tags"]) == (10, 1)
    assert [(each.name, each.value) for each in recipe.unmapped if each.name.startswith("folder")] == [
        ("folder 2", {"num_repeats": 20})
    ]
    assert texts(recipe)["reg_data_dir, prior_loss_weight"].startswith("pictures of the class")


def test_a_file_without_metadata_says_what_its_tensors_show() -> None:
    seen = {"network_module": "networks.lora", "network_args": {}, "network_dim": 4, "network_alpha": 2.0,
            "has_text_encoder": False}  # fmt: skip
    recipe = recipe_of_metadata({}, seen, "lora")
    method = {name: recipe.table["method"][name] for name in ("kind", "rank", "alpha", "train_text_encoder")}
    assert method == {"kind": "lora", "rank": 4, "alpha": 2.0, "train_text_encoder": False}
    assert set(recipe.table) == {"preset", "method"}


def test_a_resized_file_has_its_rank_from_its_tensors() -> None:
    metadata = {**METADATA, "ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}
    recipe = recipe_of_metadata(metadata, {"network_dim": 12, "network_alpha": 6.0}, "lora")
    assert (recipe.table["method"]["rank"], recipe.table["method"]["alpha"]) == (12, 6.0)


CONFIG: dict[str, Any] = {
    "model": {"pretrained_model_name_or_path": "/models/sd15.safetensors"},
    "network": {"network_module": "networks.lora", "network_dim": 8, "network_train_unet_only": True},
    "train": {
        "max_train_epochs": 10, "learning_rate": 2e-4, "optimizer_type": "Prodigy", "save_every_n_epochs": 2,
        "optimizer_args": ["weight_decay=0.02", "betas=0.9,0.95"], "xformers": True, "lr_warmup_steps": 0.1,
    },
    "general": {"shuffle_caption": True, "caption_extension": ".txt"},
    "datasets": [
        {"resolution": 768, "batch_size": 4,
         "subsets": [{"image_dir": "/pics/cat", "num_repeats": 5, "flip_aug": True}]},
    ],
}  # fmt: skip


def test_a_config_file_and_its_dataset_are_read_with_the_defaults_of_the_program() -> None:
    recipe = recipe_of_table(CONFIG)
    check_partial(recipe.table)
    assert recipe.table["base_model"] == "/models/sd15.safetensors"
    assert {name: recipe.table["method"][name] for name in ("rank", "alpha", "train_text_encoder")} == {
        "rank": 8, "alpha": 1.0, "train_text_encoder": False,
    }  # fmt: skip
    optimizer = {"optimizer": "prodigy", "weight_decay": 0.02, "beta1": 0.9, "beta2": 0.95, "learning_rate": 2e-4}
    schedule = {"lr_scheduler": "constant", "lr_warmup_ratio": 0.1, "min_lr_ratio": 0.0}
    assert recipe.table["optimizer"] == {**optimizer, **schedule}
    assert recipe.table["training"]["loss_weighting"] == "none"
    assert recipe.table["dataset"] == {
        "caption_template": "[filewords]", "shuffle_tags": True, "keep_first_tags": 0, "caption_dropout_rate": 0.0,
        "tag_dropout_rate": 0.0, "flip": True, "use_buckets": False, "allow_upscale": True, "repeats": 5,
        "resolution_px": 768, "folder": "/pics/cat",
    }  # fmt: skip
    assert texts(recipe).keys() == {"max_train_epochs", "save_every_n_epochs"}


def test_epochs_become_samples_when_the_number_of_pictures_is_known() -> None:
    recipe = recipe_of_table(CONFIG, num_pictures=21)
    steps_per_epoch = 27  # 21 pictures, 5 times each, in batches of 4
    training = recipe.table["training"]
    assert (training["num_samples"], training["save_every_steps"]) == (10 * steps_per_epoch * 4, 2 * steps_per_epoch)
    assert texts(recipe) == {}
    assert [each.text for each in recipe.approximated] == [
        f"10 epochs as {10 * steps_per_epoch * 4} samples", "epochs as steps",
    ]  # fmt: skip


def test_a_dataset_alone_says_nothing_of_the_training() -> None:
    recipe = recipe_of_table({"general": {"keep_tokens": 1}, "datasets": [{"resolution": [512, 512], "subsets": []}]})
    assert set(recipe.table) == {"preset", "method", "dataset"}
    assert (recipe.table["dataset"]["keep_first_tags"], recipe.table["dataset"]["resolution_px"]) == (1, 512)


def test_without_a_network_the_checkpoint_itself_is_trained() -> None:
    config = {"pretrained_model_name_or_path": "/m/sd.ckpt", "learning_rate": 2e-6, "max_train_steps": 800,
              "learning_rate_te": 1e-6, "prior_loss_weight": 0.5, "reg_data_dir": "/reg",
              "stop_text_encoder_training": 200}  # fmt: skip
    recipe = recipe_of_table(config)
    names = ("kind", "train_text_encoder", "text_encoder_learning_rate")
    method = {name: recipe.table["method"][name] for name in names}
    assert method == {"kind": "dreambooth", "train_text_encoder": True, "text_encoder_learning_rate": 1e-6}
    assert recipe.table["optimizer"]["learning_rate"] == 2e-6
    assert recipe.table["method"]["text_encoder_until"] == 0.25
    assert recipe.table["prior"] == {"kind": "pictures", "folder": "/reg", "prior_loss_weight": 0.5}
    assert texts(recipe) == {}


def test_new_vectors_become_an_embedding() -> None:
    config = {
        "pretrained_model_name_or_path": "org/name", "token_string": "zkw", "num_vectors_per_token": 4,
        "init_word": "cat", "learning_rate": 5e-3, "max_train_steps": 800, "use_object_template": True,
    }  # fmt: skip
    recipe = recipe_of_table(config)
    assert recipe.table["method"] == {
        "kind": "textual_inversion", "vectors_per_token": 4, "initializer_text": "cat", "relative_learning_rate": 0.0,
    }  # fmt: skip
    assert recipe.table["optimizer"]["weight_decay"] == 0.01
    assert (recipe.table["name"], recipe.table["dataset"]["caption_template"]) == ("zkw", "subject")
    assert texts(recipe) == {
        "pretrained_model_name_or_path": "is the name of a model on a site, not a file; choose the checkpoint yourself"
    }
