"""The page and the list of runs for tools: what is made from what, how far, and what can be asked."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from extensions_lib.events import (
    CheckpointSaved,
    Event,
    JobFailed,
    JobFinished,
    PauseChanged,
    PhaseProgress,
    PreviewReady,
    ResultPublished,
    Warned,
)
from extensions_lib.ui.live import LivePage

from .runs import FakeManager, job_config, started, tool_config
from .test_history import parts, rows
from .test_live import EVIL, Elements

PATH = "/models/half.safetensors"
SAVED = CheckpointSaved(step=0, path=PATH, num_modules=0, kind="checkpoint")
DONE = JobFinished(reason="completed", step=0, path=PATH)
MERGING = PhaseProgress(phase="merge", done=30, total=120)


@pytest.fixture
def manager(tmp_path: Path) -> FakeManager:
    return FakeManager(tmp_path / "runs")


def page(manager: FakeManager, name: str = "live", selected: str = "", has_prompt: bool = True) -> str:
    return LivePage(manager, SimpleNamespace(has_prompt=has_prompt)).fragment(name, selected)[1]


def add(manager: FakeManager, events: Sequence[Event], state: str | None = None, **changes: Any) -> str:
    return manager.add(tool_config(**changes), events, state).job_id


def test_the_page_says_what_is_made_from_what(manager: FakeManager) -> None:
    add(manager, [MERGING])
    head = parts(page(manager))["head"]
    assert Elements(head).with_class("ts-state") == ["Working"]
    assert re.search(r'<p class="ts-note">Merge checkpoints &middot; from a.safetensors, b.safetensors', head)


def test_of_many_files_the_first_are_named(manager: FakeManager) -> None:
    models = [{"path": f"{letter}.ckpt", "weight": "1" if letter != "a" else ""} for letter in "abcdef"]
    add(manager, [MERGING], models=models, formula="ties")
    assert "from a.ckpt, b.ckpt, c.ckpt, d.ckpt and 2 more" in page(manager)


def test_progress_is_that_of_the_phase(manager: FakeManager) -> None:
    add(manager, [MERGING])
    text = page(manager)
    bar = next(attrs for _, attrs in Elements(text).tags if attrs.get("role") == "progressbar")
    assert (bar["aria-valuenow"], bar["aria-valuemax"], bar["aria-valuetext"]) == ("30", "120", "Merge: 30 of 120")
    assert 'style="width: 25.0%"' in text
    assert set(parts(text)) == {"head", "progress", "actions"}


@pytest.mark.parametrize(
    ("state", "labels"),
    [
        ("queued", ["Take out of the queue"]),
        ("working", ["Pause", "Stop"]),
        ("paused", ["Resume", "Stop"]),
        ("completed", ["Load these settings"]),
        ("stopped", ["Start again", "Load these settings"]),
        ("discarded", ["Start again", "Load these settings"]),
        ("failed", ["Start again", "Load these settings"]),
        ("interrupted", ["Start again", "Forget", "Load these settings"]),
    ],
)
def test_only_what_makes_sense_can_be_asked(manager: FakeManager, state: str, labels: list[str]) -> None:
    add(manager, [MERGING, SAVED] if state == "completed" else [MERGING], state)
    buttons = Elements(page(manager)).buttons()
    assert list(buttons) == labels
    if "Start again" in buttons:
        again = buttons["Start again"]
        assert (again["data-ts-post"], json.loads(again["data-ts-body"])) == ("jobs/half/continue", {})
    if "Load these settings" in buttons:
        assert buttons["Load these settings"]["data-ts-load"] == "run:half"


def test_a_result_is_shown_with_its_text_and_the_hosts_answer(manager: FakeManager) -> None:
    answer = ResultPublished(step=0, path=PATH, text="in the list of checkpoints as half", is_usable=True)
    told = CheckpointSaved(step=0, path=PATH, num_modules=0, beside=("/models/half.yaml",), text="7 tensors repaired.")
    add(manager, [MERGING, told, answer, DONE])
    text = page(manager)
    result = Elements(parts(text)["results"])
    assert result.with_class("ts-said") == ["in the list of checkpoints as half"]
    assert result.with_class("ts-note") == ["7 tensors repaired.", "with half.yaml"]
    assert "half.safetensors" in result.with_class("ts-result")[0]
    assert set(parts(text)) == {"head", "actions", "results"}
    assert "step" not in re.sub("<.*?>", " ", text)


def test_a_lora_can_be_put_into_the_prompt(manager: FakeManager) -> None:
    path = "/Lora/small.safetensors"
    saved = CheckpointSaved(step=0, path=path, num_modules=3, kind="lora")
    add(manager, [MERGING, saved, JobFinished(reason="completed", step=0, path=path)])
    assert json.loads(Elements(page(manager)).buttons()["Use in txt2img"]["data-ts-prompt"])["text"] == (
        "<lora:small:1>"
    )
    assert Elements(page(manager, has_prompt=False)).buttons()["Copy"]["data-ts-copy"] == "<lora:small:1>"


def test_a_sheet_of_pictures_is_shown_whole(manager: FakeManager) -> None:
    drawn = PreviewReady(step=0, path="", grid_path="")
    saved = CheckpointSaved(step=0, path="/grids/grid.png", num_modules=0)
    add(manager, [MERGING, saved, drawn, JobFinished(reason="completed", step=0, path="/grids/grid.png")])
    text = parts(page(manager))["results"]
    assert re.search(r'class="ts-sheet" href="\./train-studio/v1/jobs/half/previews/000000-0\.png\?v=\d+"', text)
    assert "grid.png" in text


def test_a_file_that_was_deleted_since_is_said_to_be_gone(manager: FakeManager) -> None:
    add(manager, [MERGING, SAVED, DONE])
    manager.change("half", results=())
    text = page(manager)
    assert "The file is not there any more." in text
    assert list(Elements(text).buttons()) == ["Start again", "Load these settings"]


def test_the_lists_of_the_webui_are_read_again_for_a_checkpoint(manager: FakeManager) -> None:
    add(manager, [SAVED, ResultPublished(step=0, path=PATH, text="listed", is_usable=True), DONE])
    saved = CheckpointSaved(step=0, path="/x.safetensors", num_modules=3, kind="lora")
    listed = ResultPublished(step=0, path="/x.safetensors", text="listed", is_usable=True)
    add(manager, [saved, listed, DONE], name="other")
    marks = next(attrs for _, attrs in Elements(page(manager)).tags if "data-ts-published" in attrs)
    assert (marks["data-ts-published"], marks["data-ts-checkpoints"]) == ("2", "1")


def test_a_failure_says_that_nothing_was_written(manager: FakeManager) -> None:
    add(manager, [MERGING, Warned(text="odd"), JobFailed(error="X", message="The disk is full.", hint="Free some.")])
    text = page(manager)
    assert "Nothing was written." in parts(text)["progress"]
    assert "The disk is full." in parts(text)["messages"] and "odd" in parts(text)["messages"]


def test_started_again_it_forgets_the_failure(manager: FakeManager) -> None:
    failed = JobFailed(error="X", message="The disk is full.", hint="Free some.")
    add(manager, [MERGING, failed, PhaseProgress(phase="read the files", done=0, total=1)])
    assert "messages" not in parts(page(manager))


def test_paused_it_shows_how_far_it_is(manager: FakeManager) -> None:
    add(manager, [MERGING, PauseChanged(paused=True, step=0)])
    text = page(manager)
    assert Elements(text).with_class("ts-state") == ["Paused"]
    assert "Merge: 30 of 120" in parts(text)["progress"]


def test_the_list_of_runs_has_no_steps_and_no_loss(manager: FakeManager) -> None:
    add(manager, [MERGING, SAVED, DONE])
    add(manager, [MERGING], "stopped", name="other")
    (done, stopped) = rows(page(manager, "history"))
    assert (done[1], done[3]) == ("half", "Merge checkpoints  from a.safetensors, b.safetensors")
    assert (done[4], done[5], done[6], done[7]) == ("Completed", "", "", "Show  Load settings  Forget")
    assert stopped[7] == "Show  Load settings  Start again  Forget"


def test_the_list_does_not_change_while_one_works(manager: FakeManager) -> None:
    add(manager, [MERGING])
    before = page(manager, "history")
    manager.change("half", phase_done=100, updated_at=9.0, version=9)
    assert page(manager, "history") == before


def test_queued_and_interrupted_ones_are_called_what_they_are(manager: FakeManager) -> None:
    add(manager, [], "queued")
    add(manager, [MERGING], "interrupted", name="other")
    queue = Elements(parts(page(manager, "history"))["queue"])
    assert queue.with_class("ts-note") == ["Merge checkpoints, from a.safetensors, b.safetensors"]
    banner = Elements(parts(page(manager))["interrupted"])
    assert banner.with_class("ts-banner") == ["Run other was interrupted; nothing was written.Start againForget"]


def test_trainings_and_tools_stand_side_by_side(manager: FakeManager) -> None:
    config = job_config()
    manager.add(config, [started(config)])
    add(manager, [MERGING])
    assert "Loss" not in page(manager, selected="half") and "Step" in page(manager, selected="zbadge")


def test_everything_from_outside_is_escaped(manager: FakeManager) -> None:
    add(manager, [MERGING, SAVED, DONE])
    (saved,) = manager.known["half"].results
    evil = type(saved)(0, f"/x/{EVIL}", 0, EVIL, True, (f"/x/{EVIL}",), EVIL, "lora")
    manager.change("half", name=EVIL, job_id="half", sources=(f"/x/{EVIL}",), phase=EVIL, results=(evil,))
    for state in ("queued", "working", "interrupted", "completed"):
        manager.change("half", state=state)
        text = page(manager) + page(manager, "history")
        assert not [attrs for _, attrs in Elements(text).tags if "onerror" in attrs]
        assert "<img src=x" not in text
