"""The progress of a job on a terminal or in a log: the one place that writes to the screen.

On a terminal one line rewrites itself; elsewhere a plain line appears every 5 % of the steps or every 10 seconds.
Everything worth keeping (saved, warning, finished, ...) gets a line of its own in both.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TextIO

from ..events import (
    CheckpointSaved,
    Event,
    JobFailed,
    JobFinished,
    PauseChanged,
    PhaseProgress,
    PreviewReady,
    StepCompleted,
    TrainingStarted,
    ValidationMeasured,
    Warned,
)
from .pace import Pace, duration

BAR_LENGTH = 20
REDRAW_SECONDS = 0.1
LOG_SECONDS = 10.0
LOG_FRACTION = 0.05


class Screen:
    """A text stream with at most one line at the bottom that can be replaced. Signs it cannot show become '?'."""

    def __init__(self, stream: TextIO, num_columns: Callable[[], int]) -> None:
        self._stream = stream
        self._num_columns = num_columns
        self._open_length = 0

    def replace(self, text: str) -> None:
        """Show `text` in place of the open line, cut to the width of the terminal."""
        shown = text[: max(self._num_columns() - 1, 1)]
        self._write("\r" + shown + " " * (self._open_length - len(shown)))
        self._open_length = len(shown)

    def line(self, text: str) -> None:
        """Write `text` as a line of its own; the open line is wiped."""
        self.wipe()
        self._write(text + "\n")

    def wipe(self) -> None:
        """Remove the open line."""
        if self._open_length:
            self._write("\r" + " " * self._open_length + "\r")
            self._open_length = 0

    def keep(self) -> None:
        """Leave the open line as it is and go on below it."""
        if self._open_length:
            self._write("\n")
            self._open_length = 0

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()


class ConsoleDisplay:
    """Listens to the events of one job and shows them; `close` when no more will come.

    `clock` gives seconds; `is_terminal` and `num_columns` are asked of `stream` and the system when not given.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        clock: Callable[[], float] = time.monotonic,
        is_terminal: bool | None = None,
        num_columns: Callable[[], int] | None = None,
    ) -> None:
        self._clock = clock
        self._is_terminal = stream.isatty() if is_terminal is None else is_terminal
        self._screen = Screen(stream, num_columns or (lambda: shutil.get_terminal_size().columns))
        self._pace = Pace(first_step=0, last_step=0, now=clock())
        self._progress_text = ""
        self._phase = ""
        self._has_steps = False
        self._shown_at = float("-inf")
        self._shown_fraction = 0.0
        self._shows: dict[type[Event], Callable[..., None]] = {
            PhaseProgress: self._show_phase,
            TrainingStarted: self._show_started,
            StepCompleted: self._show_step,
            PauseChanged: self._show_pause,
            JobFinished: self._show_finished,
            JobFailed: self._show_failed,
        }

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if type(event) in self._shows:
            self._shows[type(event)](event)
            return
        self._say(message(event))

    def close(self) -> None:
        """Leave the progress line on the screen and go to a new line."""
        self._screen.keep()
        self._progress_text = ""

    def _say(self, text: str) -> None:
        """A line of its own above the progress line."""
        self._screen.line(text)
        if self._is_terminal and self._progress_text:
            self._screen.replace(self._progress_text)

    def _progress(self, text: str, fraction: float) -> None:
        """Show the progress, unless the last showing was just now."""
        now, complete = self._clock(), fraction >= 1
        self._progress_text = text
        if self._is_terminal:
            if complete or now - self._shown_at >= REDRAW_SECONDS:
                self._screen.replace(text)
                self._shown_at = now
        elif complete or now - self._shown_at >= LOG_SECONDS or fraction - self._shown_fraction >= LOG_FRACTION - 1e-9:
            self._screen.line(text)
            self._shown_at, self._shown_fraction = now, fraction

    def _start_progress(self) -> None:
        self.close()
        self._shown_at, self._shown_fraction = float("-inf"), 0.0

    def _show_phase(self, event: PhaseProgress) -> None:
        if event.phase != self._phase:
            self._start_progress()
            self._phase = event.phase
        fraction = event.done / event.total if event.total else 1.0
        marks = f"{bar(fraction)} " if self._is_terminal else ""
        self._progress(f"{event.phase} {marks}{event.done}/{event.total}", fraction)

    def _show_started(self, event: TrainingStarted) -> None:
        self._start_progress()
        self._phase = ""
        self._has_steps = True
        self._pace = Pace(first_step=event.first_step, last_step=event.max_train_steps, now=self._clock())
        self._shown_at = self._clock()
        self._shown_fraction = event.first_step / max(event.max_train_steps, 1)
        start = f", going on from step {event.first_step}" if event.first_step else ""
        self._say(
            f"training {event.name} ({event.method}): {event.max_train_steps} steps{start}, "
            f"{event.num_examples} pictures, {event.num_parameters:,} numbers to learn\nfolder: {event.run_folder}"
        )

    def _show_step(self, event: StepCompleted) -> None:
        self._pace.add(event.step, event.loss, event.seconds)
        fraction = event.step / max(self._pace.last_step, 1)
        marks = f"{bar(fraction)} " if self._is_terminal else ""
        parts = [
            f"{fraction:4.0%} {marks}{event.step}/{self._pace.last_step}",
            f"loss {self._pace.loss:.4f}",
            f"lr {event.learning_rate:.2e}",
            self._pace.speed(),
            f"ETA {duration(self._pace.remaining_seconds(self._clock()))}",
        ]
        if event.peak_memory_gib:
            parts.append(f"peak {event.peak_memory_gib:.1f} GiB")
        self._progress("  ".join(parts), fraction)

    def _show_pause(self, event: PauseChanged) -> None:
        self._pace.set_paused(event.paused, self._clock())
        at, origin = (f" at step {event.step}", f" from step {event.step}") if self._has_steps else ("", "")
        self._say(f"paused{at}" if event.paused else f"going on{origin}")

    def _show_finished(self, event: JobFinished) -> None:
        self.close()
        result = f"; result: {event.path}" if event.path else "; no result was written"
        elapsed = duration(self._pace.elapsed_seconds(self._clock()))
        at = f" at step {event.step}" if self._has_steps else ""
        self._say(f"{event.reason}{at} in {elapsed}{result}")

    def _show_failed(self, event: JobFailed) -> None:
        self.close()
        self._say(f"failed: {event.message}" + (f"\n  {event.hint}" if event.hint else ""))


def message(event: Event) -> str:
    """The line for an event that is not progress."""
    if isinstance(event, CheckpointSaved):
        fits = f" (fits {event.num_modules} modules)" if event.num_modules else ""
        text = f"\n{event.text}" if event.text else ""
        at = f"step {event.step}: " if event.step else ""
        return f"{at}saved {event.path}{fits}{text}"
    if isinstance(event, PreviewReady):
        return f"step {event.step}: preview {event.path}"
    if isinstance(event, ValidationMeasured):
        return f"step {event.step}: validation loss {event.loss:.4f}"
    if isinstance(event, Warned):
        return f"warning: {event.text}"
    return str(event.to_json())


def bar(fraction: float) -> str:
    """'[#####---------------]' for a quarter; in ASCII, because not every console has more."""
    filled = int(min(max(fraction, 0.0), 1.0) * BAR_LENGTH)
    return "[" + "#" * filled + "-" * (BAR_LENGTH - filled) + "]"
