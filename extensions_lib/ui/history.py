"""All runs: what was interrupted, what waits, what was. The first stands above the shown job, where it is seen."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import fmean

from ..jobs.status import JobStatus
from ..preview.grid import picture_name
from .markup import (
    ask_button,
    attributes,
    button,
    extended_steps,
    job_button,
    load_button,
    method_word,
    moment,
    part,
    picture_link,
    preset_word,
    preview_url,
    sources_text,
    state_badge,
)
from .tool_view import start_again

NEWEST = 50
LOSS_STEPS = 50
FORGET_QUESTION = "Forget this run? Its settings, state and previews are deleted. Result files stay."
COLUMNS = ("", "Run", "Started", "Method", "State", "Steps", "Loss", "")


def history(statuses: Sequence[JobStatus], shown: JobStatus | None) -> str:
    """The fragment: the queue, then the runs as given, the `shown` one marked.

    A run at work has no figures here: they change with every step, and the whole list would be sent with them.
    """
    queue = [status for status in statuses if status.state == "queued"]
    runs = [status for status in statuses if status.state != "queued"]
    return part("queue", _queue(queue), "Queue") + part("runs", _runs(runs, shown.job_id if shown else ""), "Runs")


def banners(statuses: Sequence[JobStatus]) -> str:
    """A line for each interrupted run, with the way to go on."""
    interrupted = [status for status in statuses if status.state == "interrupted"]
    return part("interrupted", "".join(map(_banner, interrupted)))


def _banner(status: JobStatus) -> str:
    where = f"at step {status.step} of {status.max_train_steps}" if status.step else "before the first step"
    told = "was interrupted; nothing was written" if status.is_tool else f"was interrupted {where}"
    go_on = start_again(status, "primary") if status.is_tool else _continue(status, "Resume", style="primary")
    return (
        f'<div class="ts-banner"><span>Run {escape(status.job_id)} {told}.</span>'
        f'<span class="ts-buttons">{go_on}{_forget(status)}</span></div>'
    )


def _queue(queue: Sequence[JobStatus]) -> str:
    items = "".join(
        f"<li><span><strong>{escape(status.job_id)}</strong> "
        f'<span class="ts-note">{escape(_plan(status))}</span></span>'
        f'<span class="ts-buttons">{_show(status)}{ask_button("Take out", status.job_id, "stop")}</span></li>'
        for status in queue
    )
    return f'<ol class="ts-queue">{items}</ol>' if items else ""


def _plan(status: JobStatus) -> str:
    """What a job in the queue will do."""
    length = sources_text(status) if status.is_tool else f"{status.max_train_steps} steps"
    return f"{method_word(status.method)}, {length}"


def _runs(runs: Sequence[JobStatus], shown: str) -> str:
    if not runs:
        return '<p class="ts-note">No runs yet.</p>'
    html = _table(runs[:NEWEST], shown)
    older = runs[NEWEST:]
    if older:
        html += (
            f'<details data-ts-keep="older"><summary>Show all: {len(older)} older runs</summary>'
            f"{_table(older, shown)}</details>"
        )
    return html


def _table(runs: Sequence[JobStatus], shown: str) -> str:
    heads = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
    rows = "".join(_table_row(status, status.job_id == shown) for status in runs)
    return f'<table class="ts-runs"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _table_row(status: JobStatus, is_shown: bool) -> str:
    method = escape(method_word(status.method))
    more = sources_text(status) if status.is_tool else preset_word(status.preset)
    if more:
        method += f'<br><span class="ts-note">{escape(more)}</span>'
    cells = (
        _picture(status),
        f"<strong>{escape(status.job_id)}</strong>",
        moment(status.started_at),
        method,
        state_badge(status.state),
        _steps(status),
        "" if status.is_active else _loss(status),
        f'<span class="ts-buttons">{_show(status)}{_row_buttons(status)}</span>',
    )
    row = attributes(class_="ts-shown" if is_shown else None, aria_current="true" if is_shown else None)
    return f"<tr{row}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _steps(status: JobStatus) -> str:
    if status.is_tool:
        return ""
    return str(status.max_train_steps) if status.is_active else f"{status.step} of {status.max_train_steps}"


def _row_buttons(status: JobStatus) -> str:
    load = load_button(status.job_id, "Load settings")
    if status.is_active:
        return load
    go_on = start_again(status) if status.is_tool else _continue(status, "Continue")
    return load + go_on + _forget(status)


def _picture(status: JobStatus) -> str:
    """The newest preview of the first prompt; of a run at work the first, which does not change."""
    if not status.preview_steps:
        return ""
    step = status.preview_steps[0 if status.is_active else -1]
    url = preview_url(status.job_id, picture_name(step, 0), int(status.started_at))
    return picture_link(url, f"{status.job_id}, step {step}", "ts-thumb ts-small")


def _loss(status: JobStatus) -> str:
    """The mean of the last steps: one step's loss says little."""
    last = [loss for _, loss in status.curve[-LOSS_STEPS:]]
    return f'<span title="mean of the last {len(last)} steps">{fmean(last):.4f}</span>' if last else ""


def _show(status: JobStatus) -> str:
    return button("Show", select=status.job_id)


def _continue(status: JobStatus, label: str, style: str = "") -> str:
    steps = extended_steps(status)
    body = {"max_train_steps": None if steps == status.max_train_steps else steps}
    return job_button(label, status.job_id, "continue", body, style=style, title=f"Trains on to step {steps}")


def _forget(status: JobStatus) -> str:
    return job_button("Forget", status.job_id, "forget", {}, confirm=FORGET_QUESTION)
