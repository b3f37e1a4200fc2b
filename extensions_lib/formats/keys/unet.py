"""UNet names: diffusers <-> single-file checkpoint (without the `model.diffusion_model.` prefix)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from .table import RenameTable, Row

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}

_FIXED = (
    Row("conv_in", "input_blocks.0.0"),
    Row("time_embedding.linear_1", "time_embed.0"),
    Row("time_embedding.linear_2", "time_embed.2"),
    Row("add_embedding.linear_1", "label_emb.0.0"),
    Row("add_embedding.linear_2", "label_emb.0.2"),
    Row("mid_block.resnets.0", "middle_block.0", _RESNET),
    Row("mid_block.attentions.0", "middle_block.1"),
    Row("mid_block.resnets.1", "middle_block.2", _RESNET),
    Row("conv_norm_out", "out.0"),
    Row("conv_out", "out.2"),
)


@dataclass(frozen=True)
class UNetLayout:
    """What the numbering of a UNet's blocks depends on.

    `layers_per_block` is diffusers' setting of that name (down blocks; up blocks have one more). `up_attention` has one
    flag per up block, in diffusers' order (coarsest first): whether it holds attentions.
    """

    layers_per_block: int
    up_attention: tuple[bool, ...]


SD1_LAYOUT = UNetLayout(2, (False, True, True, True))  # SD2 is numbered alike
SDXL_LAYOUT = UNetLayout(2, (True, True, False))


def unet_to_ldm(name: str, layout: UNetLayout) -> str:
    """'down_blocks.0.resnets.1.conv1.weight' -> 'input_blocks.2.0.in_layers.2.weight'. Tensor and module names.

    Raises KeyMismatchError for a name that a UNet of this layout does not have.
    """
    return _tables(layout)[0].rename(name)


def unet_from_ldm(name: str, layout: UNetLayout) -> str:
    """The exact inverse of `unet_to_ldm`. Raises KeyMismatchError for an unknown name."""
    return _tables(layout)[1].rename(name)


@lru_cache(maxsize=16)
def _tables(layout: UNetLayout) -> tuple[RenameTable, RenameTable]:
    forward = RenameTable("UNet, diffusers names", (*_FIXED, *_down_rows(layout), *_up_rows(layout)))
    return forward, forward.inverse("UNet, checkpoint names")


def _down_rows(layout: UNetLayout) -> Iterator[Row]:
    """Down block i: L layers then a downsampler, numbered after conv_in, which is input block 0."""
    layers = layout.layers_per_block
    num_blocks = len(layout.up_attention)
    for i in range(num_blocks):
        first = (layers + 1) * i + 1
        for j in range(layers):
            yield Row(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{first + j}.0", _RESNET)
            yield Row(f"down_blocks.{i}.attentions.{j}", f"input_blocks.{first + j}.1")
        if i < num_blocks - 1:
            yield Row(f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{first + layers}.0.op")


def _up_rows(layout: UNetLayout) -> Iterator[Row]:
    """Up block i: L + 1 layers; the upsampler is the last member of the block's last layer."""
    layers = layout.layers_per_block
    for i, has_attention in enumerate(layout.up_attention):
        first = (layers + 1) * i
        for j in range(layers + 1):
            yield Row(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{first + j}.0", _RESNET)
            if has_attention:
                yield Row(f"up_blocks.{i}.attentions.{j}", f"output_blocks.{first + j}.1")
        if i < len(layout.up_attention) - 1:
            slot = 2 if has_attention else 1
            yield Row(f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{first + layers}.{slot}.conv")
