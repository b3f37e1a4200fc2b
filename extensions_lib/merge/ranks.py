"""Factors of a matrix with as many directions as a criterion asks for. Letters: M N the matrix, K directions, R rank.

The criteria are those of sd-scripts' `resize_lora.py`, and 'energy'.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..adapters.low_rank import low_rank_factors
from ..formats.lora import LoraLayer

SEED = 0  # of the random projections: the same files give the same result
_ROUNDING = 1e-6  # a share is reached when no more than this is missing


@dataclass(frozen=True)
class RankChoice:
    """At most `rank` directions; `criterion` and `threshold` as in `config.networks`."""

    rank: int
    criterion: str = "rank"
    threshold: float = 0.0

    def count(self, sizes: Tensor) -> int:
        """How many of the singular values `sizes` (K,), largest first, are kept; one at least."""
        return max(1, min(self.rank, len(sizes), self._wanted(sizes.double())))

    def _wanted(self, sizes: Tensor) -> int:
        if self.criterion == "rank":
            return self.rank
        if not sizes.any():
            return 1
        if self.criterion == "ratio":
            return int((sizes >= sizes[0] / self.threshold).sum())
        parts = sizes if self.criterion == "cumulative" else sizes.square()
        share = self.threshold**2 if self.criterion == "frobenius" else self.threshold
        reached = parts.cumsum(0) / parts.sum() >= share - _ROUNDING
        return int(reached.int().argmax()) + 1


@dataclass(frozen=True)
class Reduced:
    """The written LoRA, the share of the difference that it leaves out (0 to 1), and the ranks of its layers."""

    path: Path
    error: float
    ranks: tuple[int, ...]


@dataclass
class Lengths:
    """How long a difference is, and what is left out of it, squared, summed over layers."""

    whole: float = 0.0
    missing: float = 0.0
    ranks: list[int] = field(default_factory=list)

    @property
    def error(self) -> float:
        """The length of what is left out as a share of the whole's (Frobenius norm); 0 is all of it."""
        return (self.missing / self.whole) ** 0.5 if self.whole else 0.0

    def count(self, whole: Tensor, missing: Tensor, rank: int = 0) -> None:
        """Add one layer; `rank` 0 for what gets no factors."""
        self.whole += float(whole.double().square().sum())
        self.missing += float(missing.double().square().sum())
        if rank:
            self.ranks.append(rank)


def factors_of(matrix: Tensor, choice: RankChoice) -> tuple[Tensor, Tensor]:
    """up (M, R) and down (R, N), float32, of the nearest matrix of a rank to `matrix` (M, N)."""
    if choice.criterion == "rank":
        return low_rank_factors(matrix, choice.rank, torch.Generator().manual_seed(SEED))
    return _cut(*torch.linalg.svd(matrix.float(), full_matrices=False), choice)


def factors_of_product(up: Tensor, down: Tensor, choice: RankChoice) -> tuple[Tensor, Tensor]:
    """The same of the matrix up (M, K) @ down (K, N), which is not made: K is small."""
    left, left_rest = torch.linalg.qr(up.float())
    right, right_rest = torch.linalg.qr(down.float().T)
    inner, sizes, outer = torch.linalg.svd(left_rest @ right_rest.T, full_matrices=False)
    return _cut(left @ inner, sizes, outer @ right.T, choice)


def lora_layer(up: Tensor, down: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> LoraLayer:
    """Factors (O, R), (R, F) for a weight of `shape`, rounded as they will be written; the alpha makes 1.0 right.

    A convolution's kernel goes with `down`.
    """
    rank, kernel = len(down), shape[2:]
    ones = [1] * len(kernel)
    down, up = down.reshape(rank, shape[1], *kernel).to(dtype), up.reshape(shape[0], rank, *ones).to(dtype)
    return LoraLayer(down, up, float(rank))


def _cut(left: Tensor, sizes: Tensor, right: Tensor, choice: RankChoice) -> tuple[Tensor, Tensor]:
    """Both factors carry the root of the singular values."""
    rank = choice.count(sizes)
    roots = sizes[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]
