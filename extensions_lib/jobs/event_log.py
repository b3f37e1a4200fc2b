"""Reading a growing events.jsonl: what is new since the last look, and the status it adds up to."""

from __future__ import annotations

import bisect
import copy
from pathlib import Path

from ..config.tools import JobConfig
from ..events import Event
from .status import JobStatus, StatusFold
from .store import read_event


class EventLog:
    """The events of one run as far as they are on the disk. Not thread-safe."""

    def __init__(self, path: Path, job_id: str, config: JobConfig) -> None:
        self._path, self._job_id, self._config = path, job_id, config
        self._clear()

    def _clear(self) -> None:
        self._fold = StatusFold(self._job_id, self._config)
        self._num_bytes = 0
        self._sequences: list[int] = []
        self._offsets: list[int] = []

    def refresh(self) -> None:
        """Take in the lines that were completed since the last call; a file that became shorter is read anew."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size < self._num_bytes:
            self._clear()
        if size == self._num_bytes:
            return
        for offset, line in _lines(self._path, self._num_bytes):
            self._num_bytes = offset + len(line)
            event = read_event(line)
            if event is not None:
                self._fold.apply(event)
                self._sequences.append(event.sequence)
                self._offsets.append(offset)

    @property
    def last_sequence(self) -> int:
        """The number of the newest event; 0 before the first."""
        return self._sequences[-1] if self._sequences else 0

    def status(self, unwritten: Event | None = None) -> JobStatus:
        """The status after all events, and after one that could not be written, as on a full disk."""
        fold = self._fold
        if unwritten is not None and unwritten.sequence > self.last_sequence:
            fold = copy.copy(fold)
            fold.apply(unwritten)
        return fold.status()

    def events(self, after: int) -> list[Event]:
        """Those with a number above `after`."""
        first = bisect.bisect_right(self._sequences, after)
        if first == len(self._sequences):
            return []
        lines = (line for _, line in _lines(self._path, self._offsets[first]))
        return [event for event in map(read_event, lines) if event is not None]


def _lines(path: Path, offset: int) -> list[tuple[int, bytes]]:
    """The complete lines from `offset` on, each with where it begins."""
    found = []
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if line.endswith(b"\n"):
                found.append((offset, line))
            offset += len(line)
    return found
