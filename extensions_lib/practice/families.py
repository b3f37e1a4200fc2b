"""Small checkpoints of every family, with random weights: for tests, and for trying the WebUI's loading of them.

They draw nothing, but have the names, the layout and the depth of the real ones, at a hundredth of their width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.timesteps import scaled_linear_alphas_cumprod
from ..formats.checkpoint import write_checkpoint
from ..models.build import PROJECTED_TEXT, build_module
from ..models.bundle import INPAINTING_CHANNELS, ModelBundle, ModelSource, StoredForm
from ..models.configs import base_config
from ..models.description import describe
from ..models.family import SD1, SD2, SDXL, ModelFamily
from ..models.ldm import POSITION_IDS, bundle_to_ldm, unloaded_layers
from ..models.prediction import marker_tensors
from ..models.schedule import with_zero_terminal_snr
from ..models.sibling import sibling_path
from ..models.tokenizer import PromptTokenizer

CLIP_FOLDER = "small-clip"  # beside the checkpoints; their yamls name it
NUM_POSITIONS = 77


@dataclass(frozen=True)
class Variant:
    """One kind of checkpoint of a family."""

    family: ModelFamily
    prediction_type: str = "epsilon"
    has_zero_terminal_snr: bool = False
    is_inpainting: bool = False


VARIANTS = {
    "sd1": Variant(SD1),
    "sd1-v": Variant(SD1, "v_prediction"),
    "sd1-v-ztsnr": Variant(SD1, "v_prediction", has_zero_terminal_snr=True),
    "sd1-inpaint": Variant(SD1, is_inpainting=True),
    "sd2": Variant(SD2),
    "sd2-v": Variant(SD2, "v_prediction"),
    "sd2-inpaint": Variant(SD2, is_inpainting=True),
    "sdxl": Variant(SDXL),
    "sdxl-v": Variant(SDXL, "v_prediction"),
    "sdxl-v-ztsnr": Variant(SDXL, "v_prediction", has_zero_terminal_snr=True),
    "sdxl-inpaint": Variant(SDXL, is_inpainting=True),
}

_TEXT_WIDTH = 64
_OPEN_CLIP_WIDTH = 128
_POOLED_WIDTH = 96  # unlike the width before the projection, so that a wrong way round cannot fit
_SIZE_WIDTH = 32
_UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"block_out_channels": [32, 32, 64, 64], "cross_attention_dim": _TEXT_WIDTH, "attention_head_dim": 8},
    "sd2": {
        "block_out_channels": [32, 32, 64, 64],
        "cross_attention_dim": _OPEN_CLIP_WIDTH,
        "attention_head_dim": [2, 2, 4, 4],
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": [32, 64, 64],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 1, 2],
        "cross_attention_dim": _TEXT_WIDTH + _OPEN_CLIP_WIDTH,
        "attention_head_dim": [2, 4, 4],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _SIZE_WIDTH,
        "projection_class_embeddings_input_dim": _POOLED_WIDTH + 6 * _SIZE_WIDTH,
    },
}
_CLIP = {"hidden_size": _TEXT_WIDTH, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 3}
_OPEN_CLIP = {
    "hidden_size": _OPEN_CLIP_WIDTH,
    "num_attention_heads": 2,
    "intermediate_size": 512,  # open_clip knows no other ratio than 4
    "num_hidden_layers": 3,
    "hidden_act": "gelu",
}
_VAE = {"block_out_channels": [32, 32, 64, 64]}


def write_family_model(name: str, folder: Path) -> Path:
    """Write `folder`/`name`.safetensors with its yaml, and the folder the yaml names. Returns the checkpoint.

    `name` is one of VARIANTS. UNet and text encoders are fp16, the VAE is float32. The same at every call.
    """
    bundle = make_family_bundle(VARIANTS[name])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    write_checkpoint(path, bundle_to_ldm(bundle), {"format": "pt"}, overwrite=True)
    sibling_path(path).write_text(describe(bundle, clip_version=CLIP_FOLDER), encoding="utf-8")
    clip = folder / CLIP_FOLDER
    clip.mkdir(exist_ok=True)
    (clip / "config.json").write_text(json.dumps(base_config("text_encoder") | _CLIP), encoding="utf-8")
    return path


def make_family_bundle(variant: Variant) -> ModelBundle:
    """The networks of one variant in memory, float32, with what its checkpoint holds beside them."""
    family = variant.family
    unet = _UNETS[family.name] | {"in_channels": INPAINTING_CHANNELS if variant.is_inpainting else 4}
    modules = {"unet": base_config("unet") | unet, "vae": base_config("vae") | _VAE} | {
        kind.part: base_config("text_encoder") | _text_config(kind.layout, has_pooled=kind.has_pooled)
        for kind in family.text_encoders
    }
    made = {part: _filled(build_module(part, config), seed) for seed, (part, config) in enumerate(modules.items())}
    alphas = scaled_linear_alphas_cumprod().float()
    bundle = ModelBundle(
        family=replace(family, prediction_type=variant.prediction_type, text_width=unet["cross_attention_dim"]),
        unet=made.pop("unet"),
        vae=made.pop("vae"),
        text_encoders=made,
        tokenizer=_tokenizer(),
        alphas_cumprod=with_zero_terminal_snr(alphas) if variant.has_zero_terminal_snr else alphas,
        source=ModelSource(Path("made"), "made", is_folder=True),
    )
    return replace(bundle, stored=StoredForm(_dtypes(bundle), extra=_passengers(bundle)))


def _text_config(layout: str, *, has_pooled: bool) -> dict[str, Any]:
    if layout == "clip":
        return _CLIP
    return _OPEN_CLIP | ({"architectures": [PROJECTED_TEXT], "projection_dim": _POOLED_WIDTH} if has_pooled else {})


def _dtypes(bundle: ModelBundle) -> dict[str, torch.dtype]:
    """fp16 for all but the VAE, as checkpoints usually are."""
    return {
        name: torch.float32 if name.startswith("first_stage_model.") else torch.float16
        for name in bundle_to_ldm(bundle)
    }


def _passengers(bundle: ModelBundle) -> dict[str, Tensor]:
    """Markers, positions and SD 2's last layer: what checkpoints hold beside the weights that are loaded."""
    positions = {
        kind.prefix + POSITION_IDS: torch.arange(NUM_POSITIONS)[None]
        for kind in bundle.family.text_encoders
        if kind.layout == "clip"
    }
    return unloaded_layers(bundle) | positions | marker_tensors(bundle)


@lru_cache(maxsize=1)
def _tokenizer() -> PromptTokenizer:
    return PromptTokenizer.from_open_clip()


def _filled(module: nn.Module, seed: int) -> nn.Module:
    """Random weights that keep the size of what passes through; nothing is drawn from torch's own generator."""
    generator = torch.Generator().manual_seed(seed)
    module.to_empty(device="cpu")
    _fill(dict(module.named_parameters()), generator)
    for name, buffer in module.named_buffers():
        assert name.endswith("position_ids")
        buffer.copy_(torch.arange(NUM_POSITIONS)[None])
    return module.eval().requires_grad_(False)


@torch.no_grad()
def _fill(parameters: Mapping[str, nn.Parameter], generator: torch.Generator) -> None:
    for name, parameter in parameters.items():
        if parameter.ndim == 1:
            parameter.normal_(1.0 if _is_gain(name) else 0.0, 0.05, generator=generator)
        else:
            is_table = "embedding" in name and name.endswith("embedding.weight")
            fan_in = 1.0 if is_table else parameter[0].numel()
            parameter.normal_(0.0, 1 / math.sqrt(fan_in), generator=generator)


def _is_gain(name: str) -> bool:
    """Whether a vector multiplies: the weight of a norm."""
    return name.endswith(".weight")
