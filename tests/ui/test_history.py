"""The list of runs, from real statuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from extensions_lib.events import JobFinished, PreviewReady
from extensions_lib.ui.history import banners
from extensions_lib.ui.live import LivePage
from extensions_lib.ui.markup import moment
from extensions_lib.ui.wording import PURPOSES

from .runs import STARTED_AT, FakeManager, job_config, started, step
from .test_live import EVIL, Elements


@pytest.fixture
def manager(tmp_path: Path) -> FakeManager:
    return FakeManager(tmp_path / "runs")


def history(manager: FakeManager, selected: str = "") -> str:
    return LivePage(manager, SimpleNamespace(has_prompt=True)).fragment("history", selected)[1]


def live(manager: FakeManager) -> str:
    return LivePage(manager, SimpleNamespace(has_prompt=True)).fragment("live", "")[1]


def add(manager: FakeManager, name: str, state: str, num_steps: int = 4) -> None:
    config = job_config(name)
    events = [started(config), *(step(n, loss=n / 10) for n in range(1, num_steps + 1))]
    manager.add(config, [] if state == "queued" else events, state)


def parts(text: str) -> dict[str, str]:
    return dict(re.findall(r'<section class="[^"]*" data-ts-part="(\w+)"[^>]*>(.*?)</section>', text, re.DOTALL))


def rows(text: str) -> list[list[str]]:
    """The cells of each row, as text."""
    table = [re.findall("<td>(.*?)</td>", row, re.DOTALL) for row in re.findall("<tr.*?</tr>", text, re.DOTALL)]
    return [[re.sub("<.*?>", " ", cell).strip() for cell in row] for row in table if row]


def test_without_runs_it_says_so(manager: FakeManager) -> None:
    assert "No runs yet." in history(manager)


def test_interrupted_runs_come_first_with_resume_and_forget(manager: FakeManager) -> None:
    add(manager, "fine", "completed")
    add(manager, "gone", "interrupted", 340)
    text = live(manager)
    assert next(iter(parts(text))) == "interrupted"
    banner = Elements(parts(text)["interrupted"])
    assert banner.with_class("ts-banner") == ["Run gone was interrupted at step 340 of 1200.ResumeForget"]
    buttons = banner.buttons()
    assert buttons["Resume"]["data-ts-post"] == "jobs/gone/continue"
    assert json.loads(buttons["Resume"]["data-ts-body"]) == {"max_train_steps": None}
    assert buttons["Forget"]["data-ts-post"] == "jobs/gone/forget"
    assert "Result files stay" in buttons["Forget"]["data-ts-confirm"]


def test_a_run_interrupted_while_preparing(manager: FakeManager) -> None:
    add(manager, "gone", "interrupted", 0)
    assert "interrupted before the first step." in live(manager)


def test_the_queue_is_in_its_order_and_can_be_left(manager: FakeManager) -> None:
    for name in ("second", "first"):
        add(manager, name, "queued")
    queue = Elements(parts(history(manager))["queue"])
    labels = [queue.texts[index] for index, (tag, _) in enumerate(queue.tags) if tag == "li"]
    assert [label.split()[0] for label in labels] == ["second", "first"]
    take = queue.buttons()["Take out"]
    assert (take["data-ts-post"], json.loads(take["data-ts-body"])) == ("jobs/first/ask", {"request": "stop"})
    assert rows(history(manager)) == []


def test_a_row_tells_what_a_run_was(manager: FakeManager) -> None:
    config = job_config()
    losses = [step(n, loss=0.5 if n <= 10 else 0.25) for n in range(1, 61)]
    preview = PreviewReady(step=60, path="", grid_path="")
    manager.add(config, [started(config), *losses, preview, JobFinished(reason="stopped", step=60, path="")])
    text = history(manager)
    assert rows(text) == [
        [
            "",
            "zbadge",
            moment(STARTED_AT + 1),
            f"LoRA  {PURPOSES['lora_character']}",
            "Stopped",
            "60 of 1200",
            "0.2500",
            "Show  Load settings  Continue  Forget",
        ]
    ]
    assert 'title="mean of the last 50 steps"' in text
    assert re.search(r'<img loading="lazy" src="\./train-studio/v1/jobs/zbadge/previews/000060-0\.png\?v=\d+"', text)
    buttons = Elements(text).buttons()
    assert buttons["Show"]["data-ts-select"] == "zbadge"
    assert buttons["Load settings"]["data-ts-load"] == "run:zbadge"
    assert json.loads(buttons["Continue"]["data-ts-body"]) == {"max_train_steps": None}


def test_a_completed_run_is_continued_half_as_long_again(manager: FakeManager) -> None:
    add(manager, "done", "completed")
    manager.change("done", step=1200)
    button = Elements(history(manager)).buttons()["Continue"]
    assert json.loads(button["data-ts-body"]) == {"max_train_steps": 1800}
    assert button["title"] == "Trains on to step 1800"


def test_the_list_does_not_change_with_every_step_of_the_job_at_work(manager: FakeManager) -> None:
    add(manager, "zbadge", "training")
    manager.at_work = "zbadge"
    manager.change("zbadge", preview_steps=(0,))
    before = history(manager)
    changes = {"step": 5, "loss": 0.9, "curve": ((1, 0.5), (5, 0.9)), "preview_steps": (0, 5), "seconds_per_step": 2.0}
    manager.change("zbadge", **changes, updated_at=9.0, version=9)
    assert history(manager) == before
    manager.change("zbadge", state="completed")
    assert history(manager) != before


def test_the_shown_run_is_marked(manager: FakeManager) -> None:
    for name in ("a", "b"):
        add(manager, name, "completed")
    (row,) = (attrs for tag, attrs in Elements(history(manager, "b")).tags if attrs.get("aria-current"))
    assert row["class"] == "ts-shown"
    assert re.search(r'<tr class="ts-shown" aria-current="true">.*?<strong>b</strong>', history(manager, "b"))


def test_older_runs_than_fifty_are_behind_show_all(manager: FakeManager) -> None:
    for number in range(53):
        add(manager, f"run{number}", "completed", 1)
    newest, older = history(manager).split("<details")
    assert [row[1] for row in rows(newest)] == [f"run{n}" for n in range(50)]
    assert "Show all: 3 older runs" in older
    assert [row[1] for row in rows(older)] == ["run50", "run51", "run52"]


def test_everything_from_outside_is_escaped(manager: FakeManager) -> None:
    for name, state in (("a", "interrupted"), ("b", "queued"), ("c", "completed")):
        add(manager, name, state)
        manager.change(name, job_id=EVIL, name=EVIL, preset=EVIL, method=EVIL, preview_steps=(1,))
    text = banners(manager.statuses()) + history(manager)
    assert not [attrs for _, attrs in Elements(text).tags if "onerror" in attrs]
    assert "<img src=x" not in text
