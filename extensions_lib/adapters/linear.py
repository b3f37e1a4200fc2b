"""LoRA of linear layers and convolutions.

Letters: R rank, I input width or channels, O output width or channels.
Source: Hu et al. 2021, "LoRA", section 4.1; layout of the factors as the WebUI reads them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attach import Adapter


class LoraAdapter(Adapter):
    """Adds `multiplier * alpha / R * up(down(dropout(x)))` to a layer's output.

    `down` is (R, I) for a linear layer and (R, I, kh, kw) for a convolution, `up` is (O, R) or (O, R, 1, 1).
    Both are float32 whatever the layer is; `up` starts at zero, so the layer starts unchanged.
    """

    def __init__(self, layer: nn.Module, rank: int, alpha: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        down_shape, up_shape = factor_shapes(layer, rank)
        self.down = nn.Parameter(kaiming_uniform(down_shape, generator))
        self.up = nn.Parameter(torch.zeros(up_shape))
        self.alpha = alpha
        self.dropout = dropout

    @property
    def rank(self) -> int:
        """R."""
        return self.down.shape[0]

    def load_factors(self, down: Tensor, up: Tensor, alpha: float) -> None:
        """Go on from given factors; their rank may differ from the one this adapter was made with."""
        self.down = nn.Parameter(down.detach().to(self.down.device, torch.float32).reshape(-1, *self.down.shape[1:]))
        self.up = nn.Parameter(
            up.detach().to(self.up.device, torch.float32).reshape(self.up.shape[0], -1, *self.up.shape[2:])
        )
        self.alpha = alpha

    def change(self, layer: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
        """`output` plus the low-rank term, computed in the dtype of `inputs`."""
        scale = self.multiplier * self.alpha / self.rank
        dropped = functional.dropout(inputs, self.dropout, self.training)
        down, up = self.down.to(inputs.dtype), self.up.to(inputs.dtype)
        if isinstance(layer, nn.Conv2d):
            hidden = functional.conv2d(dropped, down, None, layer.stride, layer.padding, layer.dilation)
            return output + functional.conv2d(hidden, up) * scale
        return output + functional.linear(functional.linear(dropped, down), up) * scale


def factor_shapes(layer: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of `down` and `up` for a layer of weight (O, I) or (O, I, kh, kw)."""
    outputs, inputs, *kernel = layer.weight.shape
    return (rank, inputs, *kernel), (outputs, rank, *(1 for _ in kernel))


def kaiming_uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform in +-1/sqrt(fan in): kaiming with a = sqrt(5). Drawn without torch.nn.init, which a host may disable."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound
