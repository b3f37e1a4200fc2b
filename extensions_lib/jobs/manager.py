"""The jobs of one process: a queue, the one thread that works on it, and what is known of every run."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ..config.job import OutputConfig
from ..config.tool import ToolConfig
from ..config.tools import TOOLS, JobConfig
from ..control import JobControl
from ..errors import ConfigError, ExtensionError, JobStateError, OutputError, Problem, UnknownJobError
from ..events import Event, JobFailed, JobFinished
from ..ports import Host
from .event_log import EventLog
from .lock import is_locked
from .results import delete_other_results, delete_run
from .run import check_new, check_resume, failure_event, resume
from .sinks import JsonlSink
from .status import ACTIVE_STATES, STATES, JobStatus, states_at_work
from .store import REQUESTS, RunFolder, create_run_folder, make_request

logger = logging.getLogger(__name__)

MAX_RESULTS = 1000
TRAINING_REQUESTS = ("save", "preview")


@dataclass(frozen=True)
class _Queued:
    folder: RunFolder
    first_sequence: int
    max_train_steps: int | None = None

    @property
    def job_id(self) -> str:
        return self.folder.job_id


@dataclass(frozen=True)
class _Active:
    """The job the thread works on; events above `first_sequence` are of this session."""

    folder: RunFolder
    first_sequence: int
    control: JobControl = field(default_factory=JobControl)

    @property
    def job_id(self) -> str:
        return self.folder.job_id


class JobManager:
    """Works on one job after the other in a thread of its own. Every method may be called from any thread.

    A job is a training or a tool, and has a run folder below the host's runs, whose name is the job's id.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._changed = threading.Condition(threading.RLock())
        self._queue: list[_Queued] = []
        self._active: _Active | None = None
        self._thread: threading.Thread | None = None
        self._logs: dict[Path, EventLog] = {}
        self._ends: dict[Path, Event] = {}
        self._unreadable: set[Path] = set()

    def submit(self, config: JobConfig) -> str:
        """Queue a new job, whose run folder is made at once, and return its id. Raises ExtensionError."""
        runs = self.host.folders().runs
        if not isinstance(config, ToolConfig):
            config = dataclasses.replace(config, output=dataclasses.replace(config.output, runs_folder=str(runs)))
        check_new(config)
        with self._changed:
            self._refuse_name_in_queue(config)
            folder = create_run_folder(runs, config)
            self._enqueue(_Queued(folder, first_sequence=0))
        return folder.job_id

    def continue_run(self, job_id: str, max_train_steps: int | None = None) -> None:
        """Queue a run again; `max_train_steps` makes a training longer, a tool starts from the beginning.

        Raises ExtensionError when it cannot go on.
        """
        folder = self.folder(job_id)
        self._at_rest(job_id, "Wait until it ends.")
        config = check_resume(folder, max_train_steps)
        with self._changed:
            self._at_rest(job_id, "Wait until it ends.")
            self._refuse_name_in_queue(config)
            self._enqueue(_Queued(folder, self._log(folder).last_sequence, max_train_steps))

    def ask(self, job_id: str, word: str) -> None:
        """Ask a job for `word`, one of `REQUESTS`; 'stop' and 'discard' take a queued job out of the queue.

        Raises UnknownJobError, ConfigError for another word, JobStateError when the job's state does not allow it.
        """
        if word not in REQUESTS:
            raise ConfigError([Problem("request", f"is {word!r}, accepted are {', '.join(REQUESTS)}")])
        with self._changed:
            folder, status = self.folder(job_id), self.status(job_id)
            state = status.state
            if status.is_tool and word in TRAINING_REQUESTS:
                raise ConfigError([Problem("request", f"is {word!r}, which is for trainings; {_no_steps(status)}")])
            if self._active is not None and self._active.job_id == job_id:
                make_request(word, self._active.control)
            elif state == "queued" and word in ("stop", "discard"):
                self._queue = [entry for entry in self._queue if entry.job_id != job_id]
                self._note_never_started(folder, "discarded" if word == "discard" else "stopped")
                self._changed.notify_all()
            elif state in ACTIVE_STATES:
                folder.request(word)
            else:
                raise JobStateError(f"The job {job_id} is {state}; it cannot be asked to {word}.", _hint(state))

    def status(self, job_id: str) -> JobStatus:
        """What is known of a job. Raises UnknownJobError."""
        with self._changed:
            return self._status(self.folder(job_id))

    def statuses(self) -> tuple[JobStatus, ...]:
        """Every run that can be read: those in the queue, in its order, then the others, the newest first."""
        with self._changed:
            found = [status for folder in self._folders() if (status := self._status_or_none(folder)) is not None]
            order = {entry.job_id: place for place, entry in enumerate(self._queue)}
        queued = sorted((each for each in found if each.job_id in order), key=lambda each: order[each.job_id])
        others = [each for each in found if each.job_id not in order]
        return (*queued, *sorted(others, key=lambda each: (each.updated_at, each.job_id), reverse=True))

    def active(self) -> str | None:
        """The id of the job the thread works on."""
        active = self._active
        return active.job_id if active else None

    def folder(self, job_id: str) -> RunFolder:
        """The run folder of a job. Raises UnknownJobError, also for anything but a plain folder name."""
        runs = self.host.folders().runs
        is_plain = job_id not in ("", ".", "..") and not any(sign in job_id for sign in "/\\:\0")
        if not is_plain or not (runs / job_id / "job.json").is_file():
            raise UnknownJobError(f"There is no job {job_id!r}.", "Look at the list of jobs.")
        return RunFolder(runs / job_id)

    def events(self, job_id: str, after: int = 0) -> list[Event]:
        """The events of a job with a number above `after`. Raises UnknownJobError."""
        with self._changed:
            return self._log(self.folder(job_id)).events(after)

    def delete_results(self, job_id: str, keep_step: int) -> list[Path]:
        """Keep the result after `keep_step` steps; delete the run's other ones and their cards, and return them.

        A file that this run did not write, or another run wrote since, stays. Raises ConfigError for a step without
        a result, JobStateError while the job is active or queued, OutputError when a file cannot be deleted.
        """
        with self._changed:
            folder, status = self.folder(job_id), self._at_rest(job_id, "Its results can be deleted when it has ended.")
            others = [other for other in self._folders() if other.path != folder.path]
            return delete_other_results(folder, status.results, keep_step, others)

    def forget(self, job_id: str) -> None:
        """Delete the run folder of a job; its results stay. Raises JobStateError while it is active or queued."""
        with self._changed:
            folder = self.folder(job_id)
            self._at_rest(job_id, "Stop it first.")
            delete_run(folder)
            self._logs.pop(folder.path, None)
            self._ends.pop(folder.path, None)

    def wait_idle(self, timeout_seconds: float) -> bool:
        """Wait until nothing is worked on or queued; False when that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._active is None and not self._queue, timeout_seconds)

    def _enqueue(self, entry: _Queued) -> None:
        self._queue.append(entry)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="train-studio-jobs", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _refuse_name_in_queue(self, config: JobConfig) -> None:
        """Two waiting jobs must not write the same file: the second would fail hours later."""
        output = _output(config)
        if output.overwrite:
            return
        folders = [entry.folder for entry in self._queue] + ([self._active.folder] if self._active else [])
        for folder in folders:
            other = folder.config()
            if (other.name, Path(_output(other).folder)) == (config.name, Path(output.folder)):
                raise OutputError(
                    f"The job {folder.job_id}, which is not finished yet, will write {config.name} in the same folder.",
                    "Choose another name, or allow overwriting.",
                )

    def _folders(self) -> list[RunFolder]:
        runs = self.host.folders().runs
        return [RunFolder(file.parent) for file in runs.glob("*/job.json")]

    def _status_or_none(self, folder: RunFolder) -> JobStatus | None:
        try:
            return self._status(folder)
        except (ExtensionError, OSError, ValueError) as error:
            if folder.path not in self._unreadable:
                logger.warning("The run %s cannot be read and is left out: %s", folder.path, error)
                self._unreadable.add(folder.path)
            return None

    def _log(self, folder: RunFolder) -> EventLog:
        log = self._logs.get(folder.path)
        if log is None:
            log = EventLog(folder.event_file, folder.job_id, folder.config())
            self._logs[folder.path] = log
        log.refresh()
        return log

    def _status(self, folder: RunFolder) -> JobStatus:
        told = self._log(folder).status(self._ends.get(folder.path))
        state = self._state(folder, told)
        results = tuple(result for result in told.results if Path(result.path).exists())
        return dataclasses.replace(
            told,
            state=state,
            results=results,
            max_train_steps=self._asked_steps(folder.job_id) or told.max_train_steps,
            updated_at=told.updated_at or (folder.path / "job.json").stat().st_mtime,
            version=(told.version * MAX_RESULTS + len(results)) * len(STATES) + STATES.index(state),
        )

    def _state(self, folder: RunFolder, told: JobStatus) -> str:
        """The state as the queue, the thread and the lock of the run know it, where its events cannot."""
        first, _ = states_at_work(told.method)
        if self._active is not None and self._active.job_id == folder.job_id:
            return told.state if told.version > self._active.first_sequence else first
        if any(entry.job_id == folder.job_id for entry in self._queue):
            return "queued"
        if told.state not in ("queued", *ACTIVE_STATES):
            return told.state
        if not is_locked(folder.lock_file):
            is_made = told.is_tool and any(Path(saved.path).exists() for saved in told.results)
            return "completed" if is_made else "interrupted"
        return told.state if told.state in ACTIVE_STATES else first

    def _asked_steps(self, job_id: str) -> int | None:
        return next((entry.max_train_steps for entry in self._queue if entry.job_id == job_id), None)

    def _at_rest(self, job_id: str, hint: str) -> JobStatus:
        status = self.status(job_id)
        if self.active() == job_id or status.is_active or status.state == "queued":
            raise JobStateError(f"The job {job_id} is {status.state}.", hint)
        return status

    def _note_never_started(self, folder: RunFolder, reason: str) -> None:
        """A run without a story was taken out of the queue; one with a story keeps its last state."""
        if self._log(folder).last_sequence == 0:
            self._append(folder, JobFinished(reason=reason, step=0, path=""))

    def _append(self, folder: RunFolder, event: Event) -> None:
        """Write an event on behalf of a job that does not run; a full disk does not hide it from the page."""
        sequence = folder.last_sequence() + 1
        stamped = dataclasses.replace(event, job_id=folder.job_id, sequence=sequence, time=time.time())
        self._ends[folder.path] = stamped
        try:
            with closing(JsonlSink(folder.event_file)) as sink:
                sink(stamped)
        except OSError:
            logger.exception("The end of job %s could not be written.", folder.job_id)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue))
                entry = self._queue.pop(0)
                self._ends.pop(entry.folder.path, None)
                active = self._active = _Active(entry.folder, entry.first_sequence)
                self._changed.notify_all()
            try:
                self._do(active, entry.max_train_steps)
            except Exception:
                logger.exception("How job %s ended could not be noted.", entry.job_id)
            finally:
                with self._changed:
                    self._active = None
                    self._changed.notify_all()

    def _do(self, active: _Active, max_train_steps: int | None) -> None:
        """Work on one job to its end, whatever that is. Nothing that happens in a job ends the thread."""
        folder = active.folder

        def keep_end(event: Event) -> None:
            """For the case that the disk is too full to write it."""
            if isinstance(event, (JobFinished, JobFailed)):
                self._ends[folder.path] = event

        try:
            resume(
                folder, active.control, (keep_end,), max_train_steps=max_train_steps, surroundings=self.host
            )  # fmt: skip
        except ExtensionError as error:
            logger.error("Job %s failed: %s", folder.job_id, error)
            self._note_failure(folder, error)
        except BaseException as error:
            logger.exception("Job %s failed.", folder.job_id)
            self._note_failure(folder, error)

    def _note_failure(self, folder: RunFolder, error: BaseException) -> None:
        """Errors before the first event have no event of their own yet. A run of another process is left alone."""
        with self._changed:
            if not isinstance(self._ends.get(folder.path), JobFailed) and not is_locked(folder.lock_file):
                self._append(folder, failure_event(error))


def _output(config: JobConfig) -> ToolConfig | OutputConfig:
    """The settings that say where the result goes."""
    return config if isinstance(config, ToolConfig) else config.output


def _no_steps(status: JobStatus) -> str:
    accepted = ", ".join(word for word in REQUESTS if word not in TRAINING_REQUESTS)
    return f"'{TOOLS[status.method].title}' has no steps. Accepted are {accepted}"


def _hint(state: str) -> str:
    return "It starts when the jobs before it have ended." if state == "queued" else "Only a running job can be asked."
