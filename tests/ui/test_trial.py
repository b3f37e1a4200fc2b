"""The button that tries a merge, and what the page says of a trial."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from extensions_lib.config.tools import TOOLS
from extensions_lib.host.standalone import PRACTICE_TITLE
from extensions_lib.jobs.manager import JobManager
from extensions_lib.ports import Candidate, NoTrials, TrialStatus
from extensions_lib.ui.live import LivePage
from extensions_lib.ui.tool_fields import shown_tool
from extensions_lib.ui.trial import TRY, WAITING, TrialHandlers
from extensions_lib.ui.trial_view import UNDO, trial_html
from extensions_lib.ui.workshop import Workshop, build_workshop

from .pages import BusyHost

TITLE = "slerp of a + b"


class Trials:
    refusal = ""

    def __init__(self, status: TrialStatus | None = None) -> None:
        self.status = status or TrialStatus()
        self.asked: list[Candidate] = []

    def try_on(self, candidate: Candidate) -> None:
        self.asked.append(candidate)

    def current(self) -> TrialStatus:
        return self.status


def built(host: BusyHost) -> tuple[Workshop, list[Any]]:
    with gr.Blocks(analytics_enabled=False) as page:
        workshop = build_workshop(JobManager(host), host)
    return workshop, [block for block in page.blocks.values() if getattr(block, "value", None) == TRY]


def test_the_form_is_tried_without_a_name(tmp_path: Path) -> None:
    host = BusyHost(tmp_path)
    host.trials = Trials()
    workshop, buttons = built(host)
    assert len(buttons) == 1
    shown = {key: value for kind in TOOLS for key, value in shown_tool(kind, {}).items()}
    shown |= {"merge.models_a_path": PRACTICE_TITLE, "merge.models_b_path": PRACTICE_TITLE, "merge.formula": "slerp"}
    handlers = TrialHandlers(host, workshop.handlers)
    values = [shown[key] for key in workshop.form.keys]
    assert WAITING.replace("'", "&#x27;") in handlers.try_on("merge", *values)
    assert [candidate.title for candidate in host.trials.asked] == ["slerp of practice + practice"]
    assert "merge, bake" in handlers.try_on("extract", *values) or "are wrong" in handlers.try_on("extract", *values)


def test_a_host_without_trials_has_no_button(tmp_path: Path) -> None:
    assert built(BusyHost(tmp_path))[1] == []


@pytest.mark.parametrize(
    ("status", "said", "has_undo"),
    [
        (TrialStatus("on", TITLE, "base"), ["On trial", TITLE, "base"], True),
        (TrialStatus("applying", TITLE, "base", 3, 6), ["Putting", "data-ts-active", "50.0%"], True),
        (TrialStatus("undoing", TITLE, "base"), ["Taking", "data-ts-active"], False),
        (TrialStatus(text="It <ended>."), ["It &lt;ended&gt;."], False),
    ],
)
def test_what_is_tried_is_shown(status: TrialStatus, said: list[str], has_undo: bool) -> None:
    html = trial_html(Trials(status))
    assert all(text in html for text in said)
    assert (UNDO in html and 'data-ts-post="trial/undo"' in html) == has_undo


def test_nothing_is_shown_where_nothing_is_tried() -> None:
    assert trial_html(Trials()) == trial_html(NoTrials("Not here.")) == ""


def test_the_page_asks_for_it() -> None:
    host = SimpleNamespace(has_prompt=True, trials=Trials(TrialStatus("on", TITLE, "base")))
    manager = SimpleNamespace(statuses=lambda: ())
    assert TITLE in LivePage(manager, host).fragment("trial", "")[1]
