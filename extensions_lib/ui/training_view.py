"""The page of a training: its figures, its loss, its previews, and what can be asked of it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING
from urllib.parse import quote

from ..jobs.status import JobStatus
from .chart import loss_chart, smoothed, smoothing_window
from .markup import (
    ask_button,
    attributes,
    duration,
    extended_steps,
    job_button,
    load_button,
    part,
    progress_bar,
)
from .pictures import picture_parts

if TYPE_CHECKING:
    from ..jobs.store import RunFolder

DISCARD_QUESTION = "Stop without saving a result? Results that were saved before stay."


def training_parts(status: JobStatus, messages: str, folder: RunFolder, has_prompt: bool) -> str:
    """The parts of the page below its head; `messages` stand between the progress and the buttons."""
    return (
        part("progress", _progress(status))
        + messages
        + part("actions", _actions(status))
        + part("chart", loss_chart(status.curve, status.validation, status.max_train_steps), "Loss")
        + picture_parts(status, folder, has_prompt)
    )


def _progress(status: JobStatus) -> str:
    if status.state == "queued":
        return '<p class="ts-note">It starts by itself when the jobs before it have ended.</p>'
    if status.state == "preparing":
        known = status.phase_total > 0
        text = (status.phase or "getting ready").capitalize()
        count = f": {status.phase_done} of {status.phase_total}" if known else ""
        bar = progress_bar(status.phase_done if known else None, status.phase_total, text + count)
        return f'{bar}<p class="ts-figures">{escape(text + count)}</p>'
    text = f"step {status.step} of {status.max_train_steps}"
    html = progress_bar(status.step, status.max_train_steps, text) + _figures(status)
    if status.state == "training" and status.loss is None:
        html += '<p class="ts-note">Pictures of the untrained model are drawn before the first step.</p>'
    return html


def _figures(status: JobStatus) -> str:
    figures = [("Step", f"{status.step} of {status.max_train_steps}")]
    if status.is_active and status.eta_seconds is not None:
        figures.append(
            ("Time left", duration(status.eta_seconds) + (" once resumed" if status.state == "paused" else ""))
        )
    if status.seconds_per_step is not None:
        figures.append(("Pace", f"{status.seconds_per_step:.3g} s per step"))
    if status.loss is not None:
        window = smoothing_window(status.max_train_steps)
        smooth = smoothed((loss for _, loss in status.curve[-10 * window :]), window)
        shown = f" (smoothed {smooth[-1]:.4f})" if smooth else ""
        figures.append(("Loss", f"{status.loss:.4f}{shown}"))
    if status.learning_rate is not None:
        figures.append(("Learning rate", f"{status.learning_rate:.2e}" if status.learning_rate else "0"))
    if status.peak_memory_gib:
        figures.append(("Memory, peak", f"{status.peak_memory_gib:.1f} GiB"))
    if status.num_examples:
        figures.append(("Pictures", str(status.num_examples)))
    if status.num_parameters:
        figures.append(("Trained parameters", f"{status.num_parameters:,}"))
    return '<dl class="ts-figures">' + "".join(f"<div><dt>{n}</dt><dd>{v}</dd></div>" for n, v in figures) + "</dl>"


def _actions(status: JobStatus) -> str:
    job_id, state = status.job_id, status.state
    if state == "queued":
        html = ask_button("Take out of the queue", job_id, "stop")
    elif state == "preparing":
        html = ask_button("Stop", job_id, "stop", style="stop")
    elif state in ("training", "paused"):
        html = _running_actions(job_id, is_paused=state == "paused")
    else:
        html = _continue_form(status) + load_button(job_id, "Load these settings")
    return f'<div class="ts-buttons">{html}</div>'


def _running_actions(job_id: str, *, is_paused: bool) -> str:
    if is_paused:
        first = ask_button("Resume", job_id, "resume", style="primary")
    else:
        first = (
            ask_button("Preview now", job_id, "preview")
            + ask_button("Save now", job_id, "save")
            + ask_button("Pause", job_id, "pause", title="Holds after this step; the state is kept")
        )
    return (
        first
        + ask_button("Stop and save", job_id, "stop", style="stop", title="Ends after this step and writes the result")
        + ask_button("Stop and discard", job_id, "discard", style="stop", confirm=DISCARD_QUESTION)
    )


def _continue_form(status: JobStatus) -> str:
    """Train on from where the run ended, to a length that can be changed."""
    field = attributes(
        type="number", name="max_train_steps", value=extended_steps(status), min=status.step + 1, step=1,
        data_ts_keep=f"steps-{quote(status.job_id, safe='')}",
    )  # fmt: skip
    go = job_button("Continue training", status.job_id, "continue", {}, style="primary")
    return f'<span class="ts-form">{go}<label>to step <input{field}></label></span>'
