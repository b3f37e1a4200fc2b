"""Merging whole weights: one pure function per formula. Tensors in, tensor out.

Every function takes the same weight of several models (equal shapes, float32, any device) and returns the merged one as
a new tensor or one of its inputs; nothing is changed in place. `model_a` is where the result starts from: at a ratio of
0 it is `model_a` exactly, and where all models agree the result is `model_a`. Ratios outside 0 to 1 extrapolate.

Letters: O outputs, I inputs (with a convolution's kernel: I, k, k).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .sums import norm, scalar_product

# Full push where A is already far from B; the factor is that of the published recipe.
TRAIN_DIFFERENCE_GAIN = 1.8
# Above this |cosine| the arc between two tensors is a line to float precision, and sin(angle) is near 0.
PARALLEL_COSINE = 0.9995


def weighted_sum(models: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """(1 - sum w) A + sum w_i M_i: the mean of any number of models, of which A gets what the others leave.

    `models` is A and the others, `weights` one number for each of the others; usual 0 to 1. A weight of 0 leaves its
    model out, so that not even a NaN of it counts. Raises ValueError when the numbers do not match.
    """
    model_a, *others = models
    if len(others) != len(weights):
        raise ValueError(f"{len(weights)} weights for {len(others)} models after the first")
    used = [(model, weight) for model, weight in zip(others, weights, strict=True) if weight]
    if len(used) == 1:
        return torch.lerp(model_a, *used[0])
    total = model_a
    for model, weight in used:
        total = total + weight * (model - model_a)
    return total


def add_difference(model_a: Tensor, model_b: Tensor, model_c: Tensor, alpha: float) -> Tensor:
    """A + alpha (B - C): what B learned beyond C, put onto A. `alpha` usual 0 to 1. Source: the WebUI's own merger."""
    return torch.add(model_a, model_b - model_c, alpha=alpha) if alpha else model_a


def triple_sum(model_a: Tensor, model_b: Tensor, model_c: Tensor, alpha: float, beta: float) -> Tensor:
    """(1 - alpha - beta) A + alpha B + beta C; `alpha` + `beta` usual 0 to 1. Source: SuperMerger's documentation."""
    return weighted_sum((model_a, model_b, model_c), (alpha, beta))


def sum_twice(model_a: Tensor, model_b: Tensor, model_c: Tensor, alpha: float, beta: float) -> Tensor:
    """(1 - beta) ((1 - alpha) A + alpha B) + beta C; both 0 to 1. Source: SuperMerger's documentation."""
    return weighted_sum((weighted_sum((model_a, model_b), (alpha,)), model_c), (beta,))


def train_difference(model_a: Tensor, model_b: Tensor, model_c: Tensor, alpha: float) -> Tensor:
    """A + 1.8 alpha m (B - C) with m = |B - A| / (|B - A| + |B - C|), 0 where both are 0.

    Adds what B learned from C as if A had been trained on it: nothing where A is B already, most where it is far.
    `alpha` usual 0 to 1. Source: the formula of SuperMerger's trainDifference (2023).
    """
    if not alpha:
        return model_a
    difference = model_b - model_c
    distance = (model_b - model_a).abs()
    mask = torch.nan_to_num(distance / (distance + difference.abs()), nan=0.0)
    return torch.add(model_a, mask * difference, alpha=alpha * TRAIN_DIFFERENCE_GAIN)


def cosine_similarities_a(model_a: Tensor, model_b: Tensor) -> Tensor:
    """How alike the columns of two weights are, their lengths left out: (O, I...) -> (I...); -1 to 1.

    The mean of each column's cosine and of the cosine of all columns together, taken of columns scaled to length 1.
    """
    return cosine_similarities_b(_unit_columns(model_a), _unit_columns(model_b))


def cosine_similarities_b(model_a: Tensor, model_b: Tensor) -> Tensor:
    """How alike the columns of two weights are: (O, I...) -> (I...), a vector -> (); -1 to 1.

    The mean of each column's cosine (over O) and of the cosine of the whole tensors. Zeros are like nothing (0).
    """
    columns = torch.nn.functional.cosine_similarity(model_a, model_b, dim=0) if model_a.ndim else torch.tensor(0.0)
    lengths = norm(model_a) * norm(model_b)
    whole = scalar_product(model_a, model_b) / lengths if lengths else 0.0
    return (columns + whole) / 2


def cosine_merge(
    model_a: Tensor, model_b: Tensor, similarities: Tensor, alpha: float, similarity_range: tuple[float, float]
) -> Tensor:
    """k A + (1 - k) B with k = clip(s - alpha, 0, 1): where the models agree A stays, elsewhere B comes in.

    `similarities` (I...) from one of the functions above; s is them with `similarity_range` stretched to 0 to 1, where
    the range is that of the whole model (see `similarity_range`). `alpha` 0 to 1; at 1 the result is B. Source: the
    formula of SuperMerger's cosineA and cosineB (2023).
    """
    low, high = similarity_range
    stretched = (similarities - low) / (high - low) if high > low else torch.ones_like(similarities)
    return torch.lerp(model_b, model_a, (stretched - alpha).clamp(0.0, 1.0).expand_as(model_a))


def similarity_range(similarities: Tensor) -> tuple[float, float]:
    """Lowest and highest of all similarities (N,) of a model, the outermost 1 % at both ends left out."""
    if not similarities.numel():
        return 0.0, 1.0
    ordered = similarities.flatten().sort().values
    last = ordered.numel() - 1
    return float(ordered[math.ceil(0.01 * last)]), float(ordered[math.floor(0.99 * last)])


def slerp(model_a: Tensor, model_b: Tensor, alpha: float) -> Tensor:
    """Along the arc between two weights: direction and length go evenly from A to B. `alpha` 0 to 1.

    (sin((1 - alpha) w) a + sin(alpha w) b) / sin(w) times the mixed length, with a, b the whole tensors scaled to
    length 1 and w the angle between them; a straight line where they are parallel (|cos w| > 0.9995) or one is zero.
    Source: Shoemake 1985, "Animating Rotation with Quaternion Curves".
    """
    length_a, length_b = norm(model_a), norm(model_b)
    if alpha in (0, 1) or not length_a * length_b:
        return weighted_sum((model_a, model_b), (alpha,))
    cosine = scalar_product(model_a, model_b) / (length_a * length_b)
    if abs(cosine) > PARALLEL_COSINE:
        return weighted_sum((model_a, model_b), (alpha,))
    angle = math.acos(cosine)
    length = (1 - alpha) * length_a + alpha * length_b
    share_a = math.sin((1 - alpha) * angle) / math.sin(angle) * length / length_a
    share_b = math.sin(alpha * angle) / math.sin(angle) * length / length_b
    return share_a * model_a + share_b * model_b


def _unit_columns(model: Tensor) -> Tensor:
    return torch.nn.functional.normalize(model, dim=0) if model.ndim else model
