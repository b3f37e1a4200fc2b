"""The published sizes of Stable Diffusion 2.1 and XL: for measuring, and for tests without weights.

Written down from the settings their makers publish (`config.json` of each network), not from our own tables.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..models.build import PROJECTED_TEXT, build_module
from ..models.configs import base_config
from ..models.family import FAMILIES
from ..models.ldm import POSITION_IDS, part_to_ldm

_SD2_UNET = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
_SD2_TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "hidden_act": "gelu",
    "projection_dim": 1024,
    "architectures": [PROJECTED_TEXT],
}
_SDXL_UNET = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SDXL_SECOND_TEXT = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "hidden_act": "gelu",
    "projection_dim": 1280,
    "architectures": [PROJECTED_TEXT],
}
# Changes against SD 1.5's settings; what is not named is the same. SD 2's text encoder is whole here, as in its file.
REAL_SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {"unet": {}, "vae": {}, "text_encoder": {}},
    "sd2": {"unet": _SD2_UNET, "vae": {}, "text_encoder": _SD2_TEXT},
    "sdxl": {
        "unet": _SDXL_UNET,
        "vae": {"scaling_factor": 0.13025},
        "text_encoder": {},
        "text_encoder_2": _SDXL_SECOND_TEXT,
    },
}


def real_networks(family: str) -> dict[str, nn.Module]:
    """The networks of a family at their published sizes, on the meta device."""
    return {
        part: build_module(part, base_config(part.removesuffix("_2")) | changes)
        for part, changes in REAL_SIZES[family].items()
    }


def real_tensors(family: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint of 'sd1', 'sd2' or 'sdxl', fp16, on the meta device, under their checkpoint names."""
    kinds = FAMILIES[family]
    tensors: dict[str, Tensor] = {}
    for part, module in real_networks(family).items():
        tensors |= part_to_ldm(part, module.half(), kinds)
    for kind in kinds.text_encoders:
        if kind.layout == "open_clip":
            tensors[kind.prefix + "logit_scale"] = torch.empty((), dtype=torch.float16, device="meta")
        else:
            tensors[kind.prefix + POSITION_IDS] = torch.empty((1, 77), dtype=torch.int64, device="meta")
    return tensors
