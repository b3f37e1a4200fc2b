"""What a running job tells the world: frozen, JSON-able, never a tensor.

Order within one step: StepCompleted, CheckpointSaved, ResultPublished, PreviewReady. A preview may fail; the save has
already happened.
Listeners may not change the training. One that raises is logged once, with its traceback, and dropped.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Event:
    """Stamped by `EventStream.emit`: `time` is seconds since the epoch, `sequence` counts from 1 within one job."""

    job_id: str = ""
    sequence: int = 0
    time: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The event as a flat dict with its class name under 'event'."""
        return {"event": type(self).__name__, **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class PhaseProgress(Event):
    """A phase before the first step, such as 'load model', or one of a tool: `done` of `total` items."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class TrainingStarted(Event):
    """The first step is next. `first_step` is 0 for a fresh run, else the step the run is resumed from."""

    name: str
    method: str
    first_step: int
    max_train_steps: int
    num_examples: int
    num_parameters: int
    run_folder: str


@dataclass(frozen=True, kw_only=True)
class StepCompleted(Event):
    """One optimizer update. `loss` is the weighted mean over its examples, `seconds` its wall time."""

    step: int
    loss: float
    learning_rate: float
    num_examples_seen: int
    seconds: float
    peak_memory_gib: float


@dataclass(frozen=True, kw_only=True)
class ValidationMeasured(Event):
    """Mean loss at fixed noise and fixed timesteps: a curve that can be read."""

    step: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A result file was written, read again and compared; `num_modules` is how many modules of the model it matches.

    `beside` are the paths of the further files that belong to it; `text` is what else there is to know of it. Of a
    tool `step` is 0, and `kind` one of `config.artefacts.ARTEFACTS`.
    """

    step: int
    path: str
    num_modules: int
    beside: tuple[str, ...] = ()
    text: str = ""
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class ResultPublished(Event):
    """The host was asked about a result file: `text` is its answer, `is_usable` whether prompts can use it now."""

    step: int
    path: str
    text: str
    is_usable: bool


@dataclass(frozen=True, kw_only=True)
class PreviewReady(Event):
    """A picture (`path`, PNG) of what the model draws at `step`; the grid of all steps so far is `grid_path`."""

    step: int
    path: str
    grid_path: str


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something the user should know and the job survives."""

    text: str


@dataclass(frozen=True, kw_only=True)
class PauseChanged(Event):
    """The job was paused or goes on."""

    paused: bool
    step: int


@dataclass(frozen=True, kw_only=True)
class JobFinished(Event):
    """The job ended as asked. `reason`: 'completed', 'stopped' or 'discarded'; `path` of the last result or ''."""

    reason: str
    step: int
    path: str


@dataclass(frozen=True, kw_only=True)
class JobFailed(Event):
    """The job ended with an error; what was saved before is intact."""

    error: str
    message: str
    hint: str


EVENT_TYPES: dict[str, type[Event]] = {
    cls.__name__: cls
    for cls in (
        PhaseProgress, TrainingStarted, StepCompleted, ValidationMeasured, CheckpointSaved, ResultPublished,
        PreviewReady, Warned, PauseChanged, JobFinished, JobFailed,
    )
}  # fmt: skip


# What earlier versions called an event, and its name now.
FORMER_NAMES = {"TrainingFinished": "JobFinished", "TrainingFailed": "JobFailed"}


def event_from_json(record: dict[str, Any]) -> Event:
    """Inverse of `Event.to_json`. Raises KeyError for an unknown event name."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in dict(record).items()}
    name = fields.pop("event")
    return EVENT_TYPES[FORMER_NAMES.get(name, name)](**fields)


Listener = Callable[[Event], None]


class EventStream:
    """Stamps events of one job and hands them to its listeners, in order."""

    def __init__(self, job_id: str, listeners: tuple[Listener, ...] = (), last_sequence: int = 0) -> None:
        self.job_id = job_id
        self._listeners = list(listeners)
        self._sequence = last_sequence
        self._lock = threading.Lock()

    def subscribe(self, listener: Listener) -> None:
        """Every later event goes to `listener` too."""
        with self._lock:
            self._listeners.append(listener)

    def emit(self, event: Event) -> Event:
        """Stamp `event`, hand it to every listener and return the stamped one."""
        with self._lock:
            self._sequence += 1
            stamped = dataclasses.replace(event, job_id=self.job_id, sequence=self._sequence, time=time.time())
            for listener in tuple(self._listeners):
                self._deliver(listener, stamped)
        return stamped

    def _deliver(self, listener: Listener, event: Event) -> None:
        try:
            listener(event)
        except Exception:
            logger.exception("A listener of job %s failed and is dropped: %r", self.job_id, listener)
            self._listeners.remove(listener)
