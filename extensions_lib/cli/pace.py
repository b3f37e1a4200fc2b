"""How fast a training runs, how its loss goes, and when it will be done."""

from __future__ import annotations

import math

LOSS_DECAY = 0.95
SECONDS_DECAY = 0.9


class Running:
    """An exponential moving average that is unbiased from the first value on. NaN before it."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float) -> None:
        """Count one more value."""
        self._sum = self._decay * self._sum + (1 - self._decay) * value
        self._weight = self._decay * self._weight + (1 - self._decay)

    @property
    def mean(self) -> float:
        """The average so far."""
        return self._sum / self._weight if self._weight else math.nan


class Pace:
    """Counts steps from `first_step` to `last_step`; `now` and all times are seconds of one clock."""

    def __init__(self, first_step: int, last_step: int, now: float) -> None:
        self.last_step = last_step
        self._first_step = first_step
        self._step = first_step
        self._started_at = now
        self._paused_at: float | None = None
        self._loss = Running(LOSS_DECAY)
        self._seconds = Running(SECONDS_DECAY)

    def add(self, step: int, loss: float, seconds: float) -> None:
        """Step `step` is done; it took `seconds`."""
        self._step = step
        self._loss.add(loss)
        self._seconds.add(seconds)

    def set_paused(self, paused: bool, now: float) -> None:
        """Time in a pause counts neither as elapsed nor in the estimate."""
        if paused and self._paused_at is None:
            self._paused_at = now
        elif not paused and self._paused_at is not None:
            self._started_at += now - self._paused_at
            self._paused_at = None

    @property
    def loss(self) -> float:
        """The smoothed loss."""
        return self._loss.mean

    def speed(self) -> str:
        """'2.50 steps/s', or '4.00 s/step' when slower than one a second."""
        seconds = self._seconds.mean
        return f"{1 / seconds:.2f} steps/s" if 0 < seconds < 1 else f"{seconds:.2f} s/step"

    def elapsed_seconds(self, now: float) -> float:
        """Since the start, without pauses."""
        return (now if self._paused_at is None else self._paused_at) - self._started_at

    def remaining_seconds(self, now: float) -> float:
        """Until the last step, saves and previews as frequent as before included."""
        done = max(self._step - self._first_step, 1)
        return self.elapsed_seconds(now) / done * (self.last_step - self._step)


def duration(seconds: float) -> str:
    """'0:07', '12:30' or '1:02:03'."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
