"""LoRA layer names: a module's path in diffusers or transformers -> the name kohya's format and the WebUI use."""

from __future__ import annotations

import re

from .unet import SDXL_LAYOUT, unet_to_ldm

_LAST_NORM = "conv_norm_out"
# (family, network) -> what the layer name begins with.
_PREFIXES = {
    ("sd1", "unet"): "lora_unet_",
    ("sd1", "text_encoder"): "lora_te_",
    ("sd2", "unet"): "lora_unet_",
    ("sd2", "text_encoder"): "lora_te_",
    ("sdxl", "unet"): "lora_unet_",
    ("sdxl", "text_encoder"): "lora_te1_",
    ("sdxl", "text_encoder_2"): "lora_te2_",
}
# The UNet's 3x3 convolutions, under diffusers' and under checkpoint names; all others are 1x1.
_LARGE_KERNEL = re.compile(
    r"lora_unet_(.*_)?(conv[12]?|conv_in|conv_out|in_layers_2|out_layers_3|op|input_blocks_0_0|out_2)$"
)


def lora_layer_name(module_path: str, network: str, family: str) -> str:
    """'down_blocks.1.attentions.0.proj_in' -> 'lora_unet_down_blocks_1_attentions_0_proj_in'.

    `network` is 'unet', 'text_encoder' or, for SDXL, 'text_encoder_2'; `family` 'sd1', 'sd2' or 'sdxl'. SDXL UNets are
    written with checkpoint names, because one upsampler of theirs is not found under its diffusers name; nor is the
    last norm layer of any UNet.
    Raises ValueError for another pair, KeyMismatchError for a path an SDXL UNet does not have.
    """
    prefix = _PREFIXES.get((family, network))
    if prefix is None:
        accepted = ", ".join(f"{f}/{n}" for f, n in _PREFIXES)
        raise ValueError(f"family/network is {family}/{network}; accepted: {accepted}")
    if network == "unet" and (family == "sdxl" or module_path == _LAST_NORM):
        module_path = unet_to_ldm(module_path, SDXL_LAYOUT)
    return prefix + module_path.replace(".", "_")


def kernel_size(layer: str) -> int:
    """3 for the layer name of a UNet's 3x3 convolution, 1 for all others."""
    return 3 if _LARGE_KERNEL.match(layer) else 1
