"""DoRA: the direction of each input's column of a weight is changed by another adapter, its length is trained apart.

Letters: O output, I input width or channels, kh kw kernel. W weight, D the other adapter's change, s lengths.
Source: Liu et al. 2024, "DoRA", section 4, with the lengths of columns over the outputs, as the WebUI computes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from .weight import Shapes, WeightAdapter, applied

SUFFIX = "dora_scale"


class DoraAdapter(WeightAdapter):
    """Makes the weight `s * (W + D) / |W + D|`, where | | is the length of each input's column.

    `lengths` is (1, I) or (1, I, 1, 1) and starts as those of W, so the layer starts unchanged. In the backward pass
    |W + D| is a constant (section 4.3). The strength multiplies the whole difference to W.
    """

    suffixes: ClassVar[Mapping[str, str]] = {"lengths": SUFFIX}

    def __init__(self, layer: nn.Module, inner: WeightAdapter) -> None:
        super().__init__()
        self.inner = inner
        self.lengths = nn.Parameter(column_lengths(layer.weight.detach().to("cpu", torch.float32)))
        self.dropouts = inner.dropouts
        self.starting_at_zero = tuple(f"inner.{name}" for name in inner.starting_at_zero)

    @property
    def rank(self) -> int:
        """R of the other adapter."""
        return self.inner.rank

    def delta(self) -> Tensor:
        """D, the change of direction."""
        return self.inner.delta()

    def addition(self, layer: nn.Module, inputs: Tensor, strength: float) -> Tensor:
        """W acts on the input times (g - 1), D on the input times g, where g = s / |W + D|: both are per input."""
        with torch.no_grad():
            weight = layer.weight.detach()
            now = column_lengths(weight.to(torch.float32) + self.inner.delta())
        gain = (self.lengths / now).flatten()
        if isinstance(layer, nn.Conv2d):
            gain = gain.reshape(-1, 1, 1)
        of_weight = applied(layer, inputs * ((gain - 1) * strength).to(inputs.dtype), weight)
        return of_weight + self.inner.addition(layer, inputs * gain.to(inputs.dtype), strength)

    def tensors(self) -> dict[str, Tensor]:
        """Those of the other adapter, and the lengths."""
        return {**self.inner.tensors(), **super().tensors()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from both."""
        self.inner.load_tensors(tensors)
        super().load_tensors(tensors)

    def norm(self) -> Tensor:
        """The Frobenius norm of D."""
        return self.inner.norm()

    def shrink(self, ratio: Tensor) -> None:
        """Multiply D by `ratio`."""
        self.inner.shrink(ratio)


def column_lengths(weight: Tensor) -> Tensor:
    """(1, I) or (1, I, 1, 1): the length of each input's column of a weight (O, I) or (O, I, kh, kw), never 0."""
    lengths = weight.transpose(0, 1).flatten(1).norm(dim=1)
    return lengths.clamp(min=torch.finfo(torch.float32).tiny).reshape(dora_shapes(weight.shape)["lengths"])


def dora_shapes(weight_shape: tuple[int, ...]) -> Shapes:
    """Shape of the lengths for a layer of weight (O, I) or (O, I, kh, kw)."""
    return {"lengths": (1, weight_shape[1], *(1 for _ in weight_shape[2:]))}
