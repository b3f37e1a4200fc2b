"""A job in its run folder: fresh, resumed or extended."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..config.job import TrainJobConfig
from ..control import JobControl
from ..errors import ExtensionError, JobStopped, TrainingError
from ..events import EventStream, Listener, TrainingFailed, TrainingFinished
from .sinks import JsonlSink
from .store import RunFolder, create_run_folder


@dataclass(frozen=True)
class Outcome:
    """How a job ended: 'completed', 'stopped' or 'discarded', after how many steps, and where the result is."""

    reason: str
    step: int
    path: Path | None
    run_folder: Path


def start(config: TrainJobConfig, control: JobControl, listeners: Sequence[Listener] = ()) -> Outcome:
    """Train from the beginning in a new run folder. Raises ExtensionError; what was saved before stays."""
    from ..training.session import check_before_start

    check_before_start(config)
    folder = create_run_folder(Path(config.output.runs_folder), config)
    return _run(folder, config, control, listeners)


def resume(
    folder: RunFolder, control: JobControl, listeners: Sequence[Listener] = (), *, max_train_steps: int | None = None
) -> Outcome:
    """Go on from the newest state, or from the beginning when there is none yet; `max_train_steps` extends the run.

    Raises TrainingError when the run is finished already.
    """
    from ..training.session import check_before_start, completed_steps

    config = folder.config()
    if max_train_steps is not None:
        training = dataclasses.replace(config.training, max_train_steps=max_train_steps)
        config = dataclasses.replace(config, training=training)
    _refuse_finished(folder, completed_steps(folder.state), config.training.max_train_steps)
    check_before_start(config, folder.path)
    folder.write_config(config)
    return _run(folder, config, control, listeners)


def _refuse_finished(folder: RunFolder, done: int, max_train_steps: int) -> None:
    """A run whose last event says so is finished; one that could not write its result may try again."""
    last = next(reversed(list(folder.events())), None)
    is_saved = isinstance(last, TrainingFinished) and last.reason == "completed"
    if done >= max_train_steps and is_saved:
        raise TrainingError(
            f"The run {folder.path} is finished: {done} of {max_train_steps} steps are done.",
            f"To train longer, resume it with more steps, for instance --max-train-steps {done + max(1, done // 2)}.",
        )


def _run(folder: RunFolder, config: TrainJobConfig, control: JobControl, listeners: Sequence[Listener]) -> Outcome:
    from ..training.session import SessionFolders, completed_steps, train

    last = max((event.sequence for event in folder.events()), default=0)
    latents = Path(config.output.runs_folder) / "cache" / "latents"
    folders = SessionFolders(folder.path, folder.state, folder.previews, latents)
    folder.take_requests(JobControl())  # what was asked of an earlier session is no longer meant
    control.add_source(folder.take_requests)
    with closing(JsonlSink(folder.event_file)) as sink:
        events = EventStream(folder.job_id, (sink, *listeners), last)
        try:
            end = train(config, folders, control, events)
        except JobStopped:
            step = completed_steps(folder.state)
            events.emit(TrainingFinished(reason="stopped", step=step, path=""))
            return Outcome("stopped", step, None, folder.path)
        except ExtensionError as error:
            events.emit(TrainingFailed(error=type(error).__name__, message=error.message, hint=error.hint))
            raise
    return Outcome(end.reason, end.step, end.path, folder.path)
