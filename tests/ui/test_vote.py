"""The button that begins a vote, and what the page shows of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from extensions_lib.config.tools import TOOLS
from extensions_lib.jobs.manager import JobManager
from extensions_lib.ui.tool_fields import shown_tool
from extensions_lib.ui.vote import BEGUN, VoteHandlers
from extensions_lib.ui.vote_view import votes_html
from extensions_lib.ui.workshop import build_workshop

from .pages import BusyHost


class Sessions:
    """One session, or none."""

    def __init__(self, state: str = "", **changes: Any) -> None:
        pair = {"left": "0.25", "right": "0.75", "job_id": "a-000", "state": state, "prompts": ["a <red> circle"]}
        self.found = {
            "name": "be/st", "number": 3, "num_votes": 60, "votes": [], "alpha": "0.5, TE=1", "pair": pair, **changes,
        }  # fmt: skip
        self.state = state
        self.started: list[Any] = []

    def names(self) -> list[str]:
        return ["be/st"] if self.state else []

    def status(self, name: str) -> dict[str, Any]:
        return self.found

    def start(self, table: Any) -> str:
        self.started.append(table)
        return "best"


def test_two_pictures_and_three_buttons() -> None:
    html = votes_html(Sessions("completed"))
    for side in ("left", "right"):
        assert f"/votes/be%2Fst/pictures/{side}-0.png?v=3" in html
    assert html.count('data-ts-post="votes/be%2Fst/vote"') == 3
    assert "&quot;vote&quot;: &quot;alike&quot;, &quot;number&quot;: 3" in html
    assert "pair 4 of at most 60" in html and "a &lt;red&gt; circle" in html
    assert 'data-ts-copy="0.5, TE=1"' in html and "data-ts-active" not in html


@pytest.mark.parametrize(("state", "said"), [("queued", "being drawn"), ("failed", "votes/be%2Fst/draw")])
def test_without_pictures_there_is_nothing_to_vote_on(state: str, said: str) -> None:
    html = votes_html(Sessions(state))
    assert said in html and "/vote&quot;" not in html and "left-0.png" not in html
    assert ("data-ts-active" in html) == (state == "queued")


def test_a_finished_vote_shows_its_result() -> None:
    html = votes_html(Sessions("completed", pair=None))
    assert "finished after 3 votes" in html and 'data-ts-copy="0.5, TE=1"' in html


def test_nothing_is_shown_without_a_vote() -> None:
    assert votes_html(Sessions()) == ""


def test_the_form_of_the_grid_begins_one(tmp_path: Path) -> None:
    host, sessions = BusyHost(tmp_path), Sessions()
    with gr.Blocks(analytics_enabled=False):
        workshop = build_workshop(JobManager(host), host)
    shown = {key: value for kind in TOOLS for key, value in shown_tool(kind, {}).items()} | {"tool.name": "best"}
    handlers = VoteHandlers(sessions, workshop.handlers)
    assert BEGUN in handlers.begin("grid", *[shown[key] for key in workshop.form.keys])
    assert sessions.started[0]["name"] == "best"
