"""A moving average of the trained parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import TrainingError


class ParameterEma:
    """Follows named float32 parameters: average = d * average + (1 - d) * parameter after each step.

    d is `decay_at` of the number of updates so far, so the first steps count for more. The averages are on the devices
    of the parameters and of their size.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        """`decay` is in [0, 1)."""
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self.num_updates = 0
        self._parameters = dict(parameters)
        self._averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._is_swapped = False

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are after a step."""
        self._require_not_swapped()
        weight = 1 - decay_at(self.num_updates, self.decay)
        for name, parameter in self._parameters.items():
            self._averages[name].lerp_(parameter, weight)
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
            self._exchange()
            self._is_swapped = False

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            held = parameter.clone()
            parameter.copy_(self._averages[name])
            self._averages[name].copy_(held)

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
