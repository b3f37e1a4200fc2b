"""The Lion optimizer.

Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """Moves every number by `lr` in the direction of the sign of an interpolated gradient.

    `lr` >= 0, a tenth to a third of AdamW's. `betas` in [0, 1): the interpolation of the direction and the decay of the
    momentum. `weight_decay` >= 0 is decoupled; three to ten times AdamW's.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient. Returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum, gradient = state["momentum"], parameter.grad
        beta1, beta2 = group["betas"]
        direction = (beta1 * momentum + (1 - beta1) * gradient).sign_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(direction, alpha=group["lr"])
        momentum.mul_(beta2).add_(gradient, alpha=1 - beta2)
