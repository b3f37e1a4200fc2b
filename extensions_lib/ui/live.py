"""The page of one job: how far it is, what it draws, what it saved, what can be asked of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Protocol

from ..config.methods import artefact_kind
from ..errors import ExtensionError
from ..jobs.status import JobStatus
from ..jobs.votes import Votes
from ..ports import Trials
from .history import banners, history
from .markup import (
    button,
    file_name,
    method_word,
    moment,
    part,
    preset_word,
    sources_text,
    state_badge,
)
from .tool_view import tool_parts
from .training_view import training_parts
from .trial_view import trial_html
from .vote_view import votes_html

if TYPE_CHECKING:
    from ..jobs.store import RunFolder

MAX_WARNINGS = 20


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
    trials: Trials


class LivePage:
    """The fragments of the page that change while jobs run. Holds nothing, so any number of pages see the same."""

    def __init__(self, manager: Jobs, host: Prompting) -> None:
        self._manager = manager
        self._host = host

    def fragment(self, name: str, selected: str) -> tuple[str, str]:
        """Version and HTML of a part of the page, such as 'live'; `selected` is the job shown, '' for the one at work.

        The version changes exactly when the HTML does. Raises ExtensionError for another name.
        """
        statuses = self._manager.statuses()
        if name == "live":
            html = self._live(statuses, selected)
        elif name == "history":
            html = history(statuses, self._shown(statuses, selected))
        elif name == "trial":
            html = trial_html(self._host.trials)
        elif name == "votes":
            html = votes_html(Votes(self._manager, self._host))
        else:
            raise ExtensionError(f"The page has no part {name!r}; it has 'live', 'history', 'trial' and 'votes'.")
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
        head = banners(statuses) + part("head", _head(status) + self._elsewhere(status), **marks)
        messages, has_prompt = part("messages", _messages(status)), self._host.has_prompt
        if status.is_tool:
            return head + tool_parts(status, messages, has_prompt)
        return head + training_parts(status, messages, self._manager.folder(status.job_id), has_prompt)

    def _marks(self, statuses: Sequence[JobStatus]) -> dict[str, object]:
        """What the page's script reads: whether to ask often, and whether the WebUI's lists are out of date."""
        published = [(status, saved) for status in statuses for saved in status.results if saved.published]
        kinds = [saved.kind if status.is_tool else artefact_kind(status.method) for status, saved in published]
        return {
            "data_ts_published": len(published),
            "data_ts_checkpoints": kinds.count("checkpoint") or None,
            "data_ts_active": True if self._manager.active() else None,
        }

    def _elsewhere(self, status: JobStatus) -> str:
        """A line about the job at work when another one is shown."""
        active = self._manager.active()
        if active is None or active == status.job_id:
            return ""
        return f'<p class="ts-elsewhere">{escape(active)} is at work now. {button("Show it", select=active)}</p>'


def _head(status: JobStatus) -> str:
    facts = [method_word(status.method), preset_word(status.preset), file_name(status.base_model), sources_text(status)]
    if status.trigger_word:
        facts.append(f"trigger word: {status.trigger_word}")
    if status.started_at:
        facts.append(f"started {moment(status.started_at)}")
    line = " &middot; ".join(escape(fact) for fact in facts if fact)
    run = f' <span class="ts-note">run {escape(status.job_id)}</span>' if status.job_id != status.name else ""
    return f'<h2>{escape(status.name)}{run} {state_badge(status.state)}</h2><p class="ts-note">{line}</p>'


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
