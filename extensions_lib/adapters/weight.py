"""What adapters that change a layer as a change of its weight would have in common.

Letters: O output, I input width or channels of the layer's weight, kh kw its kernel, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .attach import Adapter

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Dropouts:
    """Shares (0 to below 1) that are left out at random while training, never in use.

    `inputs`: numbers of a layer's input, `ranks`: of the R directions, both with the rest made larger to match;
    `modules`: whole adapters. Drawn from torch's own generators, see `training.build.seeded_dropout`.
    """

    inputs: float = 0.0
    ranks: float = 0.0
    modules: float = 0.0


NO_DROPOUT = Dropouts()


class WeightAdapter(Adapter):
    """Adds to a layer's output what a change of its weight would; all parameters are float32.

    `suffixes` maps a parameter's name to what its tensor is called in a file; parameters may be None where an algorithm
    has a choice. `scaling` is what their product is multiplied by. `starting_at_zero` names those that begin so.
    """

    suffixes: ClassVar[Mapping[str, str]]
    starting_at_zero: tuple[str, ...] = ()
    dropouts: Dropouts = NO_DROPOUT
    alpha: float | None = None

    def change(self, layer: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
        """`output` and `multiplier` times the addition; computed in the dtype of `inputs`."""
        kept = functional.dropout(inputs, self.dropouts.inputs, self.training)
        return output + self.addition(layer, kept, self.multiplier * self._is_kept())

    def addition(self, layer: nn.Module, inputs: Tensor, strength: float) -> Tensor:
        """What the change of weight adds to the output, times `strength`."""
        raise NotImplementedError

    def delta(self) -> Tensor:
        """The change of weight at strength 1, without dropout, float32, of the shape of the layer's weight."""
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """R, or 0 when the change has no factors."""
        return 0

    @property
    def scaling(self) -> float:
        """alpha / R, or 1."""
        return 1.0 if self.alpha is None or not self.rank else self.alpha / self.rank

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds for this layer, by suffix: float32 on the CPU."""
        found = {
            suffix: parameter.detach().to("cpu", torch.float32)
            for name, suffix in self.suffixes.items()
            if (parameter := getattr(self, name)) is not None
        }
        return found if self.alpha is None else {**found, "alpha": torch.tensor(self.alpha)}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a file's tensors of this layer, by suffix; their rank and form may differ from this adapter's."""
        for name, suffix in self.suffixes.items():
            tensor = tensors.get(suffix)
            made = None if tensor is None else nn.Parameter(self.fitted(name, tensor.detach().to(torch.float32)))
            setattr(self, name, made)
        if self.alpha is not None:
            self.alpha = float(tensors["alpha"].float().reshape(-1)[0]) if "alpha" in tensors else float(self.rank)

    def fitted(self, name: str, tensor: Tensor) -> Tensor:
        """A file's tensor for the parameter `name` in the form this adapter computes with: a copy."""
        return tensor.clone()

    def norm(self) -> Tensor:
        """The Frobenius norm of `delta`, a scalar."""
        return self.delta().norm()

    def shrink(self, ratio: Tensor) -> None:
        """Multiply `delta` by `ratio` (a scalar above 0) in place, each of its factors by the same root of it."""
        factors = [parameter for name in self.factors if (parameter := getattr(self, name)) is not None]
        for factor in factors:
            factor.mul_(ratio.to(factor.device) ** (1 / len(factors)))

    @property
    def factors(self) -> tuple[str, ...]:
        """The parameters whose product `delta` is."""
        return tuple(self.suffixes)

    def rank_mask(self, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
        """Ones of `shape`, some of them dropped and the rest made larger to match; None when nothing is dropped."""
        if not self.training or not self.dropouts.ranks:
            return None
        return functional.dropout(torch.ones(shape, dtype=like.dtype, device=like.device), self.dropouts.ranks, True)

    def _is_kept(self) -> float:
        """0 when this adapter is left out this time; the graph stays whole, so that every parameter has a gradient."""
        if not self.training or not self.dropouts.modules:
            return 1.0
        return float(torch.rand(()) >= self.dropouts.modules)


def cap_norms(adapters: list[WeightAdapter], limit: float) -> None:
    """Shrink every change of weight whose Frobenius norm is above `limit` to it, in place."""
    with torch.no_grad():
        for adapter in adapters:
            norm = adapter.norm()
            adapter.shrink(limit / norm.clamp(min=limit))


def applied(layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What `layer` would give with this weight and bias: (..., O) of (..., I), or (B, O, H', W') of (B, I, H, W)."""
    if isinstance(layer, nn.Conv2d):
        return functional.conv2d(inputs, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return functional.linear(inputs, weight, bias)


def rebuilt(compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`compute(*inputs)`, computed a second time for the backward pass: no weight-sized tensor is kept in between.

    `compute` must draw nothing at random.
    """
    if not torch.is_grad_enabled():
        return compute(*inputs)
    return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)
