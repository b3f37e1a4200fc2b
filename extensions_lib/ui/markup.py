"""HTML in small pieces, everything escaped: buttons the page's script understands, numbers and times in words."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote

from ..jobs.status import JobStatus
from .wording import METHOD_WORDS, PURPOSES

API = "./train-studio/v1"

STATE_WORDS = {
    "queued": "Waiting in the queue",
    "preparing": "Preparing",
    "training": "Training",
    "working": "Working",
    "paused": "Paused",
    "completed": "Completed",
    "stopped": "Stopped",
    "discarded": "Stopped, result discarded",
    "failed": "Failed",
    "interrupted": "Interrupted",
}


def attributes(**values: Any) -> str:
    """Attributes of a tag: ` name="value"`, escaped, `_` as `-`; None leaves one out, True gives it without a value."""
    parts = []
    for name, value in values.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(f" {name}")
        elif value is not None and value is not False:
            parts.append(f' {name}="{escape(str(value))}"')
    return "".join(parts)


def button(label: str, *, style: str = "", title: str | None = None, **data: Any) -> str:
    """A button; `data` become data-ts-... attributes, mappings among them as JSON. `style`: '', 'primary' or 'stop'."""
    texts = {
        f"data_ts_{name}": json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else value
        for name, value in data.items()
    }
    classes = f"ts-button ts-{style}" if style else "ts-button"
    return f"<button{attributes(type='button', class_=classes, title=title, **texts)}>{escape(label)}</button>"


def ask_button(label: str, job_id: str, word: str, **more: Any) -> str:
    """A button that asks a job for `word`, one of `jobs.store.REQUESTS`."""
    return button(label, post=f"jobs/{quote(job_id, safe='')}/ask", body={"request": word}, **more)


def job_button(label: str, job_id: str, action: str, body: Mapping[str, Any], **more: Any) -> str:
    """A button that posts `body` to jobs/<job_id>/<action>."""
    return button(label, post=f"jobs/{quote(job_id, safe='')}/{action}", body=body, **more)


def part(name: str, html: str, label: str = "", **more: Any) -> str:
    """A piece of a fragment that the page replaces by itself when it changed; '' when `html` is empty."""
    if not html:
        return ""
    heading = f"<h3>{escape(label)}</h3>" if label else ""
    return (
        f"<section{attributes(class_=f'ts-part ts-{name}', data_ts_part=name, aria_label=label or None, **more)}>"
        f"{heading}{html}</section>"
    )


def preview_url(job_id: str, name: str, stamp: int) -> str:
    """Where the API serves a preview picture; `stamp` changes with the file, so that no old one is shown."""
    return f"{API}/jobs/{quote(job_id, safe='')}/previews/{quote(name, safe='')}?v={stamp}"


def picture_link(url: str, text: str, class_: str = "ts-thumb", size_px: tuple[int, int] | None = None) -> str:
    """A thumbnail that opens the full picture in a new tab; `text` for those who do not see it.

    `size_px`, width and height, keeps its place while it is not loaded.
    """
    width, height = size_px or (None, None)
    image = f"<img{attributes(loading='lazy', src=url, alt=text, width=width, height=height)}>"
    return f"<a{attributes(class_=class_, href=url, target='_blank', rel='noopener', title=text)}>{image}</a>"


def duration(seconds: float) -> str:
    """'under a minute', '12 min', '3 h 05 min'."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "under a minute"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def moment(seconds: float) -> str:
    """Seconds since the epoch as '2026-11-20 18:51' in the server's time; '' for 0."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""


def method_word(kind: str) -> str:
    """What users call a method."""
    return METHOD_WORDS.get(kind, kind)


def preset_word(preset: str) -> str:
    """What a preset is for; a user's own is called by its name."""
    return PURPOSES.get(preset, preset)


def state_badge(state: str) -> str:
    """The state in words, coloured by its kind."""
    return f"<span{attributes(class_=f'ts-state ts-state-{state}')}>{escape(STATE_WORDS.get(state, state))}</span>"


def extended_steps(status: JobStatus) -> int:
    """The length offered for going on: half as long again for a completed run, else the length it was to have."""
    if status.step < status.max_train_steps:
        return status.max_train_steps
    return status.step + max(round(status.step / 2), 1)
