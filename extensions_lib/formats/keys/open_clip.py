"""Text encoders of OpenCLIP: Hugging Face's names and shapes <-> those of a checkpoint, without the prefix.

OpenCLIP keeps query, key and value of a layer in one matrix (3 D, D), and multiplies by its projection from the right
where Hugging Face multiplies by the transposed one. D is the width of the text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from .table import RenameTable, Row

_PROJECTION = "text_projection.weight"
_OPEN_CLIP_PROJECTION = "text_projection"
_MAX_LAYERS = 64
_JOINED = ("q_proj", "k_proj", "v_proj")
_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_FIXED = (
    Row("text_model.embeddings.token_embedding", "token_embedding"),
    Row("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    Row("text_model.final_layer_norm", "ln_final"),
)


def open_clip_to_ldm(tensors: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """The tensors of a CLIPTextModel, with or without projection, as OpenCLIP names and shapes them.

    Raises KeyMismatchError for a name that such a model of `num_layers` layers does not have.
    """
    table = _tables(num_layers)[0]
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == _PROJECTION:
            found[_OPEN_CLIP_PROJECTION] = tensor.T.contiguous()
        elif ".self_attn.q_proj." in name:
            joined = [tensors[name.replace("q_proj", each)] for each in _JOINED]
            found[_joined_name(name)] = torch.cat(joined)
        elif not name.split(".")[-2].startswith(_JOINED):
            found[table.rename(name)] = tensor
    return found


def open_clip_from_ldm(tensors: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """The exact inverse of `open_clip_to_ldm`. Raises KeyMismatchError for an unknown name."""
    table = _tables(num_layers)[1]
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == _OPEN_CLIP_PROJECTION:
            found[_PROJECTION] = tensor.T.contiguous()
        elif ".attn.in_proj_" in name:
            for part, third in zip(_JOINED, tensor.chunk(3), strict=True):
                found[_split_name(name, part)] = third
        else:
            found[table.rename(name)] = tensor
    return found


def open_clip_name(name: str) -> str:
    """The tensor of a checkpoint that holds a CLIPTextModel's; a third of it for query, key and value.

    Raises KeyMismatchError for an unknown name.
    """
    is_joined = any(f".self_attn.{part}." in name for part in _JOINED)
    return _joined_name(name) if is_joined else _tables(_MAX_LAYERS)[0].rename(name)


def _joined_name(name: str) -> str:
    """'text_model.encoder.layers.3.self_attn.q_proj.bias' -> 'transformer.resblocks.3.attn.in_proj_bias'."""
    number, kind = name.split(".")[3], name.split(".")[-1]
    return f"transformer.resblocks.{number}.attn.in_proj_{kind}"


def _split_name(name: str, part: str) -> str:
    number, kind = name.split(".")[2], name.rsplit("_", 1)[1]
    return f"text_model.encoder.layers.{number}.self_attn.{part}.{kind}"


@lru_cache(maxsize=8)
def _tables(num_layers: int) -> tuple[RenameTable, RenameTable]:
    layers = tuple(
        Row(f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}", _LAYER) for i in range(num_layers)
    )
    forward = RenameTable("OpenCLIP text encoder, Hugging Face names", (*_FIXED, *layers))
    return forward, forward.inverse("OpenCLIP text encoder, checkpoint names")
