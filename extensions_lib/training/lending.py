"""Lending the device to the host between a job's steps."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from ..control import JobControl
from ..errors import HostError
from ..events import EventStream, Warned
from ..methods.base import Trainable
from ..models.bundle import ModelBundle
from ..ports import Surroundings
from .parking import parked


class Lender:
    """A source of a job's control: at every boundary the surroundings may let others compute.

    What is on the device is noted here as it gets there.
    """

    def __init__(self, surroundings: Surroundings, events: EventStream, device: torch.device) -> None:
        self.bundle: ModelBundle | None = None
        self.trainable: Trainable | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.surroundings, self._events, self._device = surroundings, events, device
        self._failure: Exception | None = None
        self._warned: set[str] = set()

    def __call__(self, control: JobControl) -> None:
        """Lend once. A HostError is a warning, said once; any other error ends the job, also when it first came up
        where errors are forgiven, in a preview: the job's tensors may be in the wrong place."""
        if self._failure is not None:
            raise self._failure
        try:
            self.surroundings.lend(self._parked)
        except HostError as error:
            self._warn(str(error))
        except Exception as error:
            self._failure = error
            raise

    def note_bundle(self, bundle: ModelBundle) -> None:
        """The base model is on the device from now on."""
        self.bundle = bundle

    def forget(self) -> None:
        """The job has left the device."""
        self.bundle = self.trainable = self.optimizer = None

    def _parked(self) -> AbstractContextManager[None]:
        return parked(self.bundle, self.trainable, self.optimizer, self._device)

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._events.emit(Warned(text=text))
