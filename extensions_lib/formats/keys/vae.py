"""VAE names: diffusers <-> single-file checkpoint (without the `first_stage_model.` prefix).

A checkpoint writes the attention of the middle block as 1x1 convolutions (c, c, 1, 1), diffusers as matrices (c, c).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from torch import Tensor

from .table import RenameTable, Row

_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_ENCODER_LAYERS = 2
_DECODER_LAYERS = 3


def vae_to_ldm(name: str, num_levels: int = 4) -> str:
    """'decoder.up_blocks.0.resnets.0.conv1.weight' -> 'decoder.up.3.block.0.conv1.weight' (four levels).

    Raises KeyMismatchError for a name that such a VAE does not have.
    """
    return _tables(num_levels)[0].rename(name)


def vae_from_ldm(name: str, num_levels: int = 4) -> str:
    """The exact inverse of `vae_to_ldm`. Raises KeyMismatchError for an unknown name."""
    return _tables(num_levels)[1].rename(name)


def vae_tensors_to_ldm(tensors: Mapping[str, Tensor], num_levels: int = 4) -> dict[str, Tensor]:
    """Rename a diffusers VAE and give its four attention matrices the shape (c, c, 1, 1)."""
    renamed = {vae_to_ldm(name, num_levels): tensor for name, tensor in tensors.items()}
    return {name: _as_convolution(name, tensor) for name, tensor in renamed.items()}


def vae_tensors_from_ldm(tensors: Mapping[str, Tensor], num_levels: int = 4) -> dict[str, Tensor]:
    """Rename a checkpoint's VAE and give its four attention matrices the shape (c, c)."""
    return {vae_from_ldm(name, num_levels): _as_matrix(name, tensor) for name, tensor in tensors.items()}


def _is_attention_matrix(ldm_name: str) -> bool:
    return ".mid.attn_1." in ldm_name and ldm_name.endswith((".q.weight", ".k.weight", ".v.weight", ".proj_out.weight"))


def _as_convolution(ldm_name: str, tensor: Tensor) -> Tensor:
    return tensor[:, :, None, None] if _is_attention_matrix(ldm_name) and tensor.ndim == 2 else tensor


def _as_matrix(ldm_name: str, tensor: Tensor) -> Tensor:
    return tensor[:, :, 0, 0] if _is_attention_matrix(ldm_name) and tensor.ndim == 4 else tensor


@lru_cache(maxsize=8)
def _tables(num_levels: int) -> tuple[RenameTable, RenameTable]:
    forward = RenameTable("VAE, diffusers names", tuple(_rows(num_levels)))
    return forward, forward.inverse("VAE, checkpoint names")


def _rows(num_levels: int) -> Iterator[Row]:
    yield Row("quant_conv", "quant_conv")
    yield Row("post_quant_conv", "post_quant_conv")
    for side in ("encoder", "decoder"):
        yield Row(f"{side}.conv_in", f"{side}.conv_in")
        yield Row(f"{side}.conv_norm_out", f"{side}.norm_out")
        yield Row(f"{side}.conv_out", f"{side}.conv_out")
        yield Row(f"{side}.mid_block.resnets.0", f"{side}.mid.block_1", _RESNET)
        yield Row(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1", _ATTENTION)
        yield Row(f"{side}.mid_block.resnets.1", f"{side}.mid.block_2", _RESNET)
    yield from _level_rows(num_levels)


def _level_rows(num_levels: int) -> Iterator[Row]:
    """The encoder's levels keep their order, the decoder's are counted from the finest in a checkpoint."""
    for i in range(num_levels):
        up = num_levels - 1 - i
        for j in range(_ENCODER_LAYERS):
            yield Row(f"encoder.down_blocks.{i}.resnets.{j}", f"encoder.down.{i}.block.{j}", _RESNET)
        for j in range(_DECODER_LAYERS):
            yield Row(f"decoder.up_blocks.{i}.resnets.{j}", f"decoder.up.{up}.block.{j}", _RESNET)
        if i < num_levels - 1:
            yield Row(f"encoder.down_blocks.{i}.downsamplers.0.conv", f"encoder.down.{i}.downsample.conv")
            yield Row(f"decoder.up_blocks.{i}.upsamplers.0.conv", f"decoder.up.{up}.upsample.conv")
