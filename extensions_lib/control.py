"""What a running job can be asked to do. Requests may come from any thread; the job's own thread reads them at step
boundaries and in every long phase."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .errors import JobStopped


class JobControl:
    """The requests made to one job: stop, save, preview, pause. Thread-safe."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._discard = threading.Event()
        self._save = threading.Event()
        self._preview = threading.Event()
        self._running = threading.Event()
        self._running.set()
        self._sources: list[Callable[[JobControl], None]] = []

    def add_source(self, source: Callable[[JobControl], None]) -> None:
        """`source` is asked at every boundary and may make requests, for instance from a file another process wrote."""
        self._sources.append(source)

    def remove_source(self, source: Callable[[JobControl], None]) -> None:
        """Ask `source` no more."""
        self._sources.remove(source)

    def request_stop(self, discard: bool = False) -> None:
        """End at the next boundary; `discard` ends without saving a result. A paused job goes on to its end."""
        if discard:
            self._discard.set()
        self._stop.set()
        self._running.set()

    def request_save(self) -> None:
        """Write the result file after the current step."""
        self._save.set()

    def request_preview(self) -> None:
        """Draw the preview prompts after the current step."""
        self._preview.set()

    def pause(self) -> None:
        """Hold at the next boundary until `resume`."""
        if not self._stop.is_set():
            self._running.clear()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._running.set()

    @property
    def stop_requested(self) -> bool:
        """True from the first `request_stop` on. For the job's own thread only: the sources are asked."""
        self._ask_sources()
        return self._stop.is_set()

    @property
    def discard_requested(self) -> bool:
        """True when the stop should leave no result."""
        return self._discard.is_set()

    @property
    def paused(self) -> bool:
        """True between `pause` and `resume`. For the job's own thread only: the sources are asked."""
        self._ask_sources()
        return self.pause_requested

    def take_save(self) -> bool:
        """Whether a save was asked for since the last call."""
        return _take(self._save)

    def take_preview(self) -> bool:
        """Whether a preview was asked for since the last call."""
        return _take(self._preview)

    @property
    def pause_requested(self) -> bool:
        """True between `pause` and `resume`, without asking the sources."""
        return not self._running.is_set()

    def wait_while_paused(self, poll_seconds: float = 0.1) -> None:
        """Return at once, or when `resume` or `request_stop` is called."""
        while self.paused:
            self._running.wait(timeout=poll_seconds)

    def boundary(self) -> None:
        """To be called between the items of a long phase: waits while paused, raises JobStopped when asked to stop."""
        self.wait_while_paused()
        if self.stop_requested:
            raise JobStopped("Stopped before the first step.", "Nothing was trained; what was cached is kept.")

    def _ask_sources(self) -> None:
        for source in self._sources:
            source(self)


def _take(flag: threading.Event) -> bool:
    was_set = flag.is_set()
    flag.clear()
    return was_set
