"""Which adapter a layer gets, of which rank and alpha, and whether a file's layer can be gone on from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..adapters.dora import DoraAdapter, dora_shapes
from ..adapters.full import FullAdapter, NormAdapter, full_shapes, norm_shapes
from ..adapters.linear import LoraAdapter, lora_shapes
from ..adapters.loha import LohaAdapter, loha_shapes
from ..adapters.lokr import LokrAdapter, lokr_shapes
from ..adapters.weight import NO_DROPOUT, Dropouts, Shapes, WeightAdapter
from ..config.blocks import value_for
from ..errors import KeyMismatchError
from ..formats.network import LayerChange
from .layer_choice import ChosenLayer

BlockValues = tuple[tuple[str, float], ...]

# Algorithm -> its adapter, and what `formats.network` calls it.
_WITH_RANK = {"lora": (LoraAdapter, lora_shapes), "loha": (LohaAdapter, loha_shapes)}
_NAMES = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr", "full": "full difference"}
_SUFFIXES = {
    "LoRA": LoraAdapter.suffixes,
    "LoHa": LohaAdapter.suffixes,
    "LoKr": LokrAdapter.suffixes,
    "full difference": FullAdapter.suffixes,
    "norm difference": NormAdapter.suffixes,
}


@dataclass(frozen=True)
class AdapterRecipe:
    """How the adapter of a layer is made.

    `algorithm` is 'lora', 'loha', 'lokr' or 'full'; 'full' and norm layers have no rank. Convolutions of more than one
    pixel get `conv_rank` and `conv_alpha`, or `rank` and `alpha` when `conv_rank` is 0. `block_ranks` are the pairs of
    `config.blocks`. An alpha of 0 is the rank.
    """

    algorithm: str
    rank: int
    alpha: float
    conv_rank: int
    conv_alpha: float
    dora: bool = False
    lokr_factor: int = -1
    lokr_whole: bool = False
    is_rank_stabilized: bool = False
    block_ranks: BlockValues = ()
    dropouts: Dropouts = NO_DROPOUT

    def rank_of(self, layer: ChosenLayer) -> int:
        """That of the first expression which fits, else by the size of the kernel; 0 leaves the layer out."""
        default = self.conv_rank if layer.is_large and self.conv_rank else self.rank
        return int(value_for(layer.path, self.block_ranks, default))

    def alpha_of(self, layer: ChosenLayer) -> float:
        """As it stands in the file: readers divide by the rank, so that rs-LoRA's 1 / sqrt(rank) is multiplied in."""
        rank = self.rank_of(layer)
        alpha = self.conv_alpha if layer.is_large and self.conv_rank else self.alpha
        return (alpha or float(rank)) * (math.sqrt(rank) if self.is_rank_stabilized else 1.0)

    def make(self, layer: ChosenLayer, generator: torch.Generator) -> WeightAdapter:
        """A fresh adapter: it changes nothing yet."""
        if layer.is_norm:
            return NormAdapter(layer.module, self.dropouts)
        if self.algorithm == "full":
            return FullAdapter(layer.module, layer.has_trainable_bias, self.dropouts)
        given = (layer.module, self.rank_of(layer), self.alpha_of(layer), generator, self.dropouts)
        if self.algorithm == "lokr":
            adapter: WeightAdapter = LokrAdapter(*given, self.lokr_factor, self.lokr_whole)
        else:
            adapter = _WITH_RANK[self.algorithm][0](*given)
        return DoraAdapter(layer.module, adapter) if self.dora else adapter

    def shapes(self, layer: ChosenLayer) -> Shapes:
        """The shapes of the parameters of `make`."""
        if layer.is_norm:
            return norm_shapes(layer.module)
        if self.algorithm == "full":
            return full_shapes(layer.module, layer.has_trainable_bias)
        shape, rank = tuple(layer.module.weight.shape), self.rank_of(layer)
        if self.algorithm == "lokr":
            shapes = lokr_shapes(shape, rank, self.lokr_factor, self.lokr_whole)
        else:
            shapes = _WITH_RANK[self.algorithm][1](shape, rank)
        return {**shapes, **dora_shapes(shape)} if self.dora else shapes

    def check_fits(self, change: LayerChange, layer: ChosenLayer, file_name: str) -> None:
        """Raises KeyMismatchError when the adapter of `layer` cannot go on from a file's `change`."""
        wanted = "norm difference" if layer.is_norm else _NAMES[self.algorithm]
        dora = ("dora_scale",) if self.dora and not layer.is_norm else ()
        suffixes = set(change.tensors) - {"alpha"}
        is_known = suffixes <= {*_SUFFIXES[wanted].values(), *dora} and suffixes >= set(dora)
        if change.algorithm != wanted or not is_known:
            raise KeyMismatchError(
                f"{file_name}: {change.name} is a {change.algorithm} of {_listed(suffixes)}; this job trains a {wanted}"
                f"{' with DoRA' if dora else ''}.",
                "Set algorithm and dora as they were for that file.",
            )
        if not change.fits(tuple(layer.module.weight.shape)):
            raise KeyMismatchError(
                f"{file_name}: {change.name} is for a weight of {change.flat_shape}; this model's is "
                f"{tuple(layer.module.weight.shape)}.",
                "Choose a file made for this kind of model.",
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
