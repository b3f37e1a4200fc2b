"""The folder of a run: everything needed to look at it and to resume it.

job.json       the settings, defaults filled in; with the key "tool" those of a tool, else of a training
events.jsonl   every event, in order
results.txt    the result files that are this run's own
run.lock       held by the process that works on the run
state/         what a crash is resumed from
previews/      one picture a step and prompt, and grid.png
requests/      files another process makes: save, preview, pause, resume, stop, discard
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config.job import TrainJobConfig
from ..config.tools import JobConfig, dump_job, kind_of, load_job
from ..control import JobControl
from ..errors import ExtensionError, OutputError
from ..events import Event, event_from_json

REQUESTS = ("save", "preview", "pause", "resume", "stop", "discard")


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run."""

    path: Path

    @property
    def job_id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def state(self) -> Path:
        """Folder of the states."""
        return self.path / "state"

    @property
    def previews(self) -> Path:
        """Folder of the preview pictures."""
        return self.path / "previews"

    @property
    def requests(self) -> Path:
        """Folder of the requests of other processes."""
        return self.path / "requests"

    @property
    def lock_file(self) -> Path:
        """Held while the run is worked on; see jobs/lock.py."""
        return self.path / "run.lock"

    @property
    def event_file(self) -> Path:
        """The log of events."""
        return self.path / "events.jsonl"

    def config(self) -> JobConfig:
        """The settings the run was started with: of a training or a tool. Raises ConfigError or ExtensionError."""
        try:
            return load_job(json.loads((self.path / "job.json").read_text(encoding="utf-8")))
        except OSError as error:
            raise ExtensionError(f"{self.path} is not a run folder: {error}.", "Name a folder below runs/.") from error

    def training(self) -> TrainJobConfig:
        """The settings of a training. Raises ConfigError or ExtensionError, the latter for the run of a tool too."""
        config = self.config()
        if isinstance(config, TrainJobConfig):
            return config
        raise ExtensionError(f"{self.path} is the run of '{kind_of(config)}', no training.", "Name that of a training.")

    def write_config(self, config: JobConfig) -> None:
        """Write job.json."""
        text = json.dumps(dump_job(config), indent=2, ensure_ascii=False)
        temporary = self.path / f"job.json.tmp-{os.getpid()}"
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, self.path / "job.json")

    def events(self) -> Iterator[Event]:
        """Every event so far; a line cut off by a crash is left out."""
        if not self.event_file.exists():
            return
        for line in self.event_file.read_bytes().split(b"\n"):
            event = read_event(line)
            if event is not None:
                yield event

    def last_sequence(self) -> int:
        """The number of the newest event; 0 when there is none."""
        return max((event.sequence for event in self.events()), default=0)

    def request(self, word: str) -> None:
        """Ask a run in another process for `word`, one of `REQUESTS`."""
        self.requests.mkdir(exist_ok=True)
        (self.requests / word).touch()

    def take_requests(self, control: JobControl) -> None:
        """Hand the requests of other processes to `control`; to be used with `JobControl.add_source`."""
        if not self.requests.is_dir():
            return
        for word in REQUESTS:
            try:
                (self.requests / word).unlink()
            except FileNotFoundError:
                continue
            make_request(word, control)


def make_request(word: str, control: JobControl) -> None:
    """Ask `control` for `word`, one of `REQUESTS`."""
    _REQUEST_CALLS[word](control)


_REQUEST_CALLS = {
    "save": JobControl.request_save,
    "preview": JobControl.request_preview,
    "pause": JobControl.pause,
    "resume": JobControl.resume,
    "stop": JobControl.request_stop,
    "discard": lambda control: control.request_stop(discard=True),
}


def read_event(line: bytes) -> Event | None:
    """One line of the log; None when a crash cut it off, or a later version wrote what this one does not know."""
    try:
        return event_from_json(json.loads(line))
    except (ValueError, KeyError, TypeError):
        return None


def create_run_folder(runs: Path, config: JobConfig) -> RunFolder:
    """A new folder `<runs>/<name>`, or `<name>-2`, `-3`, ... Raises OutputError when it cannot be made."""
    for number in range(1, 10_000):
        path = runs / (config.name if number == 1 else f"{config.name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise OutputError(
                f"The run folder {path} cannot be made: {error}.", "Choose another runs_folder."
            ) from error
        folder = RunFolder(path)
        folder.write_config(config)
        return folder
    raise OutputError(f"{runs} holds 10000 runs called {config.name}.", "Choose another name.")
