"""Ctrl-C as a request to the job."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..control import JobControl

_SAVING = "Stopping after this step and saving"


@contextmanager
def interruptible(what: str = _SAVING) -> Iterator[JobControl]:
    """Ctrl-C once asks the job to stop, and says `what` happens; a second time ends at once."""
    control = JobControl()

    def stop(number: int, frame: object) -> None:
        print(f"\n{what}; press Ctrl-C again to end at once.", file=sys.stderr)
        control.request_stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield control
    finally:
        signal.signal(signal.SIGINT, before)
