"""A job in its run folder: fresh, resumed or extended."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..config.codec import dump, load
from ..config.job import TrainJobConfig
from ..control import JobControl
from ..errors import ConfigError, ExtensionError, JobStopped, Problem, TrainingError, is_out_of_memory
from ..events import EventStream, Listener, TrainingFailed, TrainingFinished
from ..ports import ALONE, Surroundings
from .lock import run_lock
from .sinks import JsonlSink
from .store import RunFolder, create_run_folder


@dataclass(frozen=True)
class Outcome:
    """How a job ended: 'completed', 'stopped' or 'discarded', after how many steps, and where the result is."""

    reason: str
    step: int
    path: Path | None
    run_folder: Path


def check_new(config: TrainJobConfig) -> None:
    """What can be told of a new run without loading anything. Raises ExtensionError."""
    from ..training.session import check_before_start

    check_before_start(config)


def create_run(config: TrainJobConfig) -> RunFolder:
    """The folder of a new run, once it is checked. Raises ExtensionError."""
    check_new(config)
    return create_run_folder(Path(config.output.runs_folder), config)


def start(
    config: TrainJobConfig,
    control: JobControl,
    listeners: Sequence[Listener] = (),
    surroundings: Surroundings = ALONE,
) -> Outcome:
    """Train from the beginning in a new run folder. Raises ExtensionError; what was saved before stays."""
    folder = create_run(config)
    with run_lock(folder.lock_file):
        return _run(folder, config, control, listeners, surroundings)


def resume(
    folder: RunFolder,
    control: JobControl,
    listeners: Sequence[Listener] = (),
    *,
    max_train_steps: int | None = None,
    surroundings: Surroundings = ALONE,
) -> Outcome:
    """Go on from the newest state, or from the beginning when there is none yet; `max_train_steps` extends the run.

    Raises TrainingError when the run is finished already, or is being trained.
    """
    with run_lock(folder.lock_file):
        config = check_resume(folder, max_train_steps)
        folder.write_config(config)
        return _run(folder, config, control, listeners, surroundings)


def check_resume(folder: RunFolder, max_train_steps: int | None = None) -> TrainJobConfig:
    """The settings a run would go on with. Raises ExtensionError when it cannot go on."""
    from ..training.session import check_before_start, completed_steps

    config = folder.config()
    if max_train_steps is not None:
        if max_train_steps < 1:
            raise ConfigError([Problem("max_train_steps", f"is {max_train_steps}, accepted are 1 or more steps")])
        training = dataclasses.replace(config.training, max_train_steps=max_train_steps)
        config = load(dump(dataclasses.replace(config, training=training)))
    _refuse_finished(folder, completed_steps(folder.state), config.training.num_steps)
    check_before_start(config, folder.path)
    return config


def _refuse_finished(folder: RunFolder, done: int, max_train_steps: int) -> None:
    """A run whose last event says so is finished; one that could not write its result may try again."""
    last = next(reversed(list(folder.events())), None)
    is_saved = isinstance(last, TrainingFinished) and last.reason == "completed"
    if done >= max_train_steps and is_saved:
        raise TrainingError(
            f"The run {folder.path} is finished: {done} of {max_train_steps} steps are done.",
            f"To train longer, resume it with more steps, for instance --max-train-steps {done + max(1, done // 2)}.",
        )


def _run(
    folder: RunFolder,
    config: TrainJobConfig,
    control: JobControl,
    listeners: Sequence[Listener],
    surroundings: Surroundings,
) -> Outcome:
    from ..training.session import SessionFolders, completed_steps, train

    latents = Path(config.output.runs_folder) / "cache" / "latents"
    folders = SessionFolders(folder.path, folder.state, folder.previews, latents)
    with closing(JsonlSink(folder.event_file)) as sink, _requests(folder, control):
        events = EventStream(folder.job_id, (sink, *listeners, surroundings.mirror), folder.last_sequence())
        try:
            end = train(config, folders, control, events, surroundings)
        except JobStopped:
            step = completed_steps(folder.state)
            reason = "discarded" if control.discard_requested else "stopped"
            events.emit(TrainingFinished(reason=reason, step=step, path=""))
            return Outcome(reason, step, None, folder.path)
        except Exception as error:
            events.emit(failure_event(error))
            raise
    return Outcome(end.reason, end.step, end.path, folder.path)


@contextmanager
def _requests(folder: RunFolder, control: JobControl) -> Iterator[None]:
    """Within the context `control` is asked what other processes ask of the run."""
    folder.take_requests(JobControl())  # what was asked of an earlier session is no longer meant
    source = folder.take_requests
    control.add_source(source)
    try:
        yield
    finally:
        control.remove_source(source)


def failure_event(error: BaseException) -> TrainingFailed:
    """What the user is told of an error; one that is not meant for users is named a bug."""
    if isinstance(error, ExtensionError):
        return TrainingFailed(error=type(error).__name__, message=error.message, hint=error.hint)
    if is_out_of_memory(error):
        return TrainingFailed(
            error="OutOfMemoryError",
            message=f"Out of memory: {str(error).strip().partition(chr(10))[0] or type(error).__name__}",
            hint="Lower the batch size or the resolution, or switch gradient checkpointing on.",
        )
    if isinstance(error, ImportError):
        return TrainingFailed(
            error="HostError",
            message=f"A package that training needs cannot be imported: {error}",
            hint="Install it again in the environment of the WebUI; its own requirements name the right version.",
        )
    return TrainingFailed(
        error=type(error).__name__,
        message=f"The job ended with an error that should not happen: {type(error).__name__}: {error}",
        hint="What was saved before is intact. The log of the program has the details; please report them.",
    )
