"""Listeners that keep events."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..events import CheckpointSaved, Event, JobFailed, JobFinished


class JsonlSink:
    """Appends every event to a file; saves and ends are forced to the disk at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        if path.stat().st_size and not _ends_with_newline(path):
            self._file.write("\n")

    def __call__(self, event: Event) -> None:
        """Write one line."""
        self._file.write(json.dumps(event.to_json(), ensure_ascii=False) + "\n")
        self._file.flush()
        if isinstance(event, (CheckpointSaved, JobFinished, JobFailed)):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
