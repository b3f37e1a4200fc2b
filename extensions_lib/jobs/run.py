"""A job in its run folder: fresh, resumed or extended. The one place that knows both kinds: trainings and tools."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..config.codec import dump, load
from ..config.job import TrainJobConfig
from ..config.tool import ToolConfig
from ..config.tools import JobConfig
from ..control import JobControl
from ..errors import ConfigError, ExtensionError, JobStateError, JobStopped, Problem, TrainingError, is_out_of_memory
from ..events import CheckpointSaved, EventStream, JobFailed, JobFinished, Listener
from ..formats.atomic import remove_leftovers
from ..ports import ALONE, Surroundings
from .lock import run_lock
from .sinks import JsonlSink
from .store import RunFolder, create_run_folder

TRAINING_MEMORY_HINT = "Lower the batch size or the resolution, or switch gradient checkpointing on."
TOOL_MEMORY_HINT = "Close other programs, or let the WebUI unload its checkpoint, and start it again."


@dataclass(frozen=True)
class Outcome:
    """How a job ended: 'completed', 'stopped' or 'discarded', after how many steps, and where the result is."""

    reason: str
    step: int
    path: Path | None
    run_folder: Path


def check_new(config: JobConfig) -> None:
    """What can be told of a new run without loading anything. Raises ExtensionError."""
    if isinstance(config, ToolConfig):
        from ..training.tools import foresee

        foresee(config)
        return
    from ..training.session import check_before_start

    check_before_start(config)


def create_run(config: TrainJobConfig) -> RunFolder:
    """The folder of a new training, once it is checked. Raises ExtensionError."""
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
    """Go on from the newest state, or from the beginning when there is none yet; `max_train_steps` extends a training.

    Raises TrainingError or JobStateError when the run is finished already, or is being worked on.
    """
    with run_lock(folder.lock_file):
        config = check_resume(folder, max_train_steps)
        folder.write_config(config)
        return _run(folder, config, control, listeners, surroundings)


def check_resume(folder: RunFolder, max_train_steps: int | None = None) -> JobConfig:
    """The settings a run would go on with. Raises ExtensionError when it cannot go on."""
    config = folder.config()
    if isinstance(config, ToolConfig):
        _check_tool_again(folder, config, max_train_steps)
        return config
    from ..training.session import check_before_start, completed_steps

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
    is_saved = isinstance(last, JobFinished) and last.reason == "completed"
    if done >= max_train_steps and is_saved:
        raise TrainingError(
            f"The run {folder.path} is finished: {done} of {max_train_steps} steps are done.",
            f"To train longer, resume it with more steps, for instance --max-train-steps {done + max(1, done // 2)}.",
        )


def _check_tool_again(folder: RunFolder, config: ToolConfig, max_train_steps: int | None) -> None:
    if max_train_steps is not None:
        raise ConfigError([Problem("max_train_steps", f"is {max_train_steps}; this job has no steps, leave it out")])
    saved = [event.path for event in folder.events() if isinstance(event, CheckpointSaved)]
    if any(Path(path).exists() for path in saved):
        raise JobStateError(
            f"The job {folder.job_id} is finished: {saved[-1]} is written.", "Start a new one with its settings."
        )
    check_new(config)


def _run(
    folder: RunFolder,
    config: JobConfig,
    control: JobControl,
    listeners: Sequence[Listener],
    surroundings: Surroundings,
) -> Outcome:
    is_tool = isinstance(config, ToolConfig)
    work = _do_tool if is_tool else _train
    with closing(JsonlSink(folder.event_file)) as sink, _requests(folder, control):
        events = EventStream(folder.job_id, (sink, *listeners, surroundings.mirror), folder.last_sequence())
        try:
            return work(folder, config, control, events, surroundings)
        except JobStopped:
            step = 0 if is_tool else _steps_done(folder)
            reason = "discarded" if control.discard_requested else "stopped"
            events.emit(JobFinished(reason=reason, step=step, path=""))
            return Outcome(reason, step, None, folder.path)
        except Exception as error:
            events.emit(failure_event(error, TOOL_MEMORY_HINT if is_tool else TRAINING_MEMORY_HINT))
            raise


def _do_tool(
    folder: RunFolder, config: ToolConfig, control: JobControl, events: EventStream, surroundings: Surroundings
) -> Outcome:
    from .tool_job import do_tool

    if next(folder.events(), None) is not None:  # it was begun before: its own file may lie there half written
        remove_leftovers(Path(config.folder), config.name)
    path = do_tool(config, folder.path, control, events, surroundings)
    return Outcome("completed", 0, path, folder.path)


def _train(
    folder: RunFolder, config: TrainJobConfig, control: JobControl, events: EventStream, surroundings: Surroundings
) -> Outcome:
    from ..training.session import SessionFolders, train

    latents = Path(config.output.runs_folder) / "cache" / "latents"
    folders = SessionFolders(folder.path, folder.state, folder.previews, latents)
    end = train(config, folders, control, events, surroundings)
    return Outcome(end.reason, end.step, end.path, folder.path)


def _steps_done(folder: RunFolder) -> int:
    from ..training.session import completed_steps

    return completed_steps(folder.state)


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


def failure_event(error: BaseException, memory_hint: str = TRAINING_MEMORY_HINT) -> JobFailed:
    """What the user is told of an error; one that is not meant for users is named a bug."""
    if isinstance(error, ExtensionError):
        return JobFailed(error=type(error).__name__, message=error.message, hint=error.hint)
    if is_out_of_memory(error):
        return JobFailed(
            error="OutOfMemoryError",
            message=f"Out of memory: {str(error).strip().partition(chr(10))[0] or type(error).__name__}",
            hint=memory_hint,
        )
    if isinstance(error, ImportError):
        return JobFailed(
            error="HostError",
            message=f"A package that the job needs cannot be imported: {error}",
            hint="Install it again in the environment of the WebUI; its own requirements name the right version.",
        )
    return JobFailed(
        error=type(error).__name__,
        message=f"The job ended with an error that should not happen: {type(error).__name__}: {error}",
        hint="What was saved before is intact. The log of the program has the details; please report them.",
    )
