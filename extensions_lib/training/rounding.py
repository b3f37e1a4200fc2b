"""Weights in bf16: rounded up or down at random, so that small updates count on average.

bf16 keeps 8 bits of a number; an update below half of the last one would always be lost by rounding to the nearest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..diffusion.timesteps import step_generator

_LOST_BITS = 16  # of a float32's


def round_to_bfloat16(values: Tensor, generator: torch.Generator) -> Tensor:
    """`values` (float32, finite) as one of the two neighbouring bf16 numbers each, so that the mean is kept.

    `generator` is on the device of `values`. Numbers that bf16 can hold stay as they are.
    """
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(1 << _LOST_BITS, bits.shape, generator=generator, device=bits.device, dtype=torch.int32)
    kept = (bits + noise) & -(1 << _LOST_BITS)
    return kept.view(torch.float32).to(torch.bfloat16)


def write_back(parameter: Tensor, values: Tensor, seed: int, step: int, index: int) -> None:
    """Give `parameter`, the `index`-th of an optimizer, its new float32 `values` after `step` updates.

    A bf16 parameter is rounded by numbers that depend on (seed, step, index) only; any other is `values` already.
    """
    if parameter.dtype != torch.bfloat16:
        return
    generator = torch.Generator(parameter.device)
    generator.manual_seed(step_generator(seed, step, index, "rounding").initial_seed())
    parameter.copy_(round_to_bfloat16(values, generator))


class Float32StateOptimizer(Optimizer):
    """An optimizer whose state is float32 whatever its parameters are: torch would load it in their format."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but every number of the state as it was saved."""
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, saved in state_dict["state"].items():
            parameter = parameters[index]
            for name, value in saved.items():
                if isinstance(value, Tensor):
                    self.state[parameter][name] = value.detach().to(parameter.device, copy=True)
