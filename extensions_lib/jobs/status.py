"""What is known of a job, folded from its events: the same for the page, the API and the history."""

from __future__ import annotations

import dataclasses
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.tool import ToolConfig
from ..config.tools import TOOLS, JobConfig, kind_of, source_files
from ..events import (
    CheckpointSaved,
    Event,
    JobFailed,
    JobFinished,
    PauseChanged,
    PhaseProgress,
    PreviewReady,
    ResultPublished,
    StepCompleted,
    TrainingStarted,
    ValidationMeasured,
    Warned,
)

# A training prepares and trains, a tool works.
# 'interrupted': the process ended in the middle of the job. 'queued' and 'interrupted' are told by the job manager.
STATES = (
    "queued", "preparing", "training", "working", "paused", "completed", "stopped", "discarded", "failed",
    "interrupted",
)  # fmt: skip
ACTIVE_STATES = ("preparing", "training", "working", "paused")
PACE_STEPS = 20


def states_at_work(method: str) -> tuple[str, str]:
    """The state in which a job begins when it is its turn, and the one in which it goes on."""
    return ("working", "working") if method in TOOLS else ("preparing", "training")


@dataclass(frozen=True)
class SavedResult:
    """A result file after `step` steps; `published` is what the host said of it, '' when it was not asked.

    `beside` are the further files that belong to it; `text` is what else there is to know of it; `kind` is
    that of a tool's result.
    """

    step: int
    path: str
    num_modules: int
    published: str = ""
    is_usable: bool = True
    beside: tuple[str, ...] = ()
    text: str = ""
    kind: str = ""


@dataclass(frozen=True)
class JobStatus:
    """A job at one moment. Times are seconds since the epoch; `curve` and `validation` hold (step, loss).

    `preview_steps` are the steps with preview pictures: `<step:06d>-<prompt>.png` in the run's previews folder.
    Of a tool `method` is its kind, one of `config.tools.TOOLS`; it has no steps. `sources` are the files it reads.
    `version` changes whenever anything else does.
    """

    job_id: str
    name: str
    method: str
    preset: str
    base_model: str
    trigger_word: str
    state: str
    max_train_steps: int
    step: int = 0
    phase: str = ""
    phase_done: int = 0
    phase_total: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    seconds_per_step: float | None = None
    peak_memory_gib: float = 0.0
    num_examples: int = 0
    num_parameters: int = 0
    started_at: float = 0.0
    updated_at: float = 0.0
    error: str = ""
    hint: str = ""
    warnings: tuple[str, ...] = ()
    results: tuple[SavedResult, ...] = ()
    preview_steps: tuple[int, ...] = ()
    curve: tuple[tuple[int, float], ...] = ()
    validation: tuple[tuple[int, float], ...] = ()
    sources: tuple[str, ...] = ()
    version: int = 0

    @property
    def is_tool(self) -> bool:
        """Whether it is a tool for files, rather than a training."""
        return self.method in TOOLS

    @property
    def is_active(self) -> bool:
        """Whether a thread works on it now."""
        return self.state in ACTIVE_STATES

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the last step at the present pace; None before there is a pace."""
        return None if self.seconds_per_step is None else self.seconds_per_step * (self.max_train_steps - self.step)

    def to_json(self) -> dict[str, Any]:
        """As plain values, with the time left."""
        return {**dataclasses.asdict(self), "eta_seconds": self.eta_seconds}


class StatusFold:
    """Folds the events of one job, in order, into its status. Not thread-safe."""

    def __init__(self, job_id: str, config: JobConfig) -> None:
        self._told: dict[str, Any] = {  # of JobStatus; a dict, because a history has hundreds of thousands of events
            "job_id": job_id,
            "name": config.name,
            **_facts(config),
            "state": "queued",
            "started_at": 0.0,
            "warnings": (),
            "results": (),
            "preview_steps": (),
        }
        self._first_state, self._state_at_work = states_at_work(self._told["method"])
        self._curve: list[tuple[int, float]] = []
        self._validation: list[tuple[int, float]] = []
        self._pace: deque[float] = deque(maxlen=PACE_STEPS)

    def apply(self, event: Event) -> None:
        """Take one event in. After a resume, points beyond the first step are forgotten: they are trained again."""
        started_at = self._told["started_at"] or event.time
        stamps = {"updated_at": event.time, "started_at": started_at, "version": event.sequence}
        self._told = {**self._told, **stamps, **self._changes(event)}

    def status(self, state: str | None = None) -> JobStatus:
        """The status now, with another state when the caller knows better ('queued', 'interrupted')."""
        told = self._told if state is None else {**self._told, "state": state}
        pace = statistics.median(self._pace) if self._pace else None
        return JobStatus(
            **told, seconds_per_step=pace, curve=tuple(self._curve), validation=tuple(self._validation)
        )  # fmt: skip

    def _changes(self, event: Event) -> dict[str, Any]:
        told = self._told
        match event:
            case PhaseProgress():
                fresh = {} if told["state"] == self._first_state else {"error": "", "hint": "", "warnings": ()}
                return {
                    "state": self._first_state, "phase": event.phase, "phase_done": event.done,
                    "phase_total": event.total, **fresh,
                }  # fmt: skip
            case TrainingStarted():
                return self._restart(event)
            case StepCompleted():
                return self._step(event)
            case ValidationMeasured():
                self._validation.append((event.step, event.loss))
                return {}
            case CheckpointSaved():
                others = tuple(saved for saved in told["results"] if saved.path != event.path)
                more = {"beside": event.beside, "text": event.text, "kind": event.kind}
                saved = SavedResult(event.step, event.path, event.num_modules, **more)
                return {"results": (*others, saved)}
            case ResultPublished():
                results = tuple(_published(saved, event) for saved in told["results"])
                return {"results": results, "warnings": (*told["warnings"], *_unusable_beside(results, event))}
            case PreviewReady():
                return {"preview_steps": tuple(sorted({*told["preview_steps"], event.step}))}
            case Warned():
                return {"warnings": (*told["warnings"], event.text)}
            case PauseChanged():
                return {"state": "paused" if event.paused else self._state_at_work}
            case JobFinished():
                return {"state": event.reason, "step": event.step, "phase": ""}
            case JobFailed():
                return {"state": "failed", "error": event.message, "hint": event.hint, "phase": ""}
        return {}

    def _restart(self, event: TrainingStarted) -> dict[str, Any]:
        self._curve = [point for point in self._curve if point[0] <= event.first_step]
        self._validation = [point for point in self._validation if point[0] <= event.first_step]
        self._pace.clear()
        return {
            "state": "training",
            "phase": "",
            "step": event.first_step,
            "max_train_steps": event.max_train_steps,
            "num_examples": event.num_examples,
            "num_parameters": event.num_parameters,
        }

    def _step(self, event: StepCompleted) -> dict[str, Any]:
        self._curve.append((event.step, event.loss))
        self._pace.append(event.seconds)
        return {
            "state": "training",
            "step": event.step,
            "loss": event.loss,
            "learning_rate": event.learning_rate,
            "peak_memory_gib": event.peak_memory_gib,
        }


def _facts(config: JobConfig) -> dict[str, Any]:
    """What the settings alone say."""
    if isinstance(config, ToolConfig):
        sources = tuple(named.path for named in source_files(config))
        return {
            "method": kind_of(config), "preset": "", "base_model": "", "trigger_word": "", "max_train_steps": 0,
            "sources": sources,
        }  # fmt: skip
    return {
        "method": config.method.kind,
        "preset": config.preset,
        "base_model": config.base_model,
        "trigger_word": config.trigger_word,
        "max_train_steps": config.training.num_steps,
    }


def _unusable_beside(results: Sequence[SavedResult], event: ResultPublished) -> list[str]:
    """What the host says of a further file that it cannot use; of the result itself the page tells anyway."""
    is_beside = any(event.path in saved.beside for saved in results)
    return [f"{Path(event.path).name} is {event.text}."] if is_beside and not event.is_usable else []


def _published(saved: SavedResult, event: ResultPublished) -> SavedResult:
    if saved.path != event.path:
        return saved
    return dataclasses.replace(saved, published=event.text, is_usable=event.is_usable)
