"""Where the layers that LoRA files name lie in a checkpoint, by names alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ..errors import KeyMismatchError
from ..formats.keys import (
    SD1_LAYOUT,
    SDXL_LAYOUT,
    layer_module,
    lora_layer_name,
    open_clip_from_ldm,
    open_clip_name,
    text_from_ldm,
    unet_from_ldm,
    unet_to_ldm,
)
from ..models.family import FAMILIES, TextEncoderKind
from ..models.ldm import part_prefix
from ..models.sizes import layout_of_shapes, part_shapes
from .models import Model

_NUM_JOINED = 3  # query, key and value of OpenCLIP, one below the other
_WEIGHT, _BIAS = ".weight", ".bias"


@dataclass(frozen=True)
class Place:
    """A layer's weight and bias by their names in a checkpoint; `bias` None where it has none.

    `shape` is that of the layer's own weight. Where `third` is a number, the checkpoint's tensors hold three layers one
    below the other, of which this is 0, 1 or 2; where `is_transposed`, the checkpoint has the weight's transpose.
    `has_factors`: a linear layer or convolution in use, which the WebUI changes by the factors of a LoRA.
    """

    layer: str
    weight: str
    bias: str | None
    shape: tuple[int, ...]
    third: int | None = None
    is_transposed: bool = False
    has_factors: bool = False

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """The part of the checkpoint's weight or bias that is this layer's, as the layer has it; a view."""
        own = tensor if self.third is None else tensor.chunk(_NUM_JOINED)[self.third]
        return own.T if self.is_transposed else own


def layer_places(model: Model) -> dict[str, Place]:
    """{layer name in a LoRA file, as the WebUI finds it: where it is}; see `formats.keys.canonical_layer` for others.

    Raises KeyMismatchError for a UNet whose blocks follow no known pattern, or tensors that the family's networks do
    not have.
    """
    family = FAMILIES[model.family]
    found = list(_unet_places(model))
    for kind in family.text_encoders:
        if any(name.startswith(kind.prefix) for name in model.infos):
            found += _text_places(model, kind)
    return {place.layer: place for place in found}


def _unet_places(model: Model) -> Iterator[Place]:
    shapes = part_shapes(model.infos, "unet", FAMILIES[model.family])
    layout = layout_of_shapes(shapes)
    prefix = part_prefix("unet", FAMILIES[model.family])
    for bare, shape in shapes.items():
        if bare.endswith(_WEIGHT):
            module = unet_from_ldm(bare, layout).removesuffix(_WEIGHT)
            yield _place(model, lora_layer_name(module, "unet", model.family), prefix + bare, shape)


def _text_places(model: Model, kind: TextEncoderKind) -> Iterator[Place]:
    shapes = part_shapes(model.infos, kind.part, FAMILIES[model.family])
    num_layers = 1 + max((int(n) for name in shapes for n in re.findall(r"resblocks\.(\d+)\.", name)), default=0)
    for bare, shape in shapes.items():
        for third, (name, own) in enumerate(_own_names(kind, bare, shape, num_layers)):
            if not name.endswith(_WEIGHT):
                continue
            layer = lora_layer_name(name.removesuffix(_WEIGHT), kind.part, model.family)
            place = _place(model, layer, kind.prefix + bare, own)
            is_table = "_embedding" in name or name.startswith("text_projection")
            is_unused = bool(re.search(rf"\.layers\.{num_layers - 1}\.", name)) and kind.num_unused_layers > 0
            place = replace(place, has_factors=place.has_factors and not (is_table or is_unused))
            if ".attn.in_proj_" in bare:
                place = replace(place, third=third)
            yield replace(place, is_transposed=bare == "text_projection")


def _own_names(
    kind: TextEncoderKind, bare: str, shape: tuple[int, ...], num_layers: int
) -> list[tuple[str, tuple[int, ...]]]:
    """Hugging Face's name and shape of a tensor; three of OpenCLIP's joined ones, none of what is no weight."""
    try:
        if kind.layout == "open_clip":
            tensors = open_clip_from_ldm({bare: torch.empty(shape, device="meta")}, num_layers)
            return [(name, tuple(tensor.shape)) for name, tensor in tensors.items()]
        return [(text_from_ldm(bare), shape)]
    except KeyMismatchError:
        return []


def _place(model: Model, layer: str, weight: str, shape: tuple[int, ...]) -> Place:
    bias = re.sub(r"weight$", "bias", weight)
    has_bias = bias != weight and bias in model.infos
    return Place(layer, weight, bias if has_bias else None, shape, has_factors=len(shape) > 1)


def tensor_of_layer(layer: str, family_name: str) -> str:
    """The name that the weight of a LoRA's layer has in checkpoints of the family.

    Raises KeyMismatchError for a name of no layer.
    """
    part, path = layer_module(layer, family_name)
    family, name = FAMILIES[family_name], f"{path}{_WEIGHT}"
    if part == "unet":
        return part_prefix("unet", family) + unet_to_ldm(name, SDXL_LAYOUT if family_name == "sdxl" else SD1_LAYOUT)
    kind = family.text_encoder(part)
    return kind.prefix + (open_clip_name(name) if kind.layout == "open_clip" else name)
