"""A vote on block weights, as HTML: two pictures, three buttons, and the weights found so far."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote

from ..jobs.status import ACTIVE_STATES
from ..jobs.votes import SIDES, Votes
from .markup import API, button, part, picture_link

CHOICES = (("left", "Left is better"), ("alike", "Alike"), ("right", "Right is better"))
DRAWN, WAITING = "completed", ("queued", *ACTIVE_STATES)


def votes_html(votes: Votes) -> str:
    """The session with the newest vote; '' when there is none."""
    names = votes.names()
    if not names:
        return ""
    status = votes.status(names[0])
    pair = status["pair"]
    is_waiting = pair is not None and pair["state"] in WAITING
    body = _result(status) if pair is None else _pair(status, pair, is_waiting=is_waiting)
    return part("vote", body + _weights(status), "Which is better?", data_ts_active=is_waiting or None)


def _pair(status: Mapping[str, Any], pair: Mapping[str, Any], *, is_waiting: bool) -> str:
    name, number = status["name"], status["number"]
    head = f"<p>{escape(name)}: pair {number + 1} of at most {status['num_votes']}.</p>"
    if is_waiting:
        return head + '<p class="ts-note">The pictures are being drawn.</p>'
    if pair["state"] != DRAWN:
        again = button("Draw them again", post=_path(name, "draw"))
        return f'{head}<p class="ts-note">The pictures were not drawn.</p><div class="ts-buttons">{again}</div>'
    rows = "".join(_row(name, number, index, prompt) for index, prompt in enumerate(pair["prompts"]))
    buttons = "".join(
        button(label, post=_path(name, "vote"), body={"vote": vote, "number": number}) for vote, label in CHOICES
    )
    return f'{head}{rows}<div class="ts-buttons">{buttons}</div>'


def _row(name: str, number: int, index: int, prompt: str) -> str:
    pictures = "".join(
        f"<figure>{picture_link(_url(name, side, index, number), f'{prompt}, {side}')}"
        f"<figcaption>{side}</figcaption></figure>"
        for side in SIDES
    )
    head = f'<p class="ts-prompt">{escape(prompt)}</p>'
    return f'<div class="ts-prompt-row">{head}<div class="ts-strip">{pictures}</div></div>'


def _result(status: Mapping[str, Any]) -> str:
    return f"<p>{escape(status['name'])}: finished after {status['number']} votes.</p>"


def _weights(status: Mapping[str, Any]) -> str:
    copy = button("Copy the weights found so far", copy=status["alpha"], title="For alpha of a merge")
    end = button(
        "Delete this vote", style="stop", post=_path(status["name"], "forget"), confirm="Delete the votes and pictures?"
    )
    return f'<div class="ts-buttons">{copy}{end}</div>'


def _path(name: str, action: str) -> str:
    return f"votes/{quote(name, safe='')}/{action}"


def _url(name: str, side: str, index: int, number: int) -> str:
    """`number` changes with the pair, so that no old one is shown."""
    return f"{API}/{_path(name, 'pictures')}/{side}-{index}.png?v={number}"
