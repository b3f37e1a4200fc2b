"""LoRA of linear layers and convolutions.

Letters: R rank, I input width or channels, O output width or channels.
Source: Hu et al. 2021, "LoRA", section 4.1; layout of the factors as the WebUI reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .weight import NO_DROPOUT, Dropouts, Shapes, WeightAdapter


class LoraAdapter(WeightAdapter):
    """Adds `alpha / R * up(down(x))` to a layer's output.

    `down` is (R, I) for a linear layer and (R, I, kh, kw) for a convolution, `up` is (O, R) or (O, R, 1, 1) and starts
    at zero, so the layer starts unchanged.
    """

    suffixes: ClassVar[Mapping[str, str]] = {"down": "lora_down.weight", "up": "lora_up.weight"}
    starting_at_zero = ("up",)

    def __init__(
        self,
        layer: nn.Module,
        rank: int,
        alpha: float,
        generator: torch.Generator,
        dropouts: Dropouts = NO_DROPOUT,
    ) -> None:
        super().__init__()
        shapes = lora_shapes(layer.weight.shape, rank)
        self.down = nn.Parameter(kaiming_uniform(shapes["down"], generator))
        self.up = nn.Parameter(torch.zeros(shapes["up"]))
        self.alpha = alpha
        self.dropouts = dropouts

    @property
    def rank(self) -> int:
        """R."""
        return self.down.shape[0]

    def fitted(self, name: str, tensor: Tensor) -> Tensor:
        """Files may hold the factors of a 1x1 convolution as matrices."""
        if name == "down":
            return tensor.reshape(-1, *self.down.shape[1:]).clone()
        return tensor.reshape(self.up.shape[0], -1, *self.up.shape[2:]).clone()

    def delta(self) -> Tensor:
        """alpha / R * up @ down."""
        product = self.up.flatten(1) @ self.down.flatten(1) * self.scaling
        return product.reshape(self.up.shape[0], *self.down.shape[1:])

    def norm(self) -> Tensor:
        """|U D|^2 = <U^T U, D D^T>: R x R numbers instead of a whole weight's."""
        up, down = self.up.flatten(1), self.down.flatten(1)
        return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt() * abs(self.scaling)

    def addition(self, layer: nn.Module, inputs: Tensor, strength: float) -> Tensor:
        """The low-rank term, without a weight-sized tensor."""
        scale = strength * self.scaling
        down, up = self.down.to(inputs.dtype), self.up.to(inputs.dtype)
        if isinstance(layer, nn.Conv2d):
            hidden = functional.conv2d(inputs, down, None, layer.stride, layer.padding, layer.dilation)
            return functional.conv2d(self._masked(hidden, 1), up) * scale
        return functional.linear(self._masked(functional.linear(inputs, down), -1), up) * scale

    def _masked(self, hidden: Tensor, axis: int) -> Tensor:
        """Each example drops its own directions, the same ones at all places."""
        shape = [hidden.shape[0] if hidden.ndim > 1 else 1, *(1 for _ in hidden.shape[1:])]
        shape[axis] = hidden.shape[axis]
        mask = self.rank_mask(tuple(shape), hidden)
        return hidden if mask is None else hidden * mask


def lora_shapes(weight_shape: tuple[int, ...], rank: int) -> Shapes:
    """Shapes of the factors for a layer of weight (O, I) or (O, I, kh, kw)."""
    outputs, inputs, *kernel = weight_shape
    return {"down": (rank, inputs, *kernel), "up": (outputs, rank, *(1 for _ in kernel))}


def kaiming_uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform in +-1/sqrt(fan in): kaiming with a = sqrt(5). Drawn without torch.nn.init, which a host may disable."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound
