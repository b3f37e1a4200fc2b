"""OneTrainer: its presets and configs (JSON), which it can also write into its files as `ot_config`.

What a preset leaves out has the program's default. Names of settings restated from its configuration; nothing copied.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import PureWindowsPath
from typing import Any

from ...errors import ConfigError, Problem
from ..methods import METHOD_CONFIGS
from .kohya_rules import WEIGHT_DECAY
from .plain import number, numbers, switch, text, whole
from .recipe import NOTHING, Facts, Recipe, Rule, Said, missing, one_of, rule, set_to, silent, translate

SOURCE = "a OneTrainer config"
KINDS = {"LORA": "lora", "EMBEDDING": "textual_inversion", "FINE_TUNE": "dreambooth"}
_FAMILIES = ("STABLE_DIFFUSION_15", "STABLE_DIFFUSION_2", "STABLE_DIFFUSION_XL")
_DEFAULTS = {
    "learning_rate": 3e-6, "learning_rate_scheduler": "CONSTANT", "learning_rate_warmup_steps": 200, "epochs": 100,
    "batch_size": 1, "gradient_accumulation_steps": 1, "resolution": "512", "peft_type": "LORA", "lora_rank": 16,
    "lora_alpha": 1.0, "optimizer.optimizer": "ADAMW", "loss_weight_fn": "CONSTANT", "clip_grad_norm": 1.0,
    "train_dtype": "FLOAT_16", "text_encoder.train": True, "embedding.token_count": 1,
    "embedding.initial_embedding_text": "*", "aspect_ratio_bucketing": True, "layer_filter_preset": "full",
    "offset_noise_weight": 0.0, "ema": "OFF", "learning_rate_min_factor": 0.0, "unet.gradient_checkpointing": True,
}  # fmt: skip
_OPTIMIZERS = {
    "ADAMW": "adamw", "ADAMW_8BIT": "adamw8bit", "ADAFACTOR": "adafactor", "LION": "lion", "PRODIGY": "prodigy",
}  # fmt: skip
_NEARLY = {
    "ADAM": "adamw", "ADAM_8BIT": "adamw8bit", "LION_8BIT": "lion", "PRODIGY_ADV": "prodigy", "ADAMW_ADV": "adamw",
}  # fmt: skip
_ALGORITHMS = {"LORA": "lora", "LOHA": "loha", "LOKR": "lokr"}
_TYPES = {"float_32": "fp32", "tfloat_32": "fp32", "float_16": "fp16", "bfloat_16": "bf16"}
_SCHEDULES = {
    "constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine",
    "cosine_with_hard_restarts": "cosine_with_restarts",
}  # fmt: skip
_SCHEDULES_TEXT = f"is none of {', '.join(word.upper() for word in _SCHEDULES)}"
_EPOCHS = "is counted in epochs, which are as many samples as there are pictures: say how many pictures you have"
_OTHER_MODELS = re.compile(
    r"^(prior|transformer|unconditional_transformer|effnet_encoder|decoder|decoder_text_encoder|decoder_vqgan"
    r"|text_encoder_[34]|quantization|cloud|secrets|optimizer_defaults|embedding|unet|text_encoder|text_encoder_2|vae"
    r"|optimizer|oft|sample|backup|tensorboard|rolling_backup|frames|text_encoder_sequence_length)(\.|_|$)"
)


def is_onetrainer(table: Mapping[str, Any]) -> bool:
    """Whether a table is a config or preset of OneTrainer."""
    return "training_method" in table or "base_model_name" in table


def from_onetrainer(table: Mapping[str, Any], num_pictures: int | None = None) -> Recipe:
    """The recipe in a config or preset; `num_pictures` of the user's own, because it counts in epochs.

    Raises ConfigError for what is no Stable Diffusion 1, 2 or XL, or trains a VAE.
    """
    method = str(table.get("training_method", "FINE_TUNE"))
    model = str(table.get("model_type", "STABLE_DIFFUSION_15"))
    if not model.startswith(_FAMILIES):
        raise ConfigError([Problem("model_type", f"is {model!r}, accepted are Stable Diffusion 1, 2 and XL")])
    kind = KINDS.get(method, "")
    if kind not in METHOD_CONFIGS:
        raise ConfigError([Problem("training_method", f"is {method!r}, accepted are {', '.join(KINDS)}")])
    facts = {**_DEFAULTS, **_flat(table)}
    if num_pictures:
        facts["num_pictures"] = num_pictures
    if method == "LORA" and facts.get("additional_embeddings") and "pivotal" in METHOD_CONFIGS:
        kind = "pivotal"
    facts = {name: value for name, value in facts.items() if name in _KNOWN or not _OTHER_MODELS.match(name)}
    recipe = translate(SOURCE, facts, (*RULES, *_METHOD_RULES.get(kind, ())), kind)
    return Recipe(SOURCE, recipe.table, recipe.unmapped, recipe.approximated, str(table.get("base_model_name", "")))


def _flat(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value
    return flat


def _updates(facts: Facts) -> int | None:
    """Optimizer updates of the run; None when the number of pictures is not known."""
    if not facts.get("num_pictures"):
        return None
    batches = math.ceil(whole(facts["num_pictures"]) / whole(facts["batch_size"]))
    return math.ceil(batches * whole(facts["epochs"]) / whole(facts["gradient_accumulation_steps"]))


def _length(epochs: Any, facts: Facts) -> Said:
    updates = _updates(facts)
    if updates is None:
        return Said(reason=_EPOCHS)
    samples = updates * whole(facts["batch_size"]) * whole(facts["gradient_accumulation_steps"])
    return Said({"training.num_samples": samples, "training.max_train_steps": 0}, f"epochs as {samples} samples")


def _warmup(value: Any, facts: Facts) -> Said:
    """A share of the run up to 1, else batches."""
    steps = number(value or 0)
    if steps <= 1:
        return Said({"optimizer.lr_warmup_ratio": steps})
    updates = _updates(facts)
    if updates is None:
        return Said(reason="is a number of steps of a run whose length is not known")
    ratio = steps / whole(facts["gradient_accumulation_steps"]) / updates
    return Said({"optimizer.lr_warmup_ratio": round(min(ratio, 1.0), 4)})


def _optimizer(kind: Any, facts: Facts) -> Said:
    word = str(kind).upper()
    ours = _OPTIMIZERS.get(word) or _NEARLY.get(word)
    if ours is None:
        return Said(reason=f"accepted are {', '.join(_OPTIMIZERS)}")
    found = {"optimizer.optimizer": ours, "optimizer.weight_decay": WEIGHT_DECAY[ours]}
    return Said(found, "" if word in _OPTIMIZERS else f"{word} as {ours}")


def _text_rate(trains: Any, rate: Any, second: Any, common: Any, facts: Facts) -> Said:
    """The text encoder's own rate, or the common one."""
    if trains is not None and not switch(trains) and not switch(second or False):
        return Said({"method.train_text_encoder": False})
    own = number(rate if rate is not None else common)
    return Said({"method.train_text_encoder": True, "method.text_encoder_learning_rate": own})


def _until(path: str) -> Callable[..., Said]:
    """For when a part rests; in epochs, a share of the run."""

    def say(after: Any, unit: Any, facts: Facts) -> Said:
        if not after or str(unit or "NEVER") == "NEVER":
            return NOTHING
        if str(unit) != "EPOCH":
            return Said(reason="is not counted in epochs; give a share of the run")
        return Said({path: round(min(number(after) / number(facts["epochs"]), 1.0), 4)})

    return say


def _loss(squared: Any, absolute: Any, log_cosh: Any, huber: Any, delta: Any, facts: Facts) -> Said:
    parts = {"mse": number(1 if squared is None else squared), "huber": number(huber or 0)}
    others = number(absolute or 0) + number(log_cosh or 0)
    if others or all(parts.values()) or not any(parts.values()):
        return Said(reason="losses are not mixed here, and absolute and log-cosh losses are not known")
    if parts["mse"]:
        return Said({"training.loss_type": "mse"})
    return Said({"training.loss_type": "huber", "training.huber_c": number(1 if delta is None else delta)})


def _loss_weighting(kind: Any, strength: Any, facts: Facts) -> Said:
    word = str(kind or "CONSTANT").upper()
    if word == "MIN_SNR_GAMMA":
        return Said({"training.loss_weighting": "min_snr",
                     "training.min_snr_gamma": number(5 if strength is None else strength)})  # fmt: skip
    words = {"CONSTANT": "none", "DEBIASED_ESTIMATION": "debiased"}
    return Said({"training.loss_weighting": words[word]}) if word in words else Said(reason="is not known here")


def _resolution(value: Any, facts: Facts) -> Said:
    sides = numbers(value)
    side = round(sides[0] / 8) * 8
    note = f"all pictures at {side} px; several sizes are not mixed here" if len(sides) > 1 else ""
    return Said({"dataset.resolution_px": side}, note)


def _algorithm(kind: Any, facts: Facts) -> Said:
    word = str(kind or "LORA").upper()
    if word not in _ALGORITHMS:
        return Said(reason=f"is none of {', '.join(_ALGORITHMS)}")
    if word != "LOKR":
        return Said({"method.algorithm": _ALGORITHMS[word]})
    return Said(
        {
            "method.algorithm": "lokr",
            "method.rank": whole(facts.get("lokr_dim") or 16),
            "method.lokr_factor": whole(facts.get("lokr_decompose_factor") or -1),
            "method.lokr_whole": switch(facts.get("lokr_full_matrix") or False),
        }
    )


def _dora(dora: Any, output_axis: Any, facts: Facts) -> Said:
    if not switch(dora or False):
        return NOTHING
    note = "on the input axis, the one the WebUI computes" if switch(output_axis or False) else ""
    return Said({"method.dora": True}, note)


def _layers(preset: Any, pattern: Any, is_regex: Any, facts: Facts) -> Said:
    words = {"full": "full", "attn-mlp": "attention+mlp", "attn-only": "attention"}
    if str(preset) in words:
        return Said({"method.layers": words[str(preset)]})
    return Said(reason="names of layers are others here; give a regular expression as layer_filter")


def _concepts(concepts: Any, facts: Facts) -> Said:
    """The folder and the captions of the first concept that is trained."""
    used = [one for one in concepts or () if one.get("enabled", True) and one.get("type", "STANDARD") == "STANDARD"]
    if not used:
        return NOTHING
    first, told = used[0], used[0].get("text", {})
    priors = [one for one in concepts if one.get("enabled", True) and one.get("type") == "PRIOR_PREDICTION"]
    dropout = number(told.get("tag_dropout_probability") or 0) if told.get("tag_dropout_enable") else 0.0
    found = {
        "dataset.folder": str(first.get("path", "")),
        "dataset.recursive": switch(first.get("include_subdirectories", False)),
        "dataset.flip": switch(first.get("image", {}).get("enable_random_flip", False)),
        "dataset.shuffle_tags": switch(told.get("enable_tag_shuffling", False)),
        "dataset.keep_first_tags": whole(told.get("keep_tags_count", 1)),
        "dataset.tag_dropout_rate": dropout,
        "dataset.caption_template": "[filewords]",
    }
    notes = [f"{len(used) - 1} more concepts are left out: one folder is trained"] if len(used) > 1 else []
    if priors:
        notes.append("give the class prompt for what the prior concept did (prior.kind frozen_base)")
    return Said(found, "; ".join(notes))


def _samples(samples: Any, facts: Facts) -> Said:
    """Its preview prompts as ours."""
    prompts = [
        {
            "prompt": str(each["prompt"]),
            "negative_prompt": str(each.get("negative_prompt", "")),
            "seed": abs(whole(each.get("seed", 42))),
            "width_px": whole(each.get("width", 0)),
            "height_px": whole(each.get("height", 0)),
            "num_steps": whole(each.get("diffusion_steps", 20)),
            "guidance_scale": number(each.get("cfg_scale", 7.0)),
        }
        for each in samples or ()
        if each.get("prompt") and each.get("enabled", True)
    ]
    return Said({"preview.prompts": prompts}) if prompts else NOTHING


def _every(path: str) -> Callable[..., Said]:
    def say(count: Any, unit: Any, facts: Facts) -> Said:
        if not count or str(unit or "NEVER") in ("NEVER", "ALWAYS"):
            return NOTHING
        if str(unit) == "STEP":
            return Said({path: max(1, round(whole(count) / whole(facts["gradient_accumulation_steps"])))})
        return Said(reason="is not counted in steps")

    return say


def _base(value: Any, facts: Facts) -> Said:
    if PureWindowsPath(str(value)).suffix.lower() in (".safetensors", ".ckpt") or PureWindowsPath(str(value)).drive:
        return Said({"base_model": str(value)})
    return Said(reason="is the name of a model on a site, not a file; choose the checkpoint yourself")


def _timestep(path: str) -> Callable[..., Said]:
    """For a share of the noise levels."""
    return lambda value, facts: Said({path: round(number(value) * 1000)})


_BY_BASE = "follows from the base model here"
RULES: tuple[Rule, ...] = (
    rule("learning_rate", set_to("optimizer.learning_rate", number)),
    rule("unet.learning_rate", set_to("optimizer.learning_rate", number)),
    rule("learning_rate_scheduler", one_of("optimizer.lr_scheduler", _SCHEDULES, _SCHEDULES_TEXT)),
    rule("learning_rate_warmup_steps", _warmup),
    rule("learning_rate_cycles", lambda value, facts: Said({"optimizer.lr_num_cycles": max(1, round(number(value)))})),
    rule("learning_rate_min_factor", set_to("optimizer.min_lr_ratio", number)),
    rule("learning_rate_scaler", missing("rates are taken as they are here", off=(None, "NONE"))),
    rule("epochs", _length),
    rule("batch_size", set_to("training.train_batch_size", whole)),
    rule("gradient_accumulation_steps", set_to("training.gradient_accumulation_steps", whole)),
    rule("unet.gradient_checkpointing", set_to("training.gradient_checkpointing", switch)),
    rule("clip_grad_norm", lambda value, facts: Said({"training.max_grad_norm": number(value or 0)})),
    Rule(("ema", "ema_decay"), lambda mode, decay, facts: Said(
        {"training.ema_decay": 0.0 if str(mode or "OFF") == "OFF" else number(0.999 if decay is None else decay)})),
    rule("train_dtype", one_of("training.mixed_precision", _TYPES, "accepted are FLOAT_32, FLOAT_16, BFLOAT_16")),
    rule("output_dtype", one_of("output.dtype", _TYPES, "accepted are FLOAT_32, FLOAT_16, BFLOAT_16")),
    rule("resolution", _resolution),
    rule("aspect_ratio_bucketing", set_to("dataset.use_buckets", switch)),
    Rule(("mse_strength", "mae_strength", "log_cosh_strength", "huber_strength", "huber_delta"), _loss),
    Rule(("loss_weight_fn", "loss_weight_strength"), _loss_weighting),
    rule("offset_noise_weight", set_to("training.noise_offset", number)),
    rule("perturbation_noise_weight", set_to("training.input_perturbation", number)),
    rule("generalized_offset_noise", missing("the noise offset is the plain one here")),
    rule("rescale_noise_scheduler_to_zero_terminal_snr", missing(_BY_BASE)),
    rule("force_v_prediction", missing(_BY_BASE)),
    rule("force_epsilon_prediction", missing(_BY_BASE)),
    rule("min_noising_strength", _timestep("training.min_timestep")),
    rule("max_noising_strength", _timestep("training.max_timestep")),
    rule("timestep_distribution", missing("noise levels are drawn evenly here", off=(None, "UNIFORM"))),
    rule("text_encoder_layer_skip", lambda value, facts: Said({"training.clip_skip": 1 + whole(value or 0)})),
    rule("masked_training", lambda value, facts: Said(
        {"dataset.use_alpha_masks": True}, "masks are the transparency of the pictures here") if value else NOTHING),
    rule("unmasked_weight", set_to("dataset.unmasked_weight", number)),
    rule("masked_prior_preservation_weight", missing("the part outside the mask is not compared with the base here")),
    rule("unmasked_probability", missing("masks are used in every step here", off=(None, 0, 0.1))),
    rule("vae.model_name", lambda value, facts: Said({"vae": str(value)}) if value else NOTHING),
    rule("base_model_name", _base),
    rule("output_model_destination", lambda value, facts: Said({"name": PureWindowsPath(str(value)).stem})),
    rule("concepts", _concepts),
    rule("samples", _samples),
    Rule(("save_every", "save_every_unit"), _every("training.save_every_steps")),
    Rule(("optimizer.optimizer",), _optimizer),
    rule("optimizer.weight_decay", set_to("optimizer.weight_decay", number)),
    rule("optimizer.beta1", set_to("optimizer.beta1", number)),
    rule("optimizer.beta2", set_to("optimizer.beta2", number)),
    rule("optimizer.eps", set_to("optimizer.epsilon", number)),
    *silent(
        "num_pictures", "training_method", "model_type", "debug_mode", "debug_dir", "workspace_dir", "cache_dir",
        "huggingface_cache_dir", "offline_mode", "validation", "validate_after", "validate_after_unit",
        "continue_last_backup", "prevent_overwrites", "include_train_config", "multi_gpu", "device_indexes",
        "gradient_reduce_precision", "fused_gradient_reduce", "async_gradient_reduce",
        "async_gradient_reduce_buffer", "output_model_format", "async_offloading", "compile", "concept_file_name",
        "latent_caching", "clear_cache_before_training", "scheduler_params", "ema_update_step_interval",
        "dataloader_threads", "train_device", "temp_device", "fallback_train_dtype", "enable_autocast_cache",
        "only_cache", "attention_mechanism", "vb_loss_strength", "loss_scaler", "noising_weight", "noising_bias",
        "timestep_shift", "dynamic_timestep_shifting", "normalize_masked_area_loss", "custom_conditioning_image",
        "embedding_weight_dtype", "lora_weight_dtype", "lora_decompose_norm_epsilon", "bundle_additional_embeddings",
        "lokr_dim", "lokr_decompose_both", "lokr_decompose_factor", "lokr_use_tucker", "lokr_weight_decompose",
        "lokr_dora_on_output", "lokr_full_matrix", "lokr_vec_trick", "save_skip_first", "save_filename_prefix",
        "samples_to_tensorboard", "non_ema_sampling", "force_circular_padding", "text_encoder_2_layer_skip",
        "oft_block_size", "oft_block_share", "oft_scaled", "additional_embeddings", "embedding_learning_rate",
        "preserve_embedding_norm", "__version", "gradient_checkpointing", "weight_dtype",
        "text_encoder_2.learning_rate",
        "embedding.token_count", "embedding.initial_embedding_text", "embedding.placeholder",
        "text_encoder.stop_training_after", "text_encoder.stop_training_after_unit", "peft_type", "lora_rank",
        "lora_alpha", "lora_decompose", "lora_decompose_output_axis", "layer_filter_preset", "layer_filter",
        "layer_filter_regex", "text_encoder.train", "text_encoder.learning_rate", "text_encoder_2.train",
        "dropout_probability", "lora_model_name",
    ),
)  # fmt: skip
_WORD = (
    rule("training_method", lambda value, facts: Said({"method.relative_learning_rate": 0.0})),
    rule("embedding.token_count", set_to("method.vectors_per_token", whole)),
    rule("embedding.initial_embedding_text", set_to("method.initializer_text", text)),
    rule("preserve_embedding_norm", missing("give a limit for the length of vectors instead (max_norm_ratio)")),
)
_TEXT_ENCODER = (
    Rule(("text_encoder.train", "text_encoder.learning_rate", "text_encoder_2.train", "learning_rate"), _text_rate),
)
_LORA = (
    rule("lora_rank", set_to("method.rank", whole)),
    rule("lora_alpha", set_to("method.alpha", number)),
    rule("peft_type", _algorithm),
    Rule(("lora_decompose", "lora_decompose_output_axis"), _dora),
    Rule(("layer_filter_preset", "layer_filter", "layer_filter_regex"), _layers),
    rule("dropout_probability", set_to("method.dropout", number)),
    rule("lora_model_name", lambda value, facts: Said({"method.start_from": str(value)}) if value else NOTHING),
    *_TEXT_ENCODER,
)
_REST = (
    *_TEXT_ENCODER,
    Rule(
        ("text_encoder.stop_training_after", "text_encoder.stop_training_after_unit"),
        _until("method.text_encoder_until"),
    ),
)
_METHOD_RULES: dict[str, tuple[Rule, ...]] = {
    "lora": _LORA,
    "textual_inversion": (*_WORD, rule("embedding_learning_rate", set_to("optimizer.learning_rate", number))),
    "pivotal": (*_WORD, *_LORA, rule("embedding_learning_rate", set_to("method.embedding_learning_rate", number))),
    "dreambooth": _REST,
}
_KNOWN = {name for each in (*RULES, *_WORD, *_LORA, *_REST) for name in each.names}
