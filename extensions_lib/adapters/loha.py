"""LoHa: the change of a weight is the element-wise product of two low-rank matrices.

Letters: O output, I input width or channels, F = I * kh * kw, R rank.
Source: Hyeon-Woo et al. 2021, "FedPara"; layout and start values of LyCORIS, as the WebUI reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from .weight import NO_DROPOUT, Dropouts, Shapes, WeightAdapter, applied, rebuilt

FIRST_DEVIATION = 0.1  # of w1_a; w1_b and w2_b are drawn with 1


class LohaAdapter(WeightAdapter):
    """Changes the weight by `alpha / R * (w1_a @ w1_b) * (w2_a @ w2_b)`: rank R^2 at twice the size of a LoRA.

    `w1_a` and `w2_a` are (O, R), `w1_b` and `w2_b` (R, F); `w2_a` starts at zero, so the layer starts unchanged.
    """

    suffixes: ClassVar[Mapping[str, str]] = {name: f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
    starting_at_zero = ("w2_a",)

    def __init__(
        self,
        layer: nn.Module,
        rank: int,
        alpha: float,
        generator: torch.Generator,
        dropouts: Dropouts = NO_DROPOUT,
    ) -> None:
        super().__init__()
        self.weight_shape = tuple(layer.weight.shape)
        shapes = loha_shapes(self.weight_shape, rank)
        self.w1_a = nn.Parameter(torch.randn(shapes["w1_a"], generator=generator) * FIRST_DEVIATION)
        self.w1_b = nn.Parameter(torch.randn(shapes["w1_b"], generator=generator))
        self.w2_a = nn.Parameter(torch.zeros(shapes["w2_a"]))
        self.w2_b = nn.Parameter(torch.randn(shapes["w2_b"], generator=generator))
        self.alpha = alpha
        self.dropouts = dropouts

    @property
    def rank(self) -> int:
        """R."""
        return self.w1_b.shape[0]

    def fitted(self, name: str, tensor: Tensor) -> Tensor:
        """Files may hold `w1_b` and `w2_b` of a convolution with its kernel's axes."""
        return tensor.flatten(1).clone()

    def delta(self) -> Tensor:
        """The product, of the shape of the layer's weight."""
        return self._product(self.w1_a, self.w1_b, self.w2_a, self.w2_b)

    def addition(self, layer: nn.Module, inputs: Tensor, strength: float) -> Tensor:
        """The layer with the product as its weight, which is built again for the backward pass."""
        mask = self.rank_mask((1, self.rank), self.w1_a)

        def compute(inputs: Tensor, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
            weight = self._product(w1_a if mask is None else w1_a * mask, w1_b, w2_a, w2_b) * strength
            return applied(layer, inputs, weight.to(inputs.dtype))

        return rebuilt(compute, inputs, self.w1_a, self.w1_b, self.w2_a, self.w2_b)

    def _product(self, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
        return ((w1_a @ w1_b) * (w2_a @ w2_b)).reshape(self.weight_shape) * self.scaling


def loha_shapes(weight_shape: tuple[int, ...], rank: int) -> Shapes:
    """Shapes of the factors for a layer of weight (O, I) or (O, I, kh, kw)."""
    outputs, columns = weight_shape[0], math.prod(weight_shape[1:])
    return {"w1_a": (outputs, rank), "w1_b": (rank, columns), "w2_a": (outputs, rank), "w2_b": (rank, columns)}
