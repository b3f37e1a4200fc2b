"""The Lion optimizer.

Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .rounding import Float32StateOptimizer, write_back


class Lion(Float32StateOptimizer):
    """Moves every number by `lr` in the direction of the sign of an interpolated gradient.

    `lr` >= 0, a tenth to a third of AdamW's. `betas` in [0, 1): the interpolation of the direction and the decay of the
    momentum. `weight_decay` >= 0 is decoupled; three to ten times AdamW's. Parameters in bf16 are updated in float32
    and rounded at random by `rounding_seed`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        rounding_seed: int = 0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "rounding_seed": rounding_seed}
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
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter, dtype=torch.float32)
        state["step"] = state.get("step", 0) + 1
        momentum, gradient = state["momentum"], parameter.grad.float()
        beta1, beta2 = group["betas"]
        direction = (beta1 * momentum + (1 - beta1) * gradient).sign_()
        values = parameter.detach().float()
        values.mul_(1 - group["lr"] * group["weight_decay"])
        values.sub_(direction, alpha=group["lr"])
        momentum.mul_(beta2).add_(gradient, alpha=1 - beta2)
        write_back(parameter, values, group["rounding_seed"], state["step"], index)
