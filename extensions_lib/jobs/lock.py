"""A run is trained by one process at a time: a lock of the operating system, which ends with the process."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import TrainingError

logger = logging.getLogger(__name__)

_HELD = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_TRIES, _WAIT_SECONDS = 5, 0.05  # `is_locked` of another process holds the lock for an instant


@contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Within the context this thread alone trains the run whose lock is `path`. Raises TrainingError when it is held.

    On a file system without locks the run is trained unlocked.
    """
    with path.open("a+b") as file:
        for left in reversed(range(_TRIES)):
            if _try_lock(file):
                break
            if not left:
                raise TrainingError(
                    f"The run {path.parent} is being worked on already, here or by another process.",
                    "Wait until it ends, or stop it first.",
                )
            time.sleep(_WAIT_SECONDS)
        try:
            yield
        finally:
            _unlock(file)


def is_locked(path: Path) -> bool:
    """Whether somebody trains the run whose lock is `path`."""
    try:
        with path.open("r+b") as file:
            if not _try_lock(file):
                return True
            _unlock(file)
    except OSError:
        return False
    return False


def _try_lock(file: BinaryIO) -> bool:
    """Take the lock without waiting; False when another holds it."""
    try:
        _take(file)
    except OSError as error:
        if error.errno in _HELD:
            return False
        logger.warning("%s cannot be locked: %s", file.name, error)
    return True


if os.name == "nt":
    import msvcrt

    def _take(file: BinaryIO) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def _unlock(file: BinaryIO) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _take(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
