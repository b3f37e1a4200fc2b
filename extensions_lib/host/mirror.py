"""The job in the host's own progress display, as far as /sdapi/v1/progress and the page's bar show it."""

from __future__ import annotations

import html
import time
from dataclasses import dataclass

from ..events import (
    Event,
    JobFailed,
    JobFinished,
    PhaseProgress,
    PreviewReady,
    StepCompleted,
    TrainingStarted,
)

JOB = "train-studio"


@dataclass
class _Shown:
    name: str = ""
    first_step: int = 0
    max_train_steps: int = 0
    started_at: float = 0.0
    text: str = ""
    step: int = 0


class ProgressMirror:
    """Writes the job into `shared.state`, which others may overwrite at any time; nothing is ever read from it."""

    def __init__(self) -> None:
        self._shown = _Shown()
        self._is_written = False

    def show(self, event: Event) -> None:
        """Take an event in and write the state. Only for the thread that has the queue lock."""
        shown = self._shown
        match event:
            case TrainingStarted():
                self._shown = _Shown(event.name, event.first_step, event.max_train_steps, time.time())
                self._shown.step, self._shown.text = event.first_step, f"{event.name}: begins"
            case PhaseProgress():
                self._shown = _Shown(text=f"{event.phase}: {event.done} of {event.total}")
            case StepCompleted():
                shown.step = event.step
                shown.text = f"{shown.name}: step {event.step} of {shown.max_train_steps}, loss {event.loss:.4f}"
            case PreviewReady():
                self._write()
                self._show_picture(event.path)
                return
            case JobFinished() | JobFailed():
                self.clear()
                return
            case _:
                return
        self._write()

    def clear(self) -> None:
        """Leave the state as the host leaves it after a job; nothing when we wrote nothing."""
        if not self._is_written:
            return
        from modules import shared

        state = shared.state
        state.job, state.job_count, state.job_no = "", 0, 0
        state.textinfo, state.current_image = None, None
        self._is_written = False

    def _write(self) -> None:
        """Counts start at the step a run was resumed from: the host derives the time left from them."""
        from modules import shared

        state, shown = shared.state, self._shown
        if not self._is_written:
            state.current_latent, state.current_image, state.time_start = None, None, shown.started_at or time.time()
            state.sampling_step, state.sampling_steps = 0, 0
        # -1 is the host's own "not known yet".
        state.job, state.job_count = JOB, shown.max_train_steps - shown.first_step or -1
        state.job_no = shown.step - shown.first_step
        state.textinfo = html.escape(shown.text)
        self._is_written = True

    def _show_picture(self, path: str) -> None:
        from modules import shared
        from PIL import Image

        with Image.open(path) as picture:
            shared.state.assign_current_image(picture.convert("RGB"))
