"""What the settings of kohya's sd-scripts are called here, and what has no counterpart."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import PureWindowsPath
from typing import Any

from .plain import number, numbers, switch, text, whole
from .recipe import NOTHING, Facts, Rule, Said, missing, one_of, rule, set_to, silent

_BY_BASE = "follows from the base model here"
_OPTIMIZERS = {
    "adamw": "adamw", "adamw8bit": "adamw8bit", "lion": "lion", "adafactor": "adafactor", "prodigy": "prodigy",
}  # fmt: skip
_NEARLY = {
    "pagedadamw8bit": "adamw8bit", "pagedadamw": "adamw", "lion8bit": "lion", "pagedlion8bit": "lion", "adam": "adamw",
}  # fmt: skip
# Of optimizers whose arguments say nothing else.
WEIGHT_DECAY = {"adamw": 0.01, "adamw8bit": 0.01, "lion": 0.0, "adafactor": 0.0, "prodigy": 0.0}
_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
_ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr", "full": "full"}
_LAYERS = {"full": "full", "attn-mlp": "attention+mlp", "attn-only": "attention"}
WHOLE_LOKR = 10_000
_EPOCHS = "is counted in epochs, which are as many samples as there are pictures: say how many pictures you have"


def num_steps(facts: Facts) -> int | None:
    """Optimizer updates of the run; None when it is counted in epochs of an unknown number of pictures."""
    if facts.get("max_train_steps") and not facts.get("max_train_epochs"):
        return whole(facts["max_train_steps"])
    epoch = steps_per_epoch(facts)
    return None if epoch is None or not facts.get("max_train_epochs") else whole(facts["max_train_epochs"]) * epoch


def steps_per_epoch(facts: Facts) -> int | None:
    """Optimizer updates of an epoch, the repeats of the pictures counted; None when their number is not known."""
    pictures = facts.get("num_train_images")
    if facts.get("num_pictures"):
        pictures = whole(facts["num_pictures"]) * whole(facts.get("num_repeats") or 1)
    if not pictures:
        return None
    batches = math.ceil(whole(pictures) / whole(facts.get("train_batch_size") or 1))
    return math.ceil(batches / whole(facts.get("gradient_accumulation_steps") or 1))


def _length(steps: Any, epochs: Any, done: Any, facts: Facts) -> Said:
    found = num_steps(facts)
    if found is None:
        return Said(reason=_EPOCHS) if epochs else NOTHING
    samples = found * whole(facts.get("train_batch_size") or 1) * whole(facts.get("gradient_accumulation_steps") or 1)
    note = f"{epochs} epochs as {samples} samples" if epochs else ""
    if done and whole(done) < found:
        note = f"the file was saved after {whole(done)} of {found} steps; the length is that of the whole run"
    return Said({"training.num_samples": samples, "training.max_train_steps": 0}, note)


def _every(path: str) -> Callable[..., Said]:
    """For a number of steps, or of epochs."""

    def say(steps: Any, epochs: Any, facts: Facts) -> Said:
        if steps:
            return Said({path: whole(steps)})
        if not epochs:
            return NOTHING
        epoch = steps_per_epoch(facts)
        return Said(reason=_EPOCHS) if epoch is None else Said({path: whole(epochs) * epoch}, "epochs as steps")

    return say


def _warmup(value: Any, facts: Facts) -> Said:
    """A share of the run below 1, else steps."""
    steps = number(value or 0)
    if steps < 1:
        return Said({"optimizer.lr_warmup_ratio": steps})
    total = num_steps(facts)
    if total is None:
        return Said(reason="is a number of steps of a run whose length is not known")
    return Said({"optimizer.lr_warmup_ratio": round(steps / total, 4)})


def _scheduler(value: Any, facts: Facts) -> Said:
    word = str(value or "constant").lower()
    to_zero = {"optimizer.min_lr_ratio": 0.0}
    if word == "cosine_with_min_lr":
        return Said({"optimizer.lr_scheduler": "cosine", **to_zero})
    if word == "adafactor":
        return Said({"optimizer.lr_scheduler": "constant"}, "a rate that Adafactor finds itself as a constant one")
    if word in _SCHEDULERS:
        return Said({"optimizer.lr_scheduler": word, **to_zero})
    return Said(reason=f"accepted are {', '.join(_SCHEDULERS)}")


def _optimizer(kind: Any, settings: Any, eight_bit: Any, lion: Any, facts: Facts) -> Said:
    """The optimizer by the last part of its class name, and those of its arguments that we have."""
    word = str(kind or ("AdamW8bit" if eight_bit else "Lion" if lion else "AdamW")).rsplit(".", 1)[-1].lower()
    found: dict[str, Any] = {"optimizer.optimizer": _OPTIMIZERS.get(word) or _NEARLY.get(word)}
    if found["optimizer.optimizer"] is None:
        return Said(reason=f"{word} is none of {', '.join(_OPTIMIZERS)}")
    given = dict(settings or {})
    found["optimizer.weight_decay"] = number(given.pop("weight_decay", WEIGHT_DECAY[found["optimizer.optimizer"]]))
    if "betas" in given:
        found["optimizer.beta1"], found["optimizer.beta2"] = numbers(given.pop("betas"))[:2]
    if "eps" in given and word != "adafactor":
        found["optimizer.epsilon"] = number(given.pop("eps"))
    notes = [f"{word} as {found['optimizer.optimizer']}"] if word in _NEARLY else []
    ours = {"use_bias_correction", "safeguard_warmup"} if word == "prodigy" else set()
    others = {n: v for n, v in given.items() if v not in (False, None) and not (n in ours and v) and n != "decouple"}
    if others:
        notes.append("without " + ", ".join(f"{name}={value}" for name, value in others.items()))
    return Said(found, "; ".join(notes))


def _rates(rate: Any, unet: Any, text_rate: Any, unet_only: Any, first: Any, facts: Facts) -> Said:
    """The UNet's own rate wins over the common one; the text encoder's is the common one unless it has its own."""
    main = unet if unet is not None else rate
    found: dict[str, Any] = {} if main is None else {"optimizer.learning_rate": number(main)}
    given = text_rate if text_rate is not None else first
    rates = numbers(given) if given not in (None, []) else ()
    own = rates[0] if rates else None if rate is None else number(rate)
    if switch(unet_only or False) or own == 0:
        return Said({**found, "method.train_text_encoder": False})
    if own is None or (not facts.get("network_dim") and not rates):
        return Said(found)
    note = f"{len(rates)} rates of text encoders as the first" if len(set(rates)) > 1 else ""
    return Said({**found, "method.train_text_encoder": True, "method.text_encoder_learning_rate": own}, note)


def _algorithm(module: Any, settings: Any, facts: Facts) -> Said:
    """networks.lora, or LyCORIS with its algorithm."""
    word = _algorithm_word(facts)
    if word not in _ALGORITHMS:
        return Said(reason=f"{word} is none of {', '.join(_ALGORITHMS)}")
    return Said({"method.algorithm": _ALGORITHMS[word]})


def _algorithm_word(facts: Facts) -> str:
    name = str(facts.get("network_module") or "networks.lora")
    given = facts.get("network_args") or {}
    return str(given.get("algo", "lora") if _is_lycoris(facts) else name.rsplit(".", 1)[-1]).lower()


def _is_lycoris(facts: Facts) -> bool:
    return str(facts.get("network_module") or "").startswith("lycoris")


def _rank(rank: Any, facts: Facts) -> Said:
    """The rank; for LoKr, LyCORIS says by a very large one that the large matrix stays whole."""
    if rank is None:
        return NOTHING
    if _algorithm_word(facts) == "lokr" and whole(rank) >= WHOLE_LOKR:
        return Said({"method.lokr_whole": True})
    return Said({"method.rank": whole(rank)})


def _alpha(alpha: Any, rank: Any, facts: Facts) -> Said:
    """Left out, it is 1 for networks.lora and the rank for LyCORIS; 0 is the rank for both."""
    if (rank is None and alpha is None) or whole(rank or 0) >= WHOLE_LOKR:
        return NOTHING
    if alpha is None and not _is_lycoris(facts):
        return Said({"method.alpha": 1.0})
    return Said({"method.alpha": number(alpha or 0) or number(rank)})


def _convolutions(settings: Any, facts: Facts) -> Said:
    """Their rank and alpha; LyCORIS takes those of the other layers unless it leaves the convolutions out."""
    given = dict(settings or {})
    is_whole = _is_lycoris(facts) and str(given.get("preset", "full")) == "full"
    rank = given.get("conv_dim") or (facts.get("network_dim") if is_whole else None)
    if not rank or whole(rank) >= WHOLE_LOKR:
        return NOTHING
    alpha = given.get("conv_alpha") or (facts.get("network_alpha") or rank if _is_lycoris(facts) else 1)
    return Said({"method.conv_rank": whole(rank), "method.conv_alpha": number(alpha), "method.layers": "full"})


def _network_settings(settings: Any, facts: Facts) -> Said:
    """The arguments of a network that stand for themselves, and which of them we have nothing like."""
    found: dict[str, Any] = {}
    others, notes = {}, []
    for name, value in dict(settings or {}).items():
        if name in _SPOKEN_FOR or value in (None, False, "", 0):
            continue
        path, read = _NETWORK_SETTINGS.get(name, ("", None))
        if read is not None:
            found[path] = read(value)
        elif name == "preset" and str(value).lower() in _LAYERS:
            found["method.layers"] = _LAYERS[str(value).lower()]
        else:
            others[name] = value
    if found.get("method.dora") and switch(settings.get("wd_on_out", settings.get("wd_on_output", True))):
        notes.append("DoRA on the input axis, the one the WebUI computes; there it was on the output axis")
    reason = "no such settings here: " + ", ".join(f"{n}={v}" for n, v in others.items()) if others else ""
    return Said(found, "; ".join(notes), reason)


_SPOKEN_FOR = {"algo", "conv_dim", "conv_alpha", "wd_on_out", "wd_on_output", "bypass_mode", "verbose"}
_NETWORK_SETTINGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "dora_wd": ("method.dora", switch),
    "factor": ("method.lokr_factor", whole),
    "full_matrix": ("method.lokr_whole", switch),
    "rs_lora": ("method.rs_lora", switch),
    "dropout": ("method.dropout", number),
    "rank_dropout": ("method.rank_dropout", number),
    "module_dropout": ("method.module_dropout", number),
    "train_norm": ("method.train_norms", switch),
    "loraplus_lr_ratio": ("method.lora_plus_ratio", number),
}


def _loss_weighting(gamma: Any, debiased: Any, facts: Facts) -> Said:
    if gamma:
        note = "debiased estimation as well, which cannot be combined" if debiased else ""
        return Said({"training.loss_weighting": "min_snr", "training.min_snr_gamma": number(gamma)}, note)
    return Said({"training.loss_weighting": "debiased" if debiased else "none"})


def _pyramid(iterations: Any, discount: Any, facts: Facts) -> Said:
    if not iterations:
        return Said({"training.pyramid_noise_discount": 0.0})
    return Said(
        {"training.pyramid_noise_discount": number(discount if discount is not None else 0.3)},
        f"{iterations} levels as the six that are used here" if whole(iterations) != 6 else "",
    )


def _resolution(value: Any, facts: Facts) -> Said:
    """A side, or width and height: the side of a square of that area."""
    sides = numbers(value)
    side = math.sqrt(sides[0] * sides[-1])
    note = "" if sides[0] == sides[-1] else "pictures keep their own shapes in buckets of this area"
    return Said({"dataset.resolution_px": round(side / 8) * 8}, note)


def _huber_schedule(schedule: Any, kind: Any, facts: Facts) -> Said:
    if str(kind).lower() not in ("huber", "smooth_l1") or str(schedule or "snr") == "constant":
        return NOTHING
    return Said(reason="the bend is at the same place for all noise levels here")


def _captions(before: Any, after: Any, shuffles: Any, facts: Facts) -> Said:
    """Captions are used as they are, so the word stands in them already."""
    parts = [str(part) for part in (before, "[filewords]", after) if part]
    return Said({"dataset.caption_template": " ".join(parts)})


def _path(path: str) -> Callable[..., Said]:
    """For a file or folder of the machine it was written on; a name on a model site has no counterpart."""

    def say(value: Any, facts: Facts) -> Said:
        if not value:
            return NOTHING
        is_file = PureWindowsPath(str(value)).suffix.lower() in (".safetensors", ".ckpt", ".pt", ".bin")
        is_folder = path == "dataset.folder" or str(value)[:1] in ("/", ".", "~") or str(value)[1:2] == ":"
        if is_file or is_folder:
            return Said({path: str(value)})
        return Said(reason="is the name of a model on a site, not a file; choose the checkpoint yourself")

    return say


def _class_pictures(folder: Any, weight: Any, facts: Facts) -> Said:
    """Their folder, in a config file; metadata only say that there were some."""
    if not folder:
        return NOTHING
    if not facts.get("pretrained_model_name_or_path"):
        return Said(reason="pictures of the class: give them yourself, or let them be drawn")
    found = {"prior.kind": "pictures", "prior.folder": str(folder)}
    return Said({**found, "prior.prior_loss_weight": number(1 if weight is None else weight)})


def _text_until(value: Any, facts: Facts) -> Said:
    """After so many steps the text encoder rests; -1 from the start."""
    if not value:
        return NOTHING
    if whole(value) < 0:
        return Said({"method.train_text_encoder": False})
    total = num_steps(facts)
    if total is None:
        return Said(reason="is a number of steps of a run whose length is not known")
    return Said({"method.text_encoder_until": round(min(whole(value) / total, 1.0), 4)})


def _data_folder(value: Any, facts: Facts) -> Said:
    """The folder above those called '10_cat'."""
    if not value:
        return NOTHING
    return Said({"dataset.folder": str(value)}, "the numbers in the names of its sub-folders are not read as repeats")


def _total_batch(total: Any, facts: Facts) -> Said:
    """More than batch and accumulation make: it ran on several GPUs."""
    accumulation = whole(facts.get("gradient_accumulation_steps") or 1)
    single = whole(facts.get("train_batch_size") or 1) * accumulation
    if not total or whole(total) <= single or whole(total) % single:
        return NOTHING
    devices = whole(total) // single
    return Said(
        {
            "training.gradient_accumulation_steps": accumulation * devices,
            "training.num_samples": (num_steps(facts) or 1) * whole(total),
        },
        f"{devices} devices as accumulation",
    )


def _vectors(value: Any, facts: Facts) -> Said:
    """Their rate is the common one."""
    return Said({"method.vectors_per_token": whole(value or 1), "method.relative_learning_rate": 0.0})


def _templates(thing: Any, style: Any, facts: Facts) -> Said:
    if switch(thing or False) or switch(style or False):
        return Said({"dataset.caption_template": "subject" if switch(thing or False) else "style"})
    return NOTHING


RULES: tuple[Rule, ...] = (
    Rule(("network_module", "network_args"), _algorithm),
    rule("network_dim", _rank),
    Rule(("network_alpha", "network_dim"), _alpha),
    rule("network_args", _convolutions),
    rule("network_args", _network_settings),
    rule("network_dropout", set_to("method.dropout", number)),
    rule("scale_weight_norms", set_to("method.max_norm", number)),
    rule("network_weights", _path("method.start_from")),
    Rule(
        ("learning_rate", "unet_lr", "text_encoder_lr", "network_train_unet_only", "learning_rate_te"),
        _rates,
    ),
    rule("has_text_encoder", lambda value, facts: NOTHING if value else Said({"method.train_text_encoder": False})),
    Rule(("optimizer_type", "optimizer_args", "use_8bit_adam", "use_lion_optimizer"), _optimizer),
    Rule(("max_train_steps", "max_train_epochs", "steps"), _length),
    rule("lr_scheduler", _scheduler),
    rule("lr_warmup_steps", _warmup),
    rule("lr_scheduler_num_cycles", set_to("optimizer.lr_num_cycles", whole)),
    rule("lr_scheduler_power", set_to("optimizer.lr_power", number)),
    rule("lr_scheduler_min_lr_ratio", set_to("optimizer.min_lr_ratio", number)),
    rule("train_batch_size", set_to("training.train_batch_size", whole)),
    rule("gradient_accumulation_steps", set_to("training.gradient_accumulation_steps", whole)),
    rule("total_batch_size", _total_batch),
    rule("gradient_checkpointing", set_to("training.gradient_checkpointing", switch)),
    rule("max_grad_norm", set_to("training.max_grad_norm", number)),
    rule("seed", set_to("training.seed", whole)),
    rule(
        "mixed_precision",
        one_of(
            "training.mixed_precision", {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}, "accepted are no, fp16, bf16"
        ),
    ),
    rule(
        "save_precision",
        one_of("output.dtype", {"float": "fp32", "fp16": "fp16", "bf16": "bf16"}, "accepted are float, fp16, bf16"),
    ),
    rule("clip_skip", lambda value, facts: Said({"training.clip_skip": whole(value or 1)})),
    Rule(("min_snr_gamma", "debiased_estimation_loss"), _loss_weighting),
    rule(
        "loss_type",
        one_of(
            "training.loss_type",
            {"l2": "mse", "huber": "huber", "smooth_l1": "smooth_l1"},
            "accepted are l2, huber, smooth_l1",
        ),
    ),
    rule("huber_c", set_to("training.huber_c", number)),
    Rule(("huber_schedule", "loss_type"), _huber_schedule),
    rule("noise_offset", lambda value, facts: Said({"training.noise_offset": number(value or 0)})),
    Rule(("multires_noise_iterations", "multires_noise_discount"), _pyramid),
    rule("ip_noise_gamma", set_to("training.input_perturbation", number)),
    rule("min_timestep", set_to("training.min_timestep", whole)),
    rule("max_timestep", set_to("training.max_timestep", whole)),
    Rule(("save_every_n_steps", "save_every_n_epochs"), _every("training.save_every_steps")),
    Rule(("sample_every_n_steps", "sample_every_n_epochs"), _every("preview.every_steps")),
    rule("training_comment", lambda value, facts: Said({"output.description": str(value)}) if value else NOTHING),
    rule("output_name", set_to("name", text)),
    rule("pretrained_model_name_or_path", _path("base_model")),
    rule("vae", _path("vae")),
    Rule(("caption_prefix", "caption_suffix", "shuffle_caption"), _captions),
    rule("shuffle_caption", set_to("dataset.shuffle_tags", switch)),
    rule("keep_tokens", set_to("dataset.keep_first_tags", whole)),
    rule("caption_dropout_rate", set_to("dataset.caption_dropout_rate", number)),
    rule("caption_tag_dropout_rate", set_to("dataset.tag_dropout_rate", number)),
    rule("flip_aug", set_to("dataset.flip", switch)),
    rule("alpha_mask", set_to("dataset.use_alpha_masks", switch)),
    rule("enable_bucket", set_to("dataset.use_buckets", switch)),
    rule("bucket_no_upscale", lambda value, facts: Said({"dataset.allow_upscale": not switch(value or False)})),
    rule("bucket_reso_steps", set_to("dataset.bucket_step_px", whole)),
    rule("num_repeats", set_to("dataset.repeats", whole)),
    rule("resolution", _resolution),
    rule("image_dir", _path("dataset.folder")),
    rule("train_data_dir", _data_folder),
    rule("num_vectors_per_token", _vectors),
    rule("init_word", set_to("method.initializer_text", text)),
    rule("token_string", set_to("name", text)),
    rule("weights", _path("method.start_from")),
    Rule(("use_object_template", "use_style_template"), _templates),
    Rule(("reg_data_dir", "prior_loss_weight"), _class_pictures),
    rule("stop_text_encoder_training", _text_until),
    rule("class_tokens", missing("stands in for captions that are missing: write it as the caption template")),
    rule("missing_dataset_config", missing("its pictures are described in that file, which is not beside this one")),
    rule("caption_extension", missing("captions are .txt files here", off=(None, "", ".txt", "txt"))),
    *(rule(name, missing(_BY_BASE)) for name in ("zero_terminal_snr", "v_parameterization")),
    *(
        rule(name, missing(reason))
        for name, reason in {
            "scale_v_pred_loss_like_noise_pred": "the loss of v-prediction is not scaled here",
            "v_pred_like_loss": "the loss of v-prediction is not mixed here",
            "adaptive_noise_scale": "the noise offset is the same for all pictures here",
            "noise_offset_random_strength": "the noise offset is the same in all steps here",
            "ip_noise_gamma_random_strength": "the extra noise is the same in all steps here",
            "color_aug": "colours are not changed here",
            "random_crop": "pictures are cropped at their middle here",
            "face_crop_aug_range": "pictures are cropped at their middle here",
            "keep_tokens_separator": "the first tags are counted here",
            "secondary_separator": "tags are separated by commas here",
            "enable_wildcard": "captions are taken word for word here",
            "caption_dropout_every_n_epochs": "captions are left out by chance here",
            "masked_loss": "masks are the transparency of the pictures here",
            "weighted_captions": "weights in captions have no meaning here",
            "network_train_text_encoder_only": "the UNet is always trained here",
            "base_weights": "merge those files into a checkpoint first, and choose that",
            "block_lr": "a LoRA has rates by block here, a checkpoint has not",
            "learning_rate_te1": "one rate for all text encoders here",
            "learning_rate_te2": "one rate for all text encoders here",
            "full_bf16": "trained numbers are kept in float32 here",
            "fp8_base": "the frozen model is bf16, fp16 or fp32 here",
            "fp8_base_unet": "the frozen model is bf16, fp16 or fp32 here",
            "sample_prompts": "a file with preview prompts: give the prompts themselves",
            "validation_split": "give a folder of pictures to measure with instead",
            "lr_scheduler_args": "these arguments of a schedule are not known here",
            "lr_decay_steps": "the rate falls over the whole run here",
            "in_json": "captions in one file: write them beside the pictures",
            "metadata_file": "captions in one file: write them beside the pictures",
            "token_warmup_step": "all tags are used from the start here",
        }.items()
    ),
    rule("min_bucket_reso", missing("sides of buckets follow from the resolution here", off=(None, 256))),
    rule("max_bucket_reso", missing("sides of buckets follow from the resolution here", off=(None, 1024, 2048))),
    *silent(
        "num_pictures", "num_train_images", "v2", "max_token_length", "tokenizer_cache_dir",
        "output_dir", "save_model_as", "save_last_n_epochs", "save_last_n_steps", "save_state",
        "save_state_on_train_end", "save_n_epoch_ratio", "save_last_n_epochs_state", "save_last_n_steps_state",
        "logging_dir", "log_with", "log_prefix", "log_tracker_name", "wandb_run_name", "wandb_api_key",
        "log_tracker_config", "xformers", "sdpa", "mem_eff_attn", "diffusers_xformers", "torch_compile",
        "dynamo_backend", "cache_latents", "cache_latents_to_disk", "vae_batch_size", "cache_text_encoder_outputs",
        "cache_text_encoder_outputs_to_disk", "max_data_loader_n_workers", "persistent_data_loader_workers", "lowram",
        "highvram", "full_fp16", "no_half_vae", "no_metadata", "dim_from_weights",
        "fused_backward_pass", "resize_interpolation", "huber_scale", "lr_scheduler_timescale", "token_warmup_min",
        "debug_dataset", "cache_info", "skip_cache_check", "sample_sampler", "sample_at_first",
        "text_encoder_batch_size",
        "config_file", "dataset_config", "validation_seed", "max_validation_steps", "validate_every_n_steps",
        "validate_every_n_epochs", "initial_epoch", "initial_step", "skip_until_initial_step", "keep_tokens_in_groups",
        "train_text_encoder", "use_safetensors", "disable_mmap_load_safetensors", "network_multiplier",
        "custom_attributes", "ddp_timeout", "huggingface_repo_id", "metadata_title", "metadata_author",
        "metadata_description", "metadata_license", "metadata_tags", "base_weights_multiplier",
    ),
)  # fmt: skip
