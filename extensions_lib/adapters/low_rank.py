"""The nearest matrix of a low rank. Letters: M N the matrix, R rank."""

from __future__ import annotations

import torch
from torch import Tensor

OVERSAMPLING = 8  # further directions that are looked at and dropped
NUM_ITERATIONS = 4  # each sharpens the difference between kept and dropped directions


def low_rank_factors(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """up (M, R) and down (R, N), float32, whose product is nearest to `matrix` (M, N) among all of that rank.

    R is `rank`, or the smaller side of a smaller matrix. Both carry the root of the singular values. Large matrices are
    first projected onto a random subspace, drawn from `generator` (CPU), which is nearly as good.
    Source: Halko, Martinsson and Tropp 2011, "Finding Structure with Randomness", algorithms 4.4 and 5.1.
    """
    values = matrix.detach().float()
    rank = min(rank, *values.shape)
    width = rank + OVERSAMPLING
    if 2 * width < min(values.shape):
        start = torch.randn(values.shape[1], width, generator=generator).to(values.device)
        basis = torch.linalg.qr(values @ start)[0]
        for _ in range(NUM_ITERATIONS):
            basis = torch.linalg.qr(values @ torch.linalg.qr(values.T @ basis)[0])[0]
        left, sizes, right = torch.linalg.svd(basis.T @ values, full_matrices=False)
        left = basis @ left
    else:
        left, sizes, right = torch.linalg.svd(values, full_matrices=False)
    roots = sizes[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]
