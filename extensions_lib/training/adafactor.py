"""Adafactor with a given learning rate.

Source: Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", algorithms 4 and 5,
without relative step sizes and without momentum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .rounding import Float32StateOptimizer, write_back


class Adafactor(Float32StateOptimizer):
    """Keeps the mean squared gradient of a matrix as one row and one column, so its state is small.

    `lr` >= 0. The decay of the squares at step t is 1 - t^`decay_rate`, with `decay_rate` in (-1, 0). An update whose
    root mean square is above `clip_threshold` > 0 is shortened to it. `weight_decay` >= 0 is decoupled. Tensors of two
    and more dimensions are factored over the last two. Parameters in bf16 are updated in float32 and rounded at random
    by `rounding_seed`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        decay_rate: float = -0.8,
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        eps: float = 1e-30,
        rounding_seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "decay_rate": decay_rate,
            "clip_threshold": clip_threshold,
            "weight_decay": weight_decay,
            "eps": eps,
            "rounding_seed": rounding_seed,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient. Returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        pairs = [(group, parameter) for group in self.param_groups for parameter in group["params"]]
        for index, (group, parameter) in enumerate(pairs):
            if parameter.grad is not None:
                self._update(parameter, group, index)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any], index: int) -> None:
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        decay = 1 - state["step"] ** group["decay_rate"]
        update = _normalized(parameter.grad.float(), state, decay, group["eps"])
        root_mean_square = update.norm() / update.numel() ** 0.5
        update.div_((root_mean_square / group["clip_threshold"]).clamp_(min=1.0))
        values = parameter.detach().float()
        values.mul_(1 - group["lr"] * group["weight_decay"])
        values.sub_(update, alpha=group["lr"])
        write_back(parameter, values, group["rounding_seed"], state["step"], index)


def _normalized(gradient: Tensor, state: dict[str, Any], decay: float, eps: float) -> Tensor:
    """The gradient divided by the root of its running mean square, which is kept in `state`."""
    squares = gradient**2 + eps
    if gradient.dim() < 2:
        return gradient / _running_mean(state, "mean_square", squares, decay).sqrt()
    rows = _running_mean(state, "mean_square_row", squares.mean(dim=-1), decay)
    columns = _running_mean(state, "mean_square_column", squares.mean(dim=-2), decay)
    row_factor = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt().unsqueeze(-1)
    return gradient * row_factor * columns.unsqueeze(-2).rsqrt()


def _running_mean(state: dict[str, Any], name: str, value: Tensor, decay: float) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(value)
    return state[name].mul_(decay).add_(value, alpha=1 - decay)
