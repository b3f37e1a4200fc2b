"""The page of one job: how far it is, what it draws, what it saved, what can be asked of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from ..config.methods import artefact_kind
from ..errors import ExtensionError
from ..jobs.status import JobStatus
from .chart import loss_chart, smoothed, smoothing_window
from .history import banners, history
from .markup import (
    ask_button,
    attributes,
    button,
    duration,
    extended_steps,
    job_button,
    method_word,
    moment,
    part,
    preset_word,
    state_badge,
)
from .pictures import picture_parts

if TYPE_CHECKING:
    from ..jobs.store import RunFolder

MAX_WARNINGS = 20
DISCARD_QUESTION = "Stop without saving a result? Results that were saved before stay."


class Jobs(Protocol):
    """What the page needs of the job manager."""

    def statuses(self) -> tuple[JobStatus, ...]:
        """All runs, newest first."""

    def active(self) -> str | None:
        """The job that is worked on."""

    def folder(self, job_id: str) -> RunFolder:
        """The folder of a run. Raises UnknownJobError."""


class Prompting(Protocol):
    """What the page needs to know of the host."""

    has_prompt: bool


class LivePage:
    """The fragments of the page that change while jobs run. Holds nothing, so any number of pages see the same."""

    def __init__(self, manager: Jobs, host: Prompting) -> None:
        self._manager = manager
        self._host = host

    def fragment(self, name: str, selected: str) -> tuple[str, str]:
        """Version and HTML of 'live' or 'history'; `selected` is the job the page shows, '' for the one at work.

        The version changes exactly when the HTML does. Raises ExtensionError for another name.
        """
        statuses = self._manager.statuses()
        if name == "live":
            html = self._live(statuses, selected)
        elif name == "history":
            html = history(statuses, self._shown(statuses, selected))
        else:
            raise ExtensionError(f"The page has no part {name!r}; it has 'live' and 'history'.")
        return hashlib.sha1(html.encode("utf-8"), usedforsecurity=False).hexdigest()[:16], html

    def _shown(self, statuses: Sequence[JobStatus], selected: str) -> JobStatus | None:
        """The selected job; else the one at work; else the newest."""
        known = {status.job_id: status for status in statuses}
        newest = statuses[0] if statuses else None
        return known.get(selected) or known.get(self._manager.active() or "") or newest

    def _live(self, statuses: Sequence[JobStatus], selected: str) -> str:
        status = self._shown(statuses, selected)
        marks = self._marks(statuses)
        if status is None:
            text = "No training yet. Choose pictures and a preset, then start: progress and previews appear here."
            return part("head", f'<p class="ts-note">{text}</p>', **marks)
        return (
            banners(statuses)
            + part("head", _head(status) + self._elsewhere(status), **marks)
            + part("progress", _progress(status))
            + part("messages", _messages(status))
            + part("actions", _actions(status))
            + part("chart", loss_chart(status.curve, status.validation, status.max_train_steps), "Loss")
            + picture_parts(status, self._manager.folder(status.job_id), self._host.has_prompt)
        )

    def _marks(self, statuses: Sequence[JobStatus]) -> dict[str, object]:
        """What the page's script reads: whether to ask often, and whether the WebUI's lists are out of date."""
        published = [status for status in statuses for saved in status.results if saved.published]
        checkpoints = sum(artefact_kind(status.method) == "checkpoint" for status in published)
        return {
            "data_ts_published": len(published),
            "data_ts_checkpoints": checkpoints or None,
            "data_ts_active": True if self._manager.active() else None,
        }

    def _elsewhere(self, status: JobStatus) -> str:
        """A line about the job at work when another one is shown."""
        active = self._manager.active()
        if active is None or active == status.job_id:
            return ""
        return f'<p class="ts-elsewhere">{escape(active)} is at work now. {button("Show it", select=active)}</p>'


def _head(status: JobStatus) -> str:
    facts = [
        method_word(status.method),
        preset_word(status.preset),
        status.base_model.replace("\\", "/").rsplit("/", 1)[-1],
    ]
    if status.trigger_word:
        facts.append(f"trigger word: {status.trigger_word}")
    if status.started_at:
        facts.append(f"started {moment(status.started_at)}")
    line = " &middot; ".join(escape(fact) for fact in facts if fact)
    run = f' <span class="ts-note">run {escape(status.job_id)}</span>' if status.job_id != status.name else ""
    return f'<h2>{escape(status.name)}{run} {state_badge(status.state)}</h2><p class="ts-note">{line}</p>'


def _progress(status: JobStatus) -> str:
    if status.state == "queued":
        return '<p class="ts-note">It starts by itself when the jobs before it have ended.</p>'
    if status.state == "preparing":
        known = status.phase_total > 0
        text = (status.phase or "getting ready").capitalize()
        count = f": {status.phase_done} of {status.phase_total}" if known else ""
        bar = _bar(status.phase_done if known else None, status.phase_total, text + count)
        return f'{bar}<p class="ts-figures">{escape(text + count)}</p>'
    text = f"step {status.step} of {status.max_train_steps}"
    html = _bar(status.step, status.max_train_steps, text) + _figures(status)
    if status.state == "training" and status.loss is None:
        html += '<p class="ts-note">Pictures of the untrained model are drawn before the first step.</p>'
    return html


def _bar(done: int | None, total: int, text: str) -> str:
    """A progress bar; `done` None when nobody knows how far it is."""
    share = 100 * min(done / max(total, 1), 1.0) if done is not None else None
    bar = attributes(
        class_="ts-bar" if share is not None else "ts-bar ts-unknown",
        role="progressbar",
        aria_label="Progress",
        aria_valuemin=0,
        aria_valuemax=total if share is not None else None,
        aria_valuenow=done,
        aria_valuetext=text,
    )
    return f'<div{bar}><div style="width: {100 if share is None else share:.1f}%"></div></div>'


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


def _messages(status: JobStatus) -> str:
    html = ""
    if status.error:
        hint = f'<p class="ts-hint">{escape(status.hint)}</p>' if status.hint else ""
        html += f'<div class="ts-error" role="alert"><p>{escape(status.error)}</p>{hint}</div>'
    if status.warnings:
        items = _warning_items(status.warnings)
        html += f'<div class="ts-warning"><ul>{items}</ul></div>'
    return html


def _warning_items(warnings: Sequence[str]) -> str:
    """Each text once, the newest last, with how often it was said."""
    different = list(dict.fromkeys(reversed(warnings)))[:MAX_WARNINGS][::-1]
    counts = [(text, warnings.count(text)) for text in different]
    return "".join(f"<li>{escape(text)}{f' ({count} times)' if count > 1 else ''}</li>" for text, count in counts)


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


def load_button(job_id: str, label: str) -> str:
    """Puts the settings of a run into the form."""
    return button(label, load=f"run:{job_id}", title="Puts the settings of this run into the form")


def _continue_form(status: JobStatus) -> str:
    """Train on from where the run ended, to a length that can be changed."""
    field = attributes(
        type="number", name="max_train_steps", value=extended_steps(status), min=status.step + 1, step=1,
        data_ts_keep=f"steps-{quote(status.job_id, safe='')}",
    )  # fmt: skip
    go = job_button("Continue training", status.job_id, "continue", {}, style="primary")
    return f'<span class="ts-form">{go}<label>to step <input{field}></label></span>'
