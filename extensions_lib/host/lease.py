"""The host's queue lock, held while a job computes and lent to whoever waits, at the job's own boundaries.

Everything in the host that uses its model takes that lock: pictures, the API, another checkpoint, and the token
counters beside the prompt. It cannot be taken twice by one thread, and nobody can wait for it with a time limit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from ..ports import Parked
from .waiters import Waiting, who_waits

LOADING_POLL_SECONDS = 0.1
# How long a waiter that is let in may need to take the lock. One that is done before our look costs the whole time.
HANDOVER_SECONDS = 0.1
HANDOVER_POLL_SECONDS = 0.001
# A lock that does not tell who waits is released this often.
UNASKED_RELEASE_SECONDS = 2.0


class QueueLock(Protocol):
    """The host's FIFO lock."""

    def acquire(self) -> bool: ...

    def release(self) -> None: ...


class HostMemory(Protocol):
    """The device's memory that the host's model takes. Called by the thread that has the queue lock."""

    def is_loading(self) -> bool:
        """Whether the host is loading a checkpoint now, which it does at its start without the queue lock."""

    def free(self) -> None:
        """Move the host's models off the device. Raises HostError."""

    def restore(self) -> None:
        """Put the host's model where it was. Raises HostError."""


class Lease:
    """Holds the queue lock for one job at a time and lends it in between."""

    def __init__(self, lock: QueueLock, memory: HostMemory, on_lend: Callable[[], None] = lambda: None) -> None:
        """`on_lend` is called, with the lock still held, before it is given to others and at the end."""
        self._lock = lock
        self._memory = memory
        self._on_lend = on_lend
        self._owner: int | None = None
        self._is_lent = False
        self._is_model_away = False
        self._lent_at = 0.0

    @property
    def is_held(self) -> bool:
        """Whether the calling thread has the lock through us now."""
        return self._owner == threading.get_ident() and not self._is_lent

    @property
    def is_lent(self) -> bool:
        """Whether a job is under way and somebody else computes meanwhile."""
        return self._owner is not None and self._is_lent

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Within the context this thread has the lock and the device; the host's model is off it.

        Entering waits for running generations and for the host's first load: until then the host makes new modules
        without weights, whoever asks for them. Raises HostError.
        """
        self._take_when_loaded()
        self._owner, self._is_lent, self._lent_at = threading.get_ident(), False, time.monotonic()
        try:
            self._free()
            yield
        finally:
            try:
                self._on_lend()
                self._restore()
            finally:
                self._owner = None
                self._lock.release()

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Within the context this thread has the lock and everything stays as it is: for questions to the host."""
        if self.is_held:
            yield
            return
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def lend(self, parked: Parked) -> None:
        """Let those who wait compute; returns when they are done and this thread has lock and device again.

        They get the device's memory unless all they want is a token count. Raises HostError.
        """
        waiting = who_waits(self._lock)
        if waiting is Waiting.NOBODY or (waiting is Waiting.UNKNOWN and not self._is_time_to_release()):
            return
        self._on_lend()
        if waiting is Waiting.FOR_DEVICE:
            with parked():
                self._restore()
                self._give_way()
                self._free()
        else:
            self._give_way()
            if not self._is_model_away:
                self._free()

    def make_room(self) -> None:
        """Called by a generation when it has the lock: one that slipped in between token counters needs its model."""
        if self.is_lent and self._is_model_away:
            self._restore()

    def _free(self) -> None:
        self._is_model_away = True
        self._memory.free()

    def _restore(self) -> None:
        self._memory.restore()
        self._is_model_away = False

    def _is_time_to_release(self) -> bool:
        return time.monotonic() - self._lent_at >= UNASKED_RELEASE_SECONDS

    def _take_when_loaded(self) -> None:
        self._lock.acquire()
        while self._memory.is_loading():
            self._lock.release()
            time.sleep(LOADING_POLL_SECONDS)
            self._lock.acquire()

    def _give_way(self) -> None:
        """Release, see that the next one takes the lock, and queue up behind those who wait."""
        self._is_lent = True
        self._lock.release()
        try:
            self._wait_for_handover()
        finally:
            self._lock.acquire()
            self._is_lent = False
            self._lent_at = time.monotonic()

    def _wait_for_handover(self) -> None:
        inner = getattr(self._lock, "_lock", None)
        deadline = time.monotonic() + HANDOVER_SECONDS
        while time.monotonic() < deadline:
            time.sleep(HANDOVER_POLL_SECONDS)
            if inner is not None and inner.locked():
                return
