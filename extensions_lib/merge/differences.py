"""Merging what fine-tunes changed: one pure function per formula. Differences in, difference out.

Every function takes the differences M_i - A of several models to their common base A (equal shapes, float32) and
returns the merged difference as a new tensor; the caller adds it to A. Zeros in, zeros out: where all models agree the
result is A. `weights` has one number per difference, usual 1. `density` is the share of entries kept, above 0 to 1.

The masks of the random methods are drawn with `seeds`, one per difference, by a generator on the CPU: the same seeds
give the same masks on every device, with any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ties(differences: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """Trim, elect a sign, and average what agrees with it.

    Of each difference the entries of largest size are kept (entries as large as the smallest kept stay too). At each
    place the sign of the weighted sum is elected, + at 0, and the weighted mean of the entries with that sign is taken;
    zeros count for neither. `weights` above 0. Source: Yadav et al. 2023, "TIES-Merging".
    """
    trimmed = [_largest(difference, density) for difference in differences]
    is_positive = _weighted_total(trimmed, weights) >= 0
    total, divisor = torch.zeros_like(trimmed[0]), torch.zeros_like(trimmed[0])
    for difference, weight in zip(trimmed, weights, strict=True):
        agrees = torch.where(is_positive, difference > 0, difference < 0)
        total += weight * difference * agrees
        divisor += weight * agrees
    return total / torch.where(divisor > 0, divisor, 1.0)


def dare(differences: Sequence[Tensor], weights: Sequence[float], density: float, seeds: Sequence[int]) -> Tensor:
    """sum w_i mask_i D_i / density: each entry is kept with probability `density` and enlarged to make up for the rest.

    Source: Yu et al. 2023, "Language Models are Super Mario" (drop and rescale).
    """
    kept = [
        difference * (_uniform(difference, seed) < density) / density
        for difference, seed in zip(differences, seeds, strict=True)
    ]
    return _weighted_total(kept, weights)


def della(
    differences: Sequence[Tensor], weights: Sequence[float], density: float, epsilon: float, seeds: Sequence[int]
) -> Tensor:
    """sum w_i mask_i D_i / p_i: as `dare`, with a higher probability p the larger an entry is.

    p goes evenly with the rank of |D|, from about density - epsilon / 2 to density + epsilon / 2, with mean `density`;
    these bounds must lie above 0 and at most at 1. Each kept entry is divided by its own p, so that the mean over all
    seeds is the difference itself. Source: Deep et al. 2024, "DELLA-Merging" (MAGPRUNE).
    """
    kept = []
    for difference, seed in zip(differences, seeds, strict=True):
        probability = keep_probabilities(difference, density, epsilon)
        kept.append(difference * (_uniform(difference, seed) < probability) / probability)
    return _weighted_total(kept, weights)


def keep_probabilities(difference: Tensor, density: float, epsilon: float) -> Tensor:
    """density + epsilon (r - (n + 1) / 2) / n for an entry whose size has rank r of n; equal sizes by place."""
    flat = difference.abs().reshape(-1)
    count = flat.numel()
    ranks = torch.empty_like(flat)
    ranks[flat.argsort(stable=True)] = torch.arange(1, count + 1, dtype=flat.dtype, device=flat.device)
    return (density + epsilon * (ranks - (count + 1) / 2) / max(count, 1)).reshape(difference.shape)


def breadcrumbs(differences: Sequence[Tensor], weights: Sequence[float], density: float, top: float) -> Tensor:
    """sum w_i mask_i D_i, where each mask drops the largest share `top` and the smallest, so that `density` is left.

    `top` 0 to 1; where density + top exceeds 1, less is dropped at the top. Equal sizes are ranked by place. Source:
    Davari and Belilovsky 2023, "Model Breadcrumbs".
    """
    return _weighted_total([_without_extremes(difference, density, top) for difference in differences], weights)


def model_stock(differences: Sequence[Tensor]) -> Tensor:
    """t mean(D) with t = n cos / (1 + (n - 1) cos): the less the n fine-tunes agree, the nearer to their base.

    cos is the mean cosine of all pairs, for each output (row of the first axis) by itself; a vector or number is one
    row. It is held between 0 and 1, and so is t. Needs two differences or more (ValueError). Source: Jang et al. 2024,
    "Model Stock".
    """
    count = len(differences)
    if count < 2:
        raise ValueError(f"model stock needs 2 models beside the base or more, got {count}")
    rows = [_rows(difference).double() for difference in differences]
    pairs = [(first, second) for i, first in enumerate(rows) for second in rows[i + 1 :]]
    cosines = [torch.nn.functional.cosine_similarity(first, second, dim=1, eps=1e-30) for first, second in pairs]
    cosine = (sum(cosines) / len(pairs)).clamp(0.0, 1.0)
    t = count * cosine / (1 + (count - 1) * cosine)
    mean = sum(rows) / count
    return (t[:, None] * mean).float().reshape(differences[0].shape)


def _weighted_total(differences: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(differences[0])
    for difference, weight in zip(differences, weights, strict=True):
        total.add_(difference, alpha=weight)
    return total


def _largest(difference: Tensor, density: float) -> Tensor:
    """Zeros instead of all but the largest share `density`, at least one entry."""
    count = difference.numel()
    num_kept = max(int(density * count + 0.5), 1)
    if num_kept >= count:
        return difference
    sizes = difference.abs()
    threshold = sizes.reshape(-1).kthvalue(count - num_kept + 1).values
    return difference * (sizes >= threshold)


def _without_extremes(difference: Tensor, density: float, top: float) -> Tensor:
    flat = difference.reshape(-1)
    count = flat.numel()
    num_kept = int(density * count + 0.5)
    num_top = min(int(top * count + 0.5), count - num_kept)
    order = flat.abs().argsort(stable=True)
    kept = order[count - num_top - num_kept : count - num_top]
    result = torch.zeros_like(flat)
    result[kept] = flat[kept]
    return result.reshape(difference.shape)


def _rows(difference: Tensor) -> Tensor:
    return difference.flatten(1) if difference.ndim > 1 else difference.reshape(1, -1)


def _uniform(difference: Tensor, seed: int) -> Tensor:
    """Numbers from 0 to below 1 in the shape of `difference`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(difference.shape, generator=generator).to(difference.device)
