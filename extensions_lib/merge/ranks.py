"""Factors of a matrix with as many directions as a criterion asks for. Letters: M N the matrix, K directions, R rank.

The criteria are those of sd-scripts' `resize_lora.py`, and 'energy'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.low_rank import low_rank_factors
from ..config.networks import LowRankConfig

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


def choice_of(config: LowRankConfig) -> RankChoice:
    """What the settings ask for."""
    return RankChoice(config.rank, config.criterion, config.threshold)


def rank_text(config: LowRankConfig) -> str:
    """The same in a few words, such as 'rank 8' or 'rank 64, energy 0.9'."""
    return f"rank {config.rank}" + ("" if config.criterion == "rank" else f", {config.criterion} {config.threshold:g}")


@dataclass
class Lengths:
    """How long a difference is, and what is left out of it, squared, summed over layers."""

    whole: float = 0.0
    missing: float = 0.0

    @property
    def error(self) -> float:
        """The length of what is left out as a share of the whole's (Frobenius norm); 0 is all of it."""
        return (self.missing / self.whole) ** 0.5 if self.whole else 0.0

    def count(self, whole: Tensor, missing: Tensor | None = None) -> None:
        """Add a tensor; `missing` None where nothing of it is left out."""
        self.whole += _squared_length(whole)
        self.missing += 0.0 if missing is None else _squared_length(missing)


def _squared_length(tensor: Tensor) -> float:
    """Row by row in float32, which is as exact as the numbers and many times faster than all of it in double."""
    rows = tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(1, -1)
    return float(rows.norm(dim=1).double().square().sum())


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


def _cut(left: Tensor, sizes: Tensor, right: Tensor, choice: RankChoice) -> tuple[Tensor, Tensor]:
    """Both factors carry the root of the singular values."""
    rank = choice.count(sizes)
    roots = sizes[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]
