"""HTML in small pieces, everything escaped: buttons the page's script understands, numbers and times in words."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote

from ..config.tools import TOOLS
from ..jobs.status import JobStatus, SavedResult
from .wording import METHOD_WORDS, PURPOSES

API = "./train-studio/v1"
MAX_SOURCES = 4

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


def progress_bar(done: int | None, total: int, text: str) -> str:
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


def load_button(job_id: str, label: str) -> str:
    """Puts the settings of a run into the form."""
    return button(label, load=f"run:{job_id}", title="Puts the settings of this run into the form")


def use_button(text: str, note: str, has_prompt: bool, *, is_negative: bool = False) -> str:
    """Puts what calls a result into the prompt, the negative one with `is_negative`, or copies it where none is."""
    if not has_prompt:
        return button("Copy", copy=text, title=f"Copies {text}", style="primary")
    box = "negative prompt" if is_negative else "prompt"
    words = {"text": "", "negative": text} if is_negative else {"text": text, "negative": ""}
    return button("Use in txt2img", prompt=words, title=f"Adds {text} to the {box}; {note}", style="primary")


def said(saved: SavedResult) -> str:
    """What the host said of a result, and what lies beside it."""
    html = ""
    if saved.published:
        mark = "" if saved.is_usable else " ts-bad"
        html = f'<p class="ts-said{mark}">{escape(saved.published)}</p>'
    if saved.beside:
        html += f'<p class="ts-note">with {escape(", ".join(map(file_name, saved.beside)))}</p>'
    return html


def file_name(path: str) -> str:
    """The last part of a path of any system."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def sources_text(status: JobStatus) -> str:
    """'from a.safetensors, b.safetensors' of a tool; ''."""
    names = [file_name(path) for path in status.sources]
    more = f" and {len(names) - MAX_SOURCES} more" if len(names) > MAX_SOURCES else ""
    return f"from {', '.join(names[:MAX_SOURCES])}{more}" if names else ""


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
    """What users call a method or a tool."""
    return TOOLS[kind].title if kind in TOOLS else METHOD_WORDS.get(kind, kind)


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
