"""Every merge formula by name: what it needs of one tensor's models, and the function that computes it.

`config.merge.FORMULAS` says the same names without torch: titles, numbers of models, settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from . import differences, methods, smoothing


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """The numbers of one merge for one tensor.

    `weights` and `seeds` have one entry for each model after A. `similarity_range` is measured over the whole model.
    """

    alpha: float
    beta: float = 0.0
    weights: tuple[float, ...] = ()
    density: float = 1.0
    epsilon: float = 0.0
    top: float = 0.0
    seeds: tuple[int, ...] = ()
    similarity_range: tuple[float, float] = (0.0, 1.0)


Merge = Callable[[Sequence[Tensor], Ratios], Tensor]
Similarities = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class MergeMethod:
    """`merge` takes float32 tensors of one shape, A first, and gives the merged one.

    `elementwise`: each number of the result depends on the numbers at its place only, so tensors may be cut in pieces.
    `similarities`, where there is one, must be gathered from A and B over the whole model beforehand.
    """

    merge: Merge
    elementwise: bool = False
    similarities: Similarities | None = None


def _of_differences(merged: Merge) -> MergeMethod:
    """A + alpha D, where `merged` makes D from what each model after A changed in it."""

    def merge(models: Sequence[Tensor], ratios: Ratios) -> Tensor:
        model_a, *others = models
        if not ratios.alpha:
            return model_a
        difference = merged([model - model_a for model in others], ratios)
        return model_a.add(difference, alpha=ratios.alpha)

    return MergeMethod(merge)


def _cosine(similarities: Similarities) -> MergeMethod:
    def merge(models: Sequence[Tensor], ratios: Ratios) -> Tensor:
        return methods.cosine_merge(*models, similarities(*models), ratios.alpha, ratios.similarity_range)

    return MergeMethod(merge, similarities=similarities)


METHODS: dict[str, MergeMethod] = {
    "weighted_sum": MergeMethod(lambda models, r: methods.weighted_sum(models, r.weights), True),
    "add_difference": MergeMethod(lambda models, r: methods.add_difference(*models, r.alpha), True),
    "triple_sum": MergeMethod(lambda models, r: methods.triple_sum(*models, r.alpha, r.beta), True),
    "sum_twice": MergeMethod(lambda models, r: methods.sum_twice(*models, r.alpha, r.beta), True),
    "train_difference": MergeMethod(lambda models, r: methods.train_difference(*models, r.alpha), True),
    "smooth_add": MergeMethod(lambda models, r: smoothing.smooth_add(*models, r.alpha)),
    "cosine_a": _cosine(methods.cosine_similarities_a),
    "cosine_b": _cosine(methods.cosine_similarities_b),
    "slerp": MergeMethod(lambda models, r: methods.slerp(*models, r.alpha)),
    "ties": _of_differences(lambda deltas, r: differences.ties(deltas, r.weights, r.density)),
    "dare": _of_differences(lambda deltas, r: differences.dare(deltas, r.weights, r.density, r.seeds)),
    "della": _of_differences(lambda deltas, r: differences.della(deltas, r.weights, r.density, r.epsilon, r.seeds)),
    "breadcrumbs": _of_differences(lambda deltas, r: differences.breadcrumbs(deltas, r.weights, r.density, r.top)),
    "model_stock": _of_differences(lambda deltas, r: differences.model_stock(deltas)),
}
