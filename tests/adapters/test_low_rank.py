"""The nearest matrix of a low rank, by the singular values in float64."""

from __future__ import annotations

import pytest
import torch

from extensions_lib.adapters.low_rank import low_rank_factors


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(7, 30), (160, 90), (96, 300)])
@pytest.mark.parametrize("rank", [1, 4, 1000])
def test_nothing_of_that_rank_is_nearer(shape: tuple[int, int], rank: int) -> None:
    matrix = torch.randn(shape, generator=generator()) * torch.linspace(1, 0.01, shape[1]) ** 2
    up, down = low_rank_factors(matrix, rank, generator())
    sizes = torch.linalg.svdvals(matrix.double())
    best = float(sizes[rank:].square().sum().sqrt())
    assert up.shape == (shape[0], min(rank, *shape)) and down.shape == (min(rank, *shape), shape[1])
    assert float((matrix - up @ down).norm()) <= best * 1.001 + 1e-4
    assert torch.equal(low_rank_factors(matrix, rank, generator())[0], up)
