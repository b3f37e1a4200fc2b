"""What a tool says while it works, and where it can be stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..control import JobControl
from ..errors import JobStopped, ModelError
from ..events import Event, PhaseProgress
from ..formats.hashes import file_sha256

Emit = Callable[[Event], object]

_MEGABYTE = 1 << 20


class Progress:
    """Counts one phase for the listeners, about a hundred times in all, and ends it when the job is asked to stop."""

    def __init__(self, phase: str, total: int, control: JobControl, emit: Emit) -> None:
        self._phase, self._total, self._control, self._emit = phase, total, control, emit
        self._done, self._told = 0, -1

    def advance(self, amount: int = 1) -> None:
        """Add to what is done. Waits while paused; raises JobStopped when asked to stop."""
        self._done += amount
        percent = 100 * self._done // max(self._total, 1)
        if percent > self._told:
            self._told = percent
            self._emit(PhaseProgress(phase=self._phase, done=self._done, total=self._total))
        self._control.wait_while_paused()
        if self._control.stop_requested:
            raise JobStopped("The job was stopped.", "Nothing was written.")


def hash_with_progress(path: Path, control: JobControl, emit: Emit) -> str:
    """The sha256 of a file, as a phase of its own. Raises JobStopped, ModelError."""
    try:
        return file_sha256(path, hash_progress(path, control, emit))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.", "Check the disk.") from error


def hash_progress(path: Path, control: JobControl, emit: Emit) -> Callable[[int], None]:
    """Told of bytes, counts in MiB."""
    progress = Progress(f"hash {path.name} (MiB)", path.stat().st_size // _MEGABYTE, control, emit)
    pending = 0

    def on_read(count: int) -> None:
        nonlocal pending
        pending += count
        if pending >= _MEGABYTE:
            progress.advance(pending // _MEGABYTE)
            pending %= _MEGABYTE

    return on_read
