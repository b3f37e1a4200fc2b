"""A base model in a diffusers folder: model_index.json, unet/, vae/, text_encoder/, text_encoder_2/, tokenizer/, ..."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.timesteps import scaled_linear_alphas_cumprod
from ..errors import FormatError, KeyMismatchError, ModelError, UnsupportedModelError
from ..formats.checkpoint import read_checkpoint
from .build import PartDtypes, adopt_tensors, build_module, position_ids
from .bundle import ModelBundle, ModelSource, StoredForm
from .family import SD1, SD2, SDXL, ModelFamily
from .ldm import POSITION_IDS, state_to_ldm, unloaded_layers
from .schedule import NUM_TIMESTEPS, check_num_timesteps, linear_alphas_cumprod, with_zero_terminal_snr
from .single_file import LoadedVae
from .sizes import read_json
from .tokenizer import PromptTokenizer

# Pipeline -> the families it serves; which of them shows in the UNet's settings.
_PIPELINES = {
    "StableDiffusionPipeline": (SD1, SD2),
    "StableDiffusionInpaintPipeline": (SD1, SD2),
    "StableDiffusionXLPipeline": (SDXL,),
    "StableDiffusionXLInpaintPipeline": (SDXL,),
}
_CHANNELS = (4, 9)
NETWORK_WEIGHTS = "diffusion_pytorch_model"
TEXT_WEIGHTS = "model"
_PICKLED_TEXT = "pytorch_model.bin"
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_SCHEDULES = {"scaled_linear": scaled_linear_alphas_cumprod, "linear": linear_alphas_cumprod}


def load_folder(folder: Path, vae: LoadedVae | None, loaded: PartDtypes) -> ModelBundle:
    """A diffusers folder as a bundle; `vae` replaces the folder's own. Raises as `load_bundle`."""
    outline = outline_folder(folder, vae)
    dtypes: dict[str, torch.dtype] = {}
    for part, module in outline.parts.items():
        is_given = part == "vae" and vae is not None
        dtypes |= vae.dtypes if is_given else _fill(folder / part, part, module, outline.family, loaded.of(part))
    return replace(outline, stored=StoredForm(dtypes, extra=unloaded_layers(outline)))


def outline_folder(folder: Path, vae: LoadedVae | None) -> ModelBundle:
    """The same with its networks on the meta device: no tensor is read. Raises as `load_bundle`."""
    family, configs = _configs(folder)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    alphas_cumprod = _alphas_cumprod(folder.name, scheduler)
    latent_scale = float(configs["vae"].get("scaling_factor", family.latent_scale))
    modules: dict[str, nn.Module] = {}
    for part, config in configs.items():
        if part == "vae" and vae is not None:
            modules[part] = vae.module
            vae.module.register_to_config(scaling_factor=latent_scale)
        else:
            weights_files(folder / part, part)
            modules[part] = build_module(part, config)
    return ModelBundle(
        family=replace(
            family,
            latent_scale=latent_scale,
            prediction_type=_prediction_type(folder.name, scheduler),
            text_width=modules["unet"].config.cross_attention_dim,
        ),
        unet=modules["unet"],
        vae=modules["vae"],
        text_encoders={kind.part: modules[kind.part] for kind in family.text_encoders},
        tokenizer=_tokenizer(folder / "tokenizer"),
        alphas_cumprod=alphas_cumprod,
        source=ModelSource(folder, folder.name, is_folder=True),
    )


def _configs(folder: Path) -> tuple[ModelFamily, dict[str, dict[str, Any]]]:
    """The family, and the settings of its networks. Raises UnsupportedModelError for pipelines that are not trained."""
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"{folder} is no diffusers model: it has no model_index.json.",
            "Choose a checkpoint file, or the folder that holds model_index.json.",
        )
    pipeline = read_json(folder / "model_index.json").get("_class_name")
    if pipeline not in _PIPELINES:
        raise UnsupportedModelError(
            f"{folder.name} is a {pipeline}; {', '.join(_PIPELINES)} can be trained.",
            "Choose a Stable Diffusion 1, 2 or XL model.",
        )
    unet = read_json(folder / "unet" / "config.json")
    channels = unet.get("in_channels", 4)
    if channels not in _CHANNELS:
        raise UnsupportedModelError(
            f"{folder.name} takes {channels} channels; accepted are 4, and 9 of an inpainting model.",
            "Choose a text-to-image or inpainting model.",
        )
    first, *others = _PIPELINES[pipeline]
    family = others[0] if others and unet.get("use_linear_projection") else first
    parts = ("vae", *(kind.part for kind in family.text_encoders))
    return family, {"unet": unet} | {part: read_json(folder / part / "config.json") for part in parts}


def _fill(
    folder: Path, part: str, module: nn.Module, family: ModelFamily, dtype: torch.dtype
) -> dict[str, torch.dtype]:
    """Give the network the folder's weights; returns the dtypes they had, under their checkpoint names."""
    tensors = _read_weights(folder, part)
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    stored_ids = tensors.pop(POSITION_IDS, None)
    if family.text_encoder(part) is not None:
        tensors[POSITION_IDS] = position_ids(stored_ids, module.config.max_position_embeddings)
    try:
        adopt_tensors(module, tensors, dtype)
    except KeyMismatchError as error:
        raise KeyMismatchError(f"{folder}: {error.message}", error.hint) from error
    standing_in = {
        name: torch.empty(tensor.shape, dtype=dtypes[name], device="meta")
        for name, tensor in module.state_dict().items()
        if name != POSITION_IDS
    }
    return {name: tensor.dtype for name, tensor in state_to_ldm(part, standing_in, module, family).items()}


def _read_weights(folder: Path, part: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in weights_files(folder, part):
        tensors |= read_checkpoint(path).tensors
    return {new_attention_name(name): tensor for name, tensor in tensors.items()} if part == "vae" else tensors


def weights_files(folder: Path, part: str) -> list[Path]:
    """The first weights there are: .safetensors before .bin, full precision before fp16, whole before in pieces.

    Raises ModelError without any, FormatError for a damaged list of pieces.
    """
    is_network = part in ("unet", "vae")
    stem = NETWORK_WEIGHTS if is_network else TEXT_WEIGHTS
    pickled = f"{stem}.bin" if is_network else _PICKLED_TEXT
    index = f"{stem}.safetensors.index.json"
    names = (f"{stem}.safetensors", index, f"{stem}.fp16.safetensors", pickled, pickled.replace(".bin", ".fp16.bin"))
    for name in names:
        if (folder / name).is_file():
            return _pieces(folder / name) if name == index else [folder / name]
    raise ModelError(f"{folder} holds no weights; looked for {', '.join(names)}.", "Copy or download the folder again.")


def _pieces(index: Path) -> list[Path]:
    """The files that a list of pieces names, all beside it."""
    found = read_json(index).get("weight_map")
    names = sorted({str(name) for name in found.values()}) if isinstance(found, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise FormatError(f"{index} names no files beside it.", "Copy or download the folder again.")
    return [index.parent / name for name in names]


def new_attention_name(name: str) -> str:
    """VAE folders from before diffusers 0.18 call the projections query, key, value, proj_attn."""
    for old, new in _OLD_ATTENTION.items():
        name = name.replace(old, new)
    return name


def _tokenizer(folder: Path) -> PromptTokenizer:
    if (folder / "vocab.json").is_file():
        return PromptTokenizer.from_folder(folder)
    return PromptTokenizer.from_open_clip()


def _prediction_type(name: str, scheduler: Mapping[str, Any]) -> str:
    value = scheduler.get("prediction_type", SD1.prediction_type)
    if value not in ("epsilon", "v_prediction"):
        raise UnsupportedModelError(
            f"{name}: prediction_type is {value!r}; accepted are 'epsilon' and 'v_prediction'.", "Choose another model."
        )
    return value


def _alphas_cumprod(name: str, scheduler: Mapping[str, Any]) -> Tensor:
    """The schedule of scheduler_config.json, diffusers' defaults where it says nothing."""
    check_num_timesteps(scheduler.get("num_train_timesteps", NUM_TIMESTEPS), name)
    kind = scheduler.get("beta_schedule", "linear")
    if kind not in _SCHEDULES or scheduler.get("trained_betas"):
        raise UnsupportedModelError(
            f"{name}: the noise schedule ({kind!r}, or own betas) is not supported; "
            f"accepted are {', '.join(map(repr, _SCHEDULES))} as they are or with zero terminal SNR.",
            "Choose another model.",
        )
    alphas = _SCHEDULES[kind](scheduler.get("beta_start", 0.0001), scheduler.get("beta_end", 0.02)).float()
    return with_zero_terminal_snr(alphas) if scheduler.get("rescale_betas_zero_snr") else alphas
