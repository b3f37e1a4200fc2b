"""Who waits for the host's queue lock: nobody, only token counters, or somebody who needs the device."""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

# The handlers behind the number beside the prompt. They tokenize, on the CPU, and every pause in typing calls them.
TOKEN_COUNTERS = ("update_token_counter", "update_negative_prompt_token_counter")


class Waiting(enum.Enum):
    """What those who wait need. UNKNOWN: the lock does not tell who waits."""

    NOBODY = enum.auto()
    FOR_COUNTS = enum.auto()
    FOR_DEVICE = enum.auto()
    UNKNOWN = enum.auto()


def who_waits(lock: Any) -> Waiting:
    """What the threads that wait for the host's lock want to do. Anybody not recognised needs the device."""
    pending = getattr(lock, "_pending_threads", None)
    if pending is None:
        return Waiting.UNKNOWN
    num_pending = len(pending)
    # One that was let in and was too slow to take the lock is not pending any more, but still in `acquire`.
    callers = list(_callers_waiting_for(lock))
    if num_pending == 0 and not callers:
        return Waiting.NOBODY
    are_known = len(callers) >= num_pending and all(_handler_name(frame) in TOKEN_COUNTERS for frame in callers)
    return Waiting.FOR_COUNTS if are_known else Waiting.FOR_DEVICE


def _callers_waiting_for(lock: Any) -> Iterator[FrameType]:
    """The frames that called `lock.acquire()` and are still in it."""
    acquire = getattr(type(lock).acquire, "__code__", None)
    for thread_frame in sys._current_frames().values():
        frame: FrameType | None = thread_frame
        while frame is not None:
            if frame.f_code is acquire and frame.f_locals.get("self") is lock and frame.f_back is not None:
                yield frame.f_back
            frame = frame.f_back


def _handler_name(frame: FrameType) -> str:
    """The name of the handler that the host's `wrap_queued_call` is about to run."""
    return getattr(frame.f_locals.get("func"), "__name__", "")
