"""Sums over whole tensors, in double precision, with the same result for any number of threads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Torch splits one long sum among its threads, but not several sums of this length.
_RUN = 16_384


def scalar_product(first: Tensor, second: Tensor) -> float:
    """The sum of the products of two tensors of one shape, which are float32."""
    return sum(_run_sums(first, second))


def norm(tensor: Tensor) -> float:
    """The Euclidean length of a float32 tensor."""
    return math.sqrt(scalar_product(tensor, tensor))


def _run_sums(first: Tensor, second: Tensor) -> list[float]:
    first, second = first.reshape(-1), second.reshape(-1)
    whole = first.numel() // _RUN * _RUN
    sums: list[float] = []
    for begin in range(0, whole, _RUN * 64):
        rows = slice(begin, min(begin + _RUN * 64, whole))
        products = first[rows].view(-1, _RUN).double() * second[rows].view(-1, _RUN).double()
        sums += products.sum(dim=1).tolist()
    rest = torch.dot(first[whole:].double(), second[whole:].double())
    return [*sums, float(rest)]
