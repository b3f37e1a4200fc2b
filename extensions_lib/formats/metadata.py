"""The metadata of a result file: kohya's `ss_*` that the WebUI acts on, SAI ModelSpec, and our own.

All values are text. Sources: kohya sd-scripts `library/train_util.py` (names), Stability-AI/ModelSpec 1.0.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from .. import __version__

_REFERENCE = "https://github.com/Stability-AI/generative-models"
# Known to ModelSpec from this version on.
_NEGATIVE = {"modelspec.sai_model_spec": "1.0.1", "modelspec.is_negative_embedding": "true"}
# Hashes of the tensors that a header repeats: they hold only for these tensors.
HASH_KEYS = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
_NOT_IN_ALIASES = re.compile(r"[:<>,]")


@dataclass(frozen=True)
class _Family:
    """How one model family is called: ModelSpec's architecture, and kohya's base model version, by prediction type."""

    architecture: str
    architecture_v: str
    base_version: str
    base_version_v: str
    is_v2: bool = False


_FAMILIES = {
    "sd1": _Family("stable-diffusion-v1", "stable-diffusion-v1", "sd_v1", "sd_v1"),
    "sd2": _Family("stable-diffusion-v2-512", "stable-diffusion-v2-768-v", "sd_v2", "sd_v2_v", is_v2=True),
    "sdxl": _Family("stable-diffusion-xl-v1-base", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "sdxl_base_v1-0"),
}


@dataclass(frozen=True, kw_only=True)
class ArtefactInfo:
    """Plain facts about a result; what is None or empty is left out of the file.

    `resolution_px` is (width, height); hashes are hex digits (full sha256, 8 digits of AutoV1); times are Unix seconds;
    `tag_frequency` is {folder: {tag: count}}, `bucket_info` {"buckets": {"0": {"resolution": [w, h], "count": n}}},
    `network_module` and `network_args` are kohya's words for the algorithm of a LoRA; `max_norm` bounds its changes;
    `dataset_dirs` {folder: {"n_repeats": n, "img_count": n}}; `job_json` the job's settings as JSON text.
    """

    output_name: str
    family: str = "sd1"
    prediction_type: str = "epsilon"
    title: str | None = None
    description: str | None = None
    author: str | None = None
    trigger_word: str | None = None
    base_model_name: str | None = None
    base_model_sha256: str | None = None
    base_model_autov1: str | None = None
    vae_name: str | None = None
    vae_sha256: str | None = None
    resolution_px: tuple[int, int] | None = None
    rank: int | None = None
    alpha: float | None = None
    conv_rank: int | None = None
    conv_alpha: float | None = None
    network_dropout: float | None = None
    network_module: str = "networks.lora"
    network_args: Mapping[str, object] | None = None
    max_norm: float | None = None
    num_vectors: int | None = None
    is_negative_embedding: bool = False
    steps: int | None = None
    max_train_steps: int | None = None
    epoch: int | None = None
    num_epochs: int | None = None
    learning_rate: float | str | None = None
    unet_learning_rate: float | str | None = None
    text_encoder_learning_rate: float | str | None = None
    optimizer: str | None = None
    lr_scheduler: str | None = None
    lr_warmup_steps: int | None = None
    seed: int | None = None
    train_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    gradient_checkpointing: bool | None = None
    max_grad_norm: float | None = None
    mixed_precision: str | None = None
    clip_skip: int | None = None
    num_images: int | None = None
    num_regularization_images: int | None = None
    enable_bucket: bool | None = None
    shuffle_caption: bool | None = None
    keep_tokens: int | None = None
    flip_augmentation: bool | None = None
    caption_dropout_rate: float | None = None
    tag_frequency: Mapping[str, Mapping[str, int]] | None = None
    bucket_info: Mapping[str, object] | None = None
    dataset_dirs: Mapping[str, Mapping[str, int]] | None = None
    noise_offset: float | None = None
    min_snr_gamma: float | None = None
    prior_loss_weight: float | None = None
    loss_type: str | None = None
    session_id: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    job_json: str | None = None


def lora_metadata(info: ArtefactInfo, data_hash: str, *, include_dataset: bool = True) -> dict[str, str]:
    """The header of a LoRA file; `data_hash` is `safetensors_io.data_hash` of its tensors.

    Without `include_dataset` it names no tags, captions or folders. Raises ValueError for an unknown family.
    """
    implementation = _REFERENCE if info.family == "sdxl" else "diffusers"
    facts = {
        **_identity(info),
        **_network(info),
        **_schedule(info),
        **_data(info, include_dataset),
        **_loss(info),
        **_base_model(info),
        "sshs_model_hash": data_hash,
        **_modelspec(info, "lora", implementation, data_hash),
        **_own(info),
    }
    return _as_text(facts)


def with_hash(metadata: Mapping[str, str], data_hash: str) -> dict[str, str]:
    """The header of a LoRA file to which more tensors were added; `data_hash` is that of all of them."""
    return {**metadata, "sshs_model_hash": data_hash, "modelspec.hash_sha256": f"0x{data_hash}"}


def checkpoint_metadata(info: ArtefactInfo, data_hash: str) -> dict[str, str]:
    """The header of a whole model; `data_hash` is `safetensors_io.data_hash` of its tensors.

    The WebUI shows it. Whether it names tags and folders is decided by what `info` holds. Raises ValueError for an
    unknown family.
    """
    facts = {
        "format": "pt",
        **_identity(info),
        **_schedule(info),
        **_data(info, include_dataset=True),
        **_loss(info),
        **_base_model(info),
        **_modelspec(info, "", _REFERENCE, data_hash),
        **_own(info),
    }
    return _as_text(facts)


def embedding_metadata(info: ArtefactInfo, data_hash: str) -> dict[str, str]:
    """The header of an embedding file. The WebUI ignores it; it serves resuming, model sites, and `inspect`."""
    facts = {
        **_modelspec(info, "textual-inversion", _REFERENCE, data_hash),
        **(_NEGATIVE if info.is_negative_embedding else {}),
        "name": info.output_name,
        "step": info.steps,
        "num_vectors": info.num_vectors,
        "sd_checkpoint": info.base_model_sha256[:10] if info.base_model_sha256 else None,
        "sd_checkpoint_name": info.base_model_name,
        **_own(info),
    }
    return _as_text(facts)


def architecture(family: str, prediction_type: str) -> str:
    """What ModelSpec calls a checkpoint, such as 'stable-diffusion-v2-768-v'. Raises ValueError for another family."""
    return _architecture(_family_called(family), prediction_type)


def _architecture(family: _Family, prediction_type: str) -> str:
    return family.architecture_v if prediction_type == "v_prediction" else family.architecture


def _family(info: ArtefactInfo) -> _Family:
    return _family_called(info.family)


def _family_called(name: str) -> _Family:
    family = _FAMILIES.get(name)
    if family is None:
        raise ValueError(f"family is {name!r}; accepted: {', '.join(_FAMILIES)}")
    return family


def _is_v(info: ArtefactInfo) -> bool:
    return info.prediction_type == "v_prediction"


def _identity(info: ArtefactInfo) -> dict[str, object]:
    """The WebUI sorts a LoRA by base version and `ss_v2`, and calls it by its output name in prompts."""
    family = _family(info)
    return {
        "ss_output_name": _NOT_IN_ALIASES.sub("_", info.output_name),
        "ss_base_model_version": family.base_version_v if _is_v(info) else family.base_version,
        "ss_v2": family.is_v2,
        "ss_session_id": info.session_id,
        "ss_training_started_at": info.started_at,
        "ss_training_finished_at": info.finished_at,
        "ss_training_comment": info.description,
    }


def _network(info: ArtefactInfo) -> dict[str, object]:
    conv = {"conv_dim": info.conv_rank, "conv_alpha": info.conv_alpha} if info.conv_rank else {}
    return {
        "ss_network_module": info.network_module,
        "ss_network_dim": info.rank,
        "ss_network_alpha": info.alpha,
        "ss_network_dropout": info.network_dropout,
        "ss_network_args": {key: str(value) for key, value in {**conv, **(info.network_args or {})}.items()} or None,
        "ss_scale_weight_norms": info.max_norm,
    }


def _schedule(info: ArtefactInfo) -> dict[str, object]:
    return {
        "ss_learning_rate": info.learning_rate,
        "ss_unet_lr": info.unet_learning_rate,
        "ss_text_encoder_lr": info.text_encoder_learning_rate,
        "ss_optimizer": info.optimizer,
        "ss_lr_scheduler": info.lr_scheduler,
        "ss_lr_warmup_steps": info.lr_warmup_steps,
        "ss_max_train_steps": info.max_train_steps,
        "ss_steps": info.steps,
        "ss_epoch": info.epoch,
        "ss_num_epochs": info.num_epochs,
        "ss_gradient_accumulation_steps": info.gradient_accumulation_steps,
        "ss_gradient_checkpointing": info.gradient_checkpointing,
        "ss_max_grad_norm": info.max_grad_norm,
        "ss_mixed_precision": info.mixed_precision,
        "ss_seed": info.seed,
    }


def _data(info: ArtefactInfo, include_dataset: bool) -> dict[str, object]:
    private = {"ss_tag_frequency": info.tag_frequency, "ss_dataset_dirs": info.dataset_dirs}
    return {
        "ss_num_train_images": info.num_images,
        "ss_num_reg_images": info.num_regularization_images,
        "ss_resolution": None if info.resolution_px is None else str(tuple(info.resolution_px)),
        "ss_batch_size_per_device": info.train_batch_size,
        "ss_total_batch_size": _total_batch(info),
        "ss_enable_bucket": info.enable_bucket,
        "ss_bucket_info": info.bucket_info,
        "ss_shuffle_caption": info.shuffle_caption,
        "ss_keep_tokens": info.keep_tokens,
        "ss_flip_aug": info.flip_augmentation,
        "ss_caption_dropout_rate": info.caption_dropout_rate,
        **(private if include_dataset else {}),
    }


def _total_batch(info: ArtefactInfo) -> int | None:
    """Pictures per optimizer update."""
    return None if info.train_batch_size is None else info.train_batch_size * (info.gradient_accumulation_steps or 1)


def _loss(info: ArtefactInfo) -> dict[str, object]:
    return {
        "ss_noise_offset": info.noise_offset,
        "ss_min_snr_gamma": info.min_snr_gamma,
        "ss_prior_loss_weight": info.prior_loss_weight,
        "ss_loss_type": info.loss_type,
        "ss_clip_skip": info.clip_skip,
    }


def _base_model(info: ArtefactInfo) -> dict[str, object]:
    return {
        "ss_sd_model_name": info.base_model_name,
        "ss_sd_model_hash": info.base_model_autov1,
        "ss_new_sd_model_hash": info.base_model_sha256,
        "ss_vae_name": info.vae_name,
        "ss_new_vae_hash": info.vae_sha256,
    }


def _modelspec(info: ArtefactInfo, adapter: str, implementation: str, data_hash: str) -> dict[str, object]:
    family = _family(info)
    architecture = _architecture(family, info.prediction_type)
    size = info.resolution_px
    facts = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{architecture}/{adapter}" if adapter else architecture,
        "implementation": implementation,
        "title": info.title or info.output_name,
        "resolution": None if size is None else f"{size[0]}x{size[1]}",
        "description": info.description,
        "author": info.author,
        "date": None if info.finished_at is None else _iso_date(info.finished_at),
        "hash_sha256": f"0x{data_hash}",
        "trigger_phrase": info.trigger_word,
        "prediction_type": "v" if _is_v(info) else "epsilon",
        "encoder_layer": info.clip_skip,
    }
    return {f"modelspec.{key}": value for key, value in facts.items()}


def _own(info: ArtefactInfo) -> dict[str, object]:
    return {"train_studio.version": __version__, "train_studio.job": info.job_json}


def _iso_date(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, tz=timezone.utc).isoformat(timespec="seconds")


def _as_text(facts: Mapping[str, object]) -> dict[str, str]:
    """Text for every fact that is known: 'True'/'False' for flags, JSON for tables."""
    return {key: _text(value) for key, value in facts.items() if value is not None and value != ""}


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value)
