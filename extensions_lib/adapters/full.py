"""Whole differences of weights, without factors: of linear layers and convolutions, and of norm layers.

Letters: O output, I input width or channels, kh kw kernel, C channels of a norm layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .weight import NO_DROPOUT, Dropouts, Shapes, WeightAdapter, applied


class FullAdapter(WeightAdapter):
    """Changes weight and bias by `diff`, of the weight's shape, and `diff_b` (O,); both start at zero.

    `diff_b` is None where the layer has no bias or `has_bias` is false.
    """

    suffixes: ClassVar[Mapping[str, str]] = {"diff": "diff", "diff_b": "diff_b"}
    factors = ("diff",)

    def __init__(self, layer: nn.Module, has_bias: bool, dropouts: Dropouts = NO_DROPOUT) -> None:
        super().__init__()
        shapes = full_shapes(layer, has_bias)
        self.diff = nn.Parameter(torch.zeros(shapes["diff"]))
        self.register_parameter("diff_b", nn.Parameter(torch.zeros(shapes["diff_b"])) if "diff_b" in shapes else None)
        self.dropouts = dropouts

    def fitted(self, name: str, tensor: Tensor) -> Tensor:
        """Files may hold the difference of a 1x1 convolution as a matrix."""
        return tensor.reshape(self.diff.shape if name == "diff" else self.diff.shape[:1]).clone()

    def delta(self) -> Tensor:
        """`diff`."""
        return self.diff * 1.0

    def addition(self, layer: nn.Module, inputs: Tensor, strength: float) -> Tensor:
        """The layer with the differences as its weight and bias."""
        bias = None if self.diff_b is None else self.diff_b.to(inputs.dtype)
        return applied(layer, inputs, self.diff.to(inputs.dtype), bias) * strength


class NormAdapter(WeightAdapter):
    """Changes weight and bias of a LayerNorm or GroupNorm by `weight` and `bias`, (C,) each; both start at zero."""

    suffixes: ClassVar[Mapping[str, str]] = {"weight": "w_norm", "bias": "b_norm"}
    factors = ("weight",)

    def __init__(self, layer: nn.Module, dropouts: Dropouts = NO_DROPOUT) -> None:
        super().__init__()
        shapes = norm_shapes(layer)
        self.weight, self.bias = (nn.Parameter(torch.zeros(shapes[name])) for name in ("weight", "bias"))
        self.dropouts = Dropouts(modules=dropouts.modules)

    def delta(self) -> Tensor:
        """`weight`."""
        return self.weight * 1.0

    def addition(self, layer: nn.Module, inputs: Tensor, strength: float) -> Tensor:
        """The normalised input with the differences as gain and offset."""
        weight, bias = self.weight.to(inputs.dtype), self.bias.to(inputs.dtype)
        if isinstance(layer, nn.GroupNorm):
            return functional.group_norm(inputs, layer.num_groups, weight, bias, layer.eps) * strength
        return functional.layer_norm(inputs, layer.normalized_shape, weight, bias, layer.eps) * strength


def full_shapes(layer: nn.Module, has_bias: bool) -> Shapes:
    """Shapes of the differences of a layer's weight and bias."""
    weight = tuple(layer.weight.shape)
    return {"diff": weight, "diff_b": weight[:1]} if has_bias and layer.bias is not None else {"diff": weight}


def norm_shapes(layer: nn.Module) -> Shapes:
    """Shapes of the differences of a norm layer's weight and bias."""
    return {"weight": tuple(layer.weight.shape), "bias": tuple(layer.weight.shape)}
