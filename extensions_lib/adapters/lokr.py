"""LoKr: the change of a weight is the Kronecker product of a small and a large matrix.

Letters: O = o1 * o2 outputs, I = i1 * i2 input width or channels, kh kw kernel, R rank.
Source: Yeh et al. 2023, "Navigating Text-To-Image Customization" (LyCORIS), section 3; layout as the WebUI reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from .linear import kaiming_uniform
from .weight import NO_DROPOUT, Dropouts, Shapes, WeightAdapter, applied

FACTORS = ("w1", "w2", "w2_a", "w2_b")


class LokrAdapter(WeightAdapter):
    """Changes the weight by `kron(w1, w2)`, where `w2` is whole or `alpha / R * (w2_a @ w2_b)`.

    `w1` is (o1, i1), `w2` (o2, i2) or (o2, i2, kh, kw); its factors are (o2, R) and (R, i2 * kh * kw). A whole `w2` has
    no rank, and alpha then counts for nothing: the WebUI reads such files so. `w2` or `w2_b` starts at zero.
    """

    suffixes: ClassVar[Mapping[str, str]] = {name: f"lokr_{name}" for name in FACTORS}
    starting_at_zero = ("w2", "w2_b")

    def __init__(
        self,
        layer: nn.Module,
        rank: int,
        alpha: float,
        generator: torch.Generator,
        dropouts: Dropouts = NO_DROPOUT,
        factor: int = -1,
        is_whole: bool = False,
    ) -> None:
        super().__init__()
        self.weight_shape = tuple(layer.weight.shape)
        shapes = lokr_shapes(self.weight_shape, rank, factor, is_whole)
        for name in FACTORS:
            self.register_parameter(name, self._start(name, shapes.get(name), generator))
        self.alpha = alpha
        self.dropouts = dropouts

    def _start(self, name: str, shape: tuple[int, ...] | None, generator: torch.Generator) -> nn.Parameter | None:
        if shape is None:
            return None
        starts_at_zero = name in self.starting_at_zero
        return nn.Parameter(torch.zeros(shape) if starts_at_zero else kaiming_uniform(shape, generator))

    @property
    def rank(self) -> int:
        """R, or 0 when the second matrix is whole."""
        return 0 if self.w2_b is None else self.w2_b.shape[0]

    def fitted(self, name: str, tensor: Tensor) -> Tensor:
        """Files may hold a large matrix of a convolution with or without its kernel's axes."""
        if name == "w2":
            return tensor.reshape(self._second_shape()).clone()
        return tensor.flatten(1).clone()

    def delta(self) -> Tensor:
        """The Kronecker product, of the shape of the layer's weight."""
        return torch.kron(self.w1, self._second().flatten(1)).reshape(self.weight_shape)

    def addition(self, layer: nn.Module, inputs: Tensor, strength: float) -> Tensor:
        """`w2` on each of the i1 parts of the input, then `w1` between the parts: no weight-sized tensor."""
        first = (self.w1 * strength).to(inputs.dtype)
        second = self._second(masked=True).to(inputs.dtype)
        parts = first.shape[1]
        if isinstance(layer, nn.Conv2d):
            split = inputs.reshape(inputs.shape[0] * parts, -1, *inputs.shape[2:])
            hidden = applied(layer, split, second)
            mixed = first @ hidden.reshape(inputs.shape[0], parts, -1)
            return mixed.reshape(inputs.shape[0], -1, *hidden.shape[2:])
        hidden = applied(layer, inputs.unflatten(-1, (parts, -1)), second)
        return (first @ hidden).flatten(-2)

    def _second(self, masked: bool = False) -> Tensor:
        """The large matrix with its scale; `masked`: with directions, or rows of a whole one, dropped."""
        shape = self._second_shape()
        if self.w2 is not None:
            mask = self.rank_mask((shape[0], *(1 for _ in shape[1:])), self.w2) if masked else None
            return self.w2 if mask is None else self.w2 * mask
        mask = self.rank_mask((1, self.rank), self.w2_a) if masked else None
        return ((self.w2_a if mask is None else self.w2_a * mask) @ self.w2_b).reshape(shape) * self.scaling

    def _second_shape(self) -> tuple[int, ...]:
        """(o2, i2) or (o2, i2, kh, kw), by what `w1` leaves."""
        outputs, inputs, *kernel = self.weight_shape
        return (outputs // self.w1.shape[0], inputs // self.w1.shape[1], *kernel)


def lokr_shapes(weight_shape: tuple[int, ...], rank: int, factor: int = -1, is_whole: bool = False) -> Shapes:
    """Shapes of the matrices for a layer of weight (O, I) or (O, I, kh, kw).

    The large matrix is kept whole when asked, and when R is at least half of its longer side.
    """
    outputs, inputs, *kernel = weight_shape
    (o1, o2), (i1, i2) = factorised(outputs, factor), factorised(inputs, factor)
    if is_whole or 2 * rank >= max(o2, i2):
        return {"w1": (o1, i1), "w2": (o2, i2, *kernel)}
    return {"w1": (o1, i1), "w2_a": (o2, rank), "w2_b": (rank, i2 * math.prod(kernel))}


def factorised(number: int, factor: int) -> tuple[int, int]:
    """`number` >= 1 as the product of a smaller and a larger number, the smaller one `factor` when that divides it.

    Else it is the largest divisor that is at most `factor` and at most the root; a `factor` of -1 is no limit. As
    LyCORIS and peft do it: 640 and 8 give (8, 80), 250 and 16 give (10, 25), 250 and -1 give (10, 25).
    """
    if factor > 0 and number % factor == 0:
        small = min(factor, number // factor)
    else:
        limit = math.isqrt(number) if factor < 0 else min(factor, math.isqrt(number))
        small = next(divisor for divisor in range(max(limit, 1), 0, -1) if number % divisor == 0)
    return small, number // small
