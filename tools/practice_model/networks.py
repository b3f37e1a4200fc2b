"""The three networks, and how they start."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from extensions_lib.practice import drawing

VAE_WIDTHS = (64, 64, 64, 64)  # at least two channels for each of the 32 groups, else GroupNorm removes every mean
UNET_WIDTHS = (64, 64, 64, 64)
NUM_HEADS = 8
TEXT_WIDTH = 32
SCALE_FACTOR = 0.18215


def new_vae() -> Any:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=VAE_WIDTHS,
        layers_per_block=2,
        latent_channels=4,
        sample_size=drawing.RESOLUTION_PX,
    )
    start_as_identity(vae)
    return vae


@torch.no_grad()
def start_as_identity(vae: Any) -> None:
    """Let colours pass from the start: residual branches at zero, resampling that only averages or repeats, no noise.

    GroupNorm over two channels removes a flat picture's colour; a random start loses its first thousand steps.
    """
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            nn.init.zeros_(module.weight)
        elif name.endswith("downsamplers.0.conv"):
            nn.init.dirac_(module.weight)
            module.weight.copy_(module.weight.amax(dim=(2, 3), keepdim=True) / 9)
        elif name.endswith("upsamplers.0.conv"):
            nn.init.dirac_(module.weight)
    nn.init.dirac_(vae.quant_conv.weight)
    nn.init.dirac_(vae.post_quant_conv.weight)
    nn.init.constant_(vae.quant_conv.bias[4:], -6.0)


def new_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=UNET_WIDTHS,
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=NUM_HEADS,  # diffusers' name for the number of heads
    )


def new_text_config() -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=TEXT_WIDTH,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )


def new_text_encoder() -> Any:
    from transformers import CLIPTextModel

    return CLIPTextModel(new_text_config())


def start_as_zero(unet: Any) -> None:
    """Zero what ends a residual branch, as the original implementation does."""
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "proj_out", "conv_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
