"""What a whole model has learnt, as a LoRA: the nearest one of a rank to the difference from its base."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..adapters.copies import ParameterCopies
from ..adapters.low_rank import low_rank_factors
from ..formats.network import LayerChange, lora_change
from ..models.bundle import ModelBundle
from .layer_choice import LayerChoice, choose_layers

SEED = 0  # of the random projections: the same model gives the same file


@dataclass(frozen=True)
class Difference:
    """The layers of a LoRA, and how much it leaves out.

    `error` is the length of what the LoRA lacks as a share of the length of the whole difference, biases and norm
    layers included: 0 is all of it.
    """

    layers: tuple[LayerChange, ...]
    error: float


@torch.no_grad()
def low_rank_difference(bundle: ModelBundle, copies: ParameterCopies, rank: int) -> Difference:
    """The difference of `copies` from what they started from, in every linear layer and convolution of the blocks."""
    chosen = choose_layers(bundle, LayerChoice("full", has_text_encoders="text_encoder" in copies.parts))
    generator = torch.Generator().manual_seed(SEED)
    whole = sum(_length(copies, part) for part in copies.parts)
    layers, explained = [], 0.0
    pairs = {part: (copies.of(part), copies.originals(part)) for part in copies.parts}
    for name, layer in chosen.items():
        trained, originals = pairs[layer.part]
        weight = trained[f"{layer.path}.weight"].float()
        change = weight - originals[f"{layer.path}.weight"].to(weight)
        up, down = low_rank_factors(change.flatten(1), rank, generator)
        explained += _squared(change) - _squared(change.flatten(1) - up @ down)
        layers.append(lora_change(name, up, down, tuple(change.shape)))
    return Difference(tuple(layers), max(1 - explained / whole, 0.0) ** 0.5 if whole else 0.0)


def _length(copies: ParameterCopies, part: str) -> float:
    originals = copies.originals(part)
    pairs = ((copy, originals[name].to(copy.device)) for name, copy in copies.of(part).items())
    return sum(_squared(copy.float() - original.float()) for copy, original in pairs)


def _squared(tensor: torch.Tensor) -> float:
    return float(tensor.double().square().sum())
