"""The page of a tool's job: how far it is, what it made, and what can be asked of it."""

from __future__ import annotations

from html import escape
from pathlib import Path

from ..config.artefacts import ARTEFACTS
from ..jobs.status import JobStatus, SavedResult
from ..preview.grid import picture_name
from .markup import (
    ask_button,
    attributes,
    job_button,
    load_button,
    part,
    picture_link,
    preview_url,
    progress_bar,
    said,
    use_button,
)

STOP_TEXT = "Ends soon; nothing is written"


def tool_parts(status: JobStatus, messages: str, has_prompt: bool) -> str:
    """The parts of the page below its head; `messages` stand between the progress and the buttons."""
    return (
        part("progress", _progress(status))
        + messages
        + part("actions", f'<div class="ts-buttons">{_actions(status)}</div>')
        + part("results", _sheet(status) + _results(status, has_prompt), "Result")
    )


def start_again(status: JobStatus, style: str = "") -> str:
    """The button that queues a job again whose result is not there; '' for one that has made it."""
    if status.results:
        return ""
    return job_button("Start again", status.job_id, "continue", {}, style=style, title="From the beginning")


def _progress(status: JobStatus) -> str:
    if status.state == "queued":
        return '<p class="ts-note">It starts by itself when the jobs before it have ended.</p>'
    if not status.is_active:
        text = "The file is not there any more." if status.state == "completed" else "Nothing was written."
        return "" if status.results else f'<p class="ts-note">{text}</p>'
    text = (status.phase or "getting ready").capitalize()
    known = status.phase_total > 0
    count = f": {status.phase_done} of {status.phase_total}" if known else ""
    bar = progress_bar(status.phase_done if known else None, status.phase_total, text + count)
    return f'{bar}<p class="ts-figures">{escape(text + count)}</p>'


def _actions(status: JobStatus) -> str:
    job_id = status.job_id
    if status.state == "queued":
        return ask_button("Take out of the queue", job_id, "stop")
    if not status.is_active:
        return start_again(status, "primary") + load_button(job_id, "Load these settings")
    if status.state == "paused":
        first = ask_button("Resume", job_id, "resume", style="primary")
    else:
        first = ask_button("Pause", job_id, "pause", title="Holds where it is")
    return first + ask_button("Stop", job_id, "stop", style="stop", title=STOP_TEXT)


def _results(status: JobStatus, has_prompt: bool) -> str:
    items = "".join(_result(saved, has_prompt) for saved in status.results)
    return f'<ul class="ts-results">{items}</ul>' if items else ""


def _sheet(status: JobStatus) -> str:
    """The sheet of pictures that a tool has drawn."""
    if not status.preview_steps:
        return ""
    url = preview_url(status.job_id, picture_name(status.preview_steps[-1], 0), int(status.updated_at))
    return picture_link(url, status.name, "ts-sheet")


def _result(saved: SavedResult, has_prompt: bool) -> str:
    path = Path(saved.path)
    text = f'<p class="ts-note">{escape(saved.text)}</p>' if saved.text else ""
    return (
        f'<li class="ts-result"><div class="ts-result-text">'
        f"<p><strong{attributes(title=str(path))}>{escape(path.name)}</strong></p>{text}{said(saved)}"
        f"{_use(saved, path, has_prompt)}</div></li>"
    )


def _use(saved: SavedResult, path: Path, has_prompt: bool) -> str:
    """Only what is called in a prompt can be put into one."""
    call = ARTEFACTS[saved.kind].call(path.stem, "") if saved.kind in ARTEFACTS else ""
    return f'<div class="ts-buttons">{use_button(call, "nothing else changes", has_prompt)}</div>' if call else ""
