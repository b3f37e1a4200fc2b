"""Smooth add: a difference without its lone peaks."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

_SIGMA = 1.0
_RADIUS = 4  # of the gaussian, in sigmas
_SLAB_NUMBERS = 1 << 22  # neighbourhoods are gathered for this many numbers at a time


def smooth_add(model_a: Tensor, model_b: Tensor, model_c: Tensor, alpha: float) -> Tensor:
    """A + alpha S(B - C), where S is `smoothed`: takes over broad changes and leaves single outliers behind.

    Equal shapes, float32. `alpha` usual 0 to 1. Neighbours are the neighbouring entries of the tensor, whatever they
    stand for. Source: the formula of SuperMerger's smoothAdd (2023).
    """
    return torch.add(model_a, smoothed(model_b - model_c), alpha=alpha) if alpha else model_a


def smoothed(tensor: Tensor) -> Tensor:
    """The median of each entry's neighbourhood (3 wide along every axis), then a gaussian of sigma 1 along every axis.

    Any shape, float32; at the borders the tensor is mirrored, its last entry repeated. The same as scipy's
    `median_filter(size=3)` and `gaussian_filter(sigma=1)`.
    """
    if not tensor.ndim or not tensor.numel():
        return tensor
    result = _median(tensor)
    for axis in range(tensor.ndim):
        result = _gaussian(result, axis)
    return result


def _median(tensor: Tensor) -> Tensor:
    """In slabs along the first axis, because 3^axes copies are compared."""
    rows_at_once = max(1, _SLAB_NUMBERS // (3**tensor.ndim * max(tensor[0].numel(), 1)))
    result = torch.empty_like(tensor)
    for begin in range(0, tensor.shape[0], rows_at_once):
        rows = torch.arange(begin, min(begin + rows_at_once, tensor.shape[0]))
        result[begin : begin + len(rows)] = _median_of_rows(tensor, rows)
    return result


def _median_of_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    neighbours = []
    for steps in itertools.product((-1, 0, 1), repeat=tensor.ndim):
        shifted = tensor.index_select(0, _mirrored(rows + steps[0], tensor.shape[0]))
        for axis, step in enumerate(steps[1:], start=1):
            if step:
                size = tensor.shape[axis]
                shifted = shifted.index_select(axis, _mirrored(torch.arange(size) + step, size))
        neighbours.append(shifted)
    return torch.stack(neighbours).median(dim=0).values


def _gaussian(tensor: Tensor, axis: int) -> Tensor:
    size = tensor.shape[axis]
    weights = [math.exp(-0.5 * (step / _SIGMA) ** 2) for step in range(-_RADIUS, _RADIUS + 1)]
    total = sum(weights)
    result = torch.zeros_like(tensor)
    for step, weight in enumerate(weights, start=-_RADIUS):
        shifted = tensor.index_select(axis, _mirrored(torch.arange(size) + step, size))
        result.add_(shifted, alpha=weight / total)
    return result


def _mirrored(places: Tensor, size: int) -> Tensor:
    """Places outside 0 to size - 1 are counted back from the border: -1 -> 0, size -> size - 1."""
    places = places % (2 * size)
    return torch.where(places < size, places, 2 * size - 1 - places)
