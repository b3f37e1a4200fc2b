"""A moving average of the trained parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import TrainingError


class ParameterEma:
    """Follows named parameters: average = d * average + (1 - d) * parameter after each step.

    d is `decay_at` of the number of updates so far, so the first steps count for more. The averages are float32, also
    of bf16 parameters, and of the parameters' size.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float, device: torch.device | None = None) -> None:
        """`decay` is in [0, 1). The averages are kept on `device`; None: on that of the parameters."""
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self.num_updates = 0
        self._parameters = dict(parameters)
        self._averages = {
            name: parameter.detach().to(device or parameter.device, torch.float32, copy=True)
            for name, parameter in parameters.items()
        }
        self._held: dict[str, Tensor] = {}
        self._is_swapped = False

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are after a step."""
        self._require_not_swapped()
        weight = 1 - decay_at(self.num_updates, self.decay)
        for name, parameter in self._parameters.items():
            average = self._averages[name]
            average.lerp_(parameter.detach().to(average), weight)
        self.num_updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the parameters hold the averages; afterwards both are bit for bit what they were."""
        self._require_not_swapped()
        self._exchange()
        self._is_swapped = True
        try:
            yield
        finally:
            self._exchange_back()
            self._is_swapped = False

    @torch.no_grad()
    def _exchange(self) -> None:
        """Each average changes places with its parameter; one that a bf16 parameter could not hold waits aside."""
        for name, parameter in self._parameters.items():
            average = self._averages[name]
            held = parameter.detach().to(average.device, copy=True)
            if parameter.dtype != average.dtype:
                self._held[name] = held
                parameter.copy_(average)
            else:
                parameter.copy_(average)
                average.copy_(held)

    @torch.no_grad()
    def _exchange_back(self) -> None:
        for name, parameter in self._parameters.items():
            if name in self._held:
                parameter.copy_(self._held.pop(name))
                continue
            average = self._averages[name]
            held = parameter.detach().to(average.device, copy=True)
            parameter.copy_(average)
            average.copy_(held)

    def state_tensors(self) -> dict[str, Tensor]:
        """The averages by name; they share memory with this object."""
        self._require_not_swapped()
        return dict(self._averages)

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Go on from averages of `state_tensors` after `num_updates` updates.

        Raises TrainingError when names or shapes differ from the parameters; then nothing has changed.
        """
        self._require_not_swapped()
        expected = {name: tuple(average.shape) for name, average in self._averages.items()}
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if given != expected:
            wrong = sorted(name for name in {*expected, *given} if expected.get(name) != given.get(name))
            raise TrainingError(
                f"The saved averages do not fit this run: {len(wrong)} names or shapes differ, first {wrong[0]!r}.",
                "Resume with the settings the run was started with, or start a new run.",
            )
        for name, average in self._averages.items():
            average.copy_(tensors[name])
        self.num_updates = num_updates

    def _require_not_swapped(self) -> None:
        if self._is_swapped:
            raise RuntimeError("the averages are swapped in; leave `swapped()` first")


def decay_at(num_updates: int, decay: float) -> float:
    """min(decay, (1 + k) / (10 + k)) for k updates so far."""
    return min(decay, (1 + num_updates) / (10 + num_updates))
