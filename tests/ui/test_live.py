"""The page of one job, from real statuses and run folders."""

from __future__ import annotations

import html
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from extensions_lib.config.preview import PreviewPrompt
from extensions_lib.errors import ExtensionError
from extensions_lib.events import (
    CheckpointSaved,
    JobFailed,
    JobFinished,
    PauseChanged,
    PhaseProgress,
    PreviewReady,
    ResultPublished,
    Warned,
)
from extensions_lib.jobs.status import STATES
from extensions_lib.preview.record import write_prompts
from extensions_lib.ui.live import LivePage
from extensions_lib.ui.markup import STATE_WORDS

from .runs import FakeManager, draw, job_config, started, step

VOID = {"img", "input", "br"}


class Elements(HTMLParser):
    """Every tag with its attributes and text; fails when tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[int, str] = {}
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(len(self.tags) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.tags[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for index in self._open:
            self.texts[index] = self.texts.get(index, "") + data

    def buttons(self) -> dict[str, dict[str, str | None]]:
        """Attributes of each button by its label; of several with one label the last."""
        return {self.texts[index]: attrs for index, (tag, attrs) in enumerate(self.tags) if tag == "button"}

    def with_class(self, name: str) -> list[str]:
        """Text of the elements of a class."""
        found = [index for index, (_, attrs) in enumerate(self.tags) if name in (attrs.get("class") or "").split()]
        return [self.texts.get(index, "") for index in found]


@pytest.fixture
def manager(tmp_path: Path) -> FakeManager:
    return FakeManager(tmp_path / "runs")


def live(manager: FakeManager, selected: str = "", *, has_prompt: bool = True) -> str:
    return LivePage(manager, SimpleNamespace(has_prompt=has_prompt)).fragment("live", selected)[1]


def trained(manager: FakeManager, *more: Any, steps: int = 3, state: str | None = None, **changes: Any) -> str:
    """A run of a few steps and then `more` events; its job id."""
    config = job_config(**changes)
    return manager.add(config, [started(config), *(step(n) for n in range(1, steps + 1)), *more], state).job_id


def test_an_empty_page_says_what_will_be_here(manager: FakeManager) -> None:
    assert "No training yet" in live(manager)


def test_only_these_fragments_are_known(manager: FakeManager) -> None:
    with pytest.raises(ExtensionError, match=r"no part 'other'; it has 'live', 'history', 'trial' and 'votes'"):
        LivePage(manager, SimpleNamespace(has_prompt=True)).fragment("other", "")


def test_version_changes_exactly_when_the_html_does(manager: FakeManager) -> None:
    job_id = trained(manager)
    page = LivePage(manager, SimpleNamespace(has_prompt=True))
    first = page.fragment("live", "")
    assert page.fragment("live", "") == first and re.fullmatch("[0-9a-f]{16}", first[0])
    manager.change(job_id, version=99)
    assert page.fragment("live", "") == first
    manager.change(job_id, loss=0.5)
    assert page.fragment("live", "")[0] != first[0]


def test_selected_then_active_then_newest_is_shown(manager: FakeManager) -> None:
    for name in ("newest", "working", "other"):
        trained(manager, name=name)

    def shown(selected: str) -> str:
        return re.search(r"<h2>(\w+)", live(manager, selected))[1]

    assert shown("") == "newest"
    manager.at_work = "working"
    assert (shown(""), shown("other"), shown("gone")) == ("working", "other", "working")
    assert Elements(live(manager, "other")).buttons()["Show it"]["data-ts-select"] == "working"
    assert "Show it" not in live(manager)


def test_every_state_is_called_in_words(manager: FakeManager) -> None:
    assert set(STATE_WORDS) == set(STATES)
    job_id = trained(manager)
    for state in STATES:
        manager.change(job_id, state=state)
        assert Elements(live(manager)).with_class("ts-state") == [STATE_WORDS[state]]


ENDED = ["Continue training", "Load these settings"]
BUTTONS = {
    "queued": ["Take out of the queue"],
    "preparing": ["Stop"],
    "training": ["Preview now", "Save now", "Pause", "Stop and save", "Stop and discard"],
    "paused": ["Resume", "Stop and save", "Stop and discard"],
    "completed": ENDED,
    "stopped": ENDED,
    "discarded": ENDED,
    "failed": ENDED,
    "interrupted": ["Resume", "Forget", *ENDED],
}


@pytest.mark.parametrize("state", sorted(BUTTONS))
def test_only_what_makes_sense_can_be_asked(manager: FakeManager, state: str) -> None:
    job_id = trained(manager)
    manager.change(job_id, state=state)
    assert list(Elements(live(manager)).buttons()) == BUTTONS[state]


def test_buttons_say_what_they_ask(manager: FakeManager) -> None:
    trained(manager)
    buttons = Elements(live(manager)).buttons()
    words = {label: json.loads(attrs["data-ts-body"]) for label, attrs in buttons.items()}
    assert words == {
        "Preview now": {"request": "preview"},
        "Save now": {"request": "save"},
        "Pause": {"request": "pause"},
        "Stop and save": {"request": "stop"},
        "Stop and discard": {"request": "discard"},
    }
    assert {attrs["data-ts-post"] for attrs in buttons.values()} == {"jobs/zbadge/ask"}
    assert [label for label, attrs in buttons.items() if "data-ts-confirm" in attrs] == ["Stop and discard"]


def test_progress_of_a_running_job(manager: FakeManager) -> None:
    trained(manager, steps=300)
    text = live(manager)
    bar = next(attrs for _, attrs in Elements(text).tags if attrs.get("role") == "progressbar")
    assert (bar["aria-valuenow"], bar["aria-valuemin"], bar["aria-valuemax"]) == ("300", "0", "1200")
    assert bar["aria-valuetext"] == "step 300 of 1200"
    assert 'style="width: 25.0%"' in text
    figures = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    assert figures == {
        "Step": "300 of 1200",
        "Time left": "22 min",
        "Pace": "1.5 s per step",
        "Loss": "0.2500 (smoothed 0.2500)",
        "Learning rate": "2.00e-04",
        "Memory, peak": "5.2 GiB",
        "Pictures": "24",
        "Trained parameters": "1,613,824",
    }
    assert 'class="ts-chart"' in text


def test_what_happens_before_the_first_step_is_said(manager: FakeManager) -> None:
    trained(manager, steps=0)
    assert "before the first step" in live(manager)
    trained(manager, name="under_way", steps=1)
    assert "before the first step" not in live(manager, "under_way")


def test_an_ended_job_has_no_time_left(manager: FakeManager) -> None:
    trained(manager, JobFinished(reason="stopped", step=3, path=""))
    assert "Time left" not in live(manager)


def test_preparing_says_the_phase(manager: FakeManager) -> None:
    config = job_config()
    manager.add(config, [PhaseProgress(phase="cache latents", done=3, total=12)])
    text = live(manager)
    assert Elements(text).with_class("ts-figures") == ["Cache latents: 3 of 12"]
    assert 'aria-valuenow="3"' in text and 'style="width: 25.0%"' in text
    manager.change("zbadge", phase="load model", phase_done=0, phase_total=0)
    text = live(manager)
    assert Elements(text).with_class("ts-figures") == ["Load model"]
    assert "aria-valuenow" not in text


def test_an_error_comes_with_its_hint(manager: FakeManager) -> None:
    trained(manager, JobFailed(error="X", message="The disk is full.", hint="Free 3 GiB."))
    assert '<div class="ts-error" role="alert"><p>The disk is full.</p><p class="ts-hint">Free 3 GiB.</p>' in live(
        manager
    )


def test_warnings_are_said_once_each(manager: FakeManager) -> None:
    trained(manager, *(Warned(text=text) for text in ("small", "blurry", "small")))
    assert re.findall("<li>(.*?)</li>", live(manager)) == ["blurry", "small (2 times)"]
    manager.change("zbadge", warnings=tuple(f"warning {n}" for n in range(500)))
    assert re.findall("<li>(.*?)</li>", live(manager)) == [f"warning {n}" for n in range(480, 500)]


def test_timeline_shows_the_base_first_and_the_newest_last(manager: FakeManager) -> None:
    config = job_config(preview={"prompts": [{"prompt": "a [name]"}, {"prompt": "a dog"}]})
    manager.add(
        config, [started(config), *(PreviewReady(step=n, path="", grid_path="") for n in (0, 400, 800))]
    )  # fmt: skip
    names = [f"{moment}-{index}.png" for index in (0, 1) for moment in ("base", "000000", "000400", "000800")]
    stamps = draw(manager.folder("zbadge"), names[:-1])  # the last one could not be drawn
    text = live(manager)
    page = Elements(text)
    links = [attrs for tag, attrs in page.tags if tag == "a"]
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    urls = [f"./train-studio/v1/jobs/zbadge/previews/{name}?v={stamp}" for name, stamp in stamps.items()]
    assert [link["href"] for link in links] == [picture["src"] for picture in pictures] == urls
    assert {(link["target"], link["rel"]) for link in links} == {("_blank", "noopener")}
    assert {picture["loading"] for picture in pictures} == {"lazy"}
    assert pictures[2]["alt"] == "a zbadge, step 400"
    assert {(picture["width"], picture["height"]) for picture in pictures} == {("64", "64")}
    assert page.with_class("ts-prompt") == ["a zbadge", "a dog"]
    assert page.with_class("ts-gap") == ["no picture"]
    captions = re.findall("<figcaption>(.*?)</figcaption>", text)
    assert captions == ["base model", "step 0", "step 400", "step 800"] * 2


def test_prompts_taken_from_captions_are_found_in_the_run_folder(manager: FakeManager) -> None:
    config = job_config()
    manager.add(config, [started(config), PreviewReady(step=1, path="", grid_path="")])
    folder = manager.folder("zbadge")
    draw(folder, ["000001-0.png", "000001-1.png"])
    assert Elements(live(manager)).with_class("ts-prompt") == ["zbadge"]
    write_prompts(folder.previews, [PreviewPrompt(prompt="[name]"), PreviewPrompt(prompt="a [name], on grass")])
    assert Elements(live(manager)).with_class("ts-prompt") == ["zbadge", "a zbadge, on grass"]
    (folder.previews / "prompts.json").write_text('[{"prompt": "x", "unknown": 1}]', encoding="utf-8")
    assert Elements(live(manager)).with_class("ts-prompt") == ["zbadge"]


def test_a_run_whose_settings_cannot_be_read_is_still_shown(manager: FakeManager) -> None:
    trained(manager, CheckpointSaved(step=3, path="/lora/zbadge.safetensors", num_modules=4))
    (manager.folder("zbadge").path / "job.json").write_text('{"schema_version": 99}', encoding="utf-8")
    assert "zbadge.safetensors" in live(manager)
    (manager.folder("zbadge").path / "job.json").write_text("{", encoding="utf-8")
    assert "zbadge.safetensors" in live(manager)


def saved(number: int, text: str = "visible", *, is_usable: bool = True, suffix: str = "") -> list[Any]:
    path = f"/lora/zbadge{suffix or f'-{number:06d}'}.safetensors"
    return [
        CheckpointSaved(step=number, path=path, num_modules=4),
        ResultPublished(step=number, path=path, text=text, is_usable=is_usable),
    ]


def test_statement_30_a_result_adds_its_tag_and_nothing_else(manager: FakeManager) -> None:
    trained(manager, *saved(2), dataset={"folder": "/p", "trigger_word": "zword"})
    button = Elements(live(manager)).buttons()["Use in txt2img"]
    assert json.loads(button["data-ts-prompt"]) == {"text": "<lora:zbadge-000002:1> zword", "negative": ""}


def test_an_embedding_is_used_by_its_file_name(manager: FakeManager) -> None:
    trained(manager, *saved(3, suffix="-x"), kind="textual_inversion")
    button = Elements(live(manager)).buttons()["Use in txt2img"]
    assert json.loads(button["data-ts-prompt"])["text"] == "zbadge-x"


def test_the_files_beside_a_result_are_named_and_told_of_when_they_are_of_no_use(manager: FakeManager) -> None:
    beside = ("/embeddings/zhat.safetensors", "/embeddings/zbag.safetensors")
    trained(
        manager,
        CheckpointSaved(step=2, path="/lora/zbadge.safetensors", num_modules=4, beside=beside),
        ResultPublished(step=2, path=beside[0], text="visible as zhat", is_usable=True),
        ResultPublished(step=2, path=beside[1], text="hidden by another file of the same name", is_usable=False),
        ResultPublished(step=2, path="/lora/zbadge.safetensors", text="visible", is_usable=True),
    )
    page = live(manager)
    assert "with zhat.safetensors, zbag.safetensors" in page
    assert "zbag.safetensors is hidden by another file of the same name." in page
    assert "zhat.safetensors is visible" not in page


def test_a_negative_embedding_goes_into_the_negative_prompt(manager: FakeManager) -> None:
    method = {"kind": "textual_inversion", "is_negative": True}
    trained(manager, *saved(3), kind="textual_inversion", method=method)
    button = Elements(live(manager)).buttons()["Use in txt2img"]
    assert json.loads(button["data-ts-prompt"]) == {"text": "", "negative": "zbadge-000003"}
    assert button["title"].startswith("Adds zbadge-000003 to the negative prompt;")
    assert Elements(live(manager, has_prompt=False)).buttons()["Copy"]["data-ts-copy"] == "zbadge-000003"


def test_without_prompts_a_result_can_be_copied(manager: FakeManager) -> None:
    trained(manager, *saved(2), PreviewReady(step=2, path="", grid_path=""))
    draw(manager.folder("zbadge"), ["000002-0.png"])
    buttons = Elements(live(manager, has_prompt=False)).buttons()
    assert buttons["Copy"]["data-ts-copy"] == "<lora:zbadge-000002:1> zbadge"
    assert "Seed: 1" in buttons["Copy settings"]["data-ts-copy"]
    assert "Use in txt2img" not in buttons and "Reproduce" not in buttons


def test_statement_30_reproduce_carries_prompt_negative_seed_and_size(manager: FakeManager) -> None:
    prompts = [{"prompt": "a [name]", "negative_prompt": "bad", "seed": 5, "height_px": 96}]
    trained(manager, *saved(2), PreviewReady(step=2, path="", grid_path=""), preview={"prompts": prompts})
    assert "Reproduce" not in live(manager)
    draw(manager.folder("zbadge"), ["000002-0.png"])
    text = Elements(live(manager)).buttons()["Reproduce"]["data-ts-reproduce"]
    assert text.startswith("a zbadge <lora:zbadge-000002:1>\nNegative prompt: bad\nSteps: 20, Sampler: DPM++ 2M,")
    assert "Seed: 5, Size: 64x96" in text


def test_results_say_what_the_host_said(manager: FakeManager) -> None:
    trained(
        manager, *saved(2, "visible as <lora:zbadge-000002:1>"), *saved(3, "not listed", is_usable=False, suffix="-z")
    )
    page = Elements(live(manager))
    assert page.with_class("ts-said") == ["visible as <lora:zbadge-000002:1>", "not listed"]
    assert page.with_class("ts-bad") == ["not listed"]
    assert [re.match(r"\S+ step \d+", text)[0] for text in page.with_class("ts-result")] == [
        "zbadge-000002.safetensors step 2",
        "zbadge-z.safetensors step 3",
    ]


def test_keep_only_this_one_asks_first_and_only_for_ended_runs_of_several(manager: FakeManager) -> None:
    trained(manager, *saved(2), *saved(3, suffix="-z"))
    assert "Keep only" not in live(manager)  # it is still being trained
    manager.change("zbadge", state="stopped")
    buttons = [
        a for t, a in Elements(live(manager)).tags if t == "button" and a.get("data-ts-post", "").endswith("keep")
    ]
    assert [json.loads(button["data-ts-body"]) for button in buttons] == [{"step": 2}, {"step": 3}]
    assert "delete the other result file of this run" in buttons[0]["data-ts-confirm"]
    manager.change("zbadge", results=manager.status("zbadge").results[:1])
    assert "Keep only" not in live(manager)


@pytest.mark.parametrize(("step_now", "length", "offered"), [(1200, 1200, 1800), (300, 1200, 1200), (1, 1, 2)])
def test_continuing_is_offered_half_as_long_again(
    manager: FakeManager, step_now: int, length: int, offered: int
) -> None:
    trained(manager)
    manager.change("zbadge", state="stopped", step=step_now, max_train_steps=length)
    page = Elements(live(manager))
    (field,) = (attrs for tag, attrs in page.tags if tag == "input")
    assert (field["type"], field["name"], field["value"]) == ("number", "max_train_steps", str(offered))
    assert int(field["min"]) == step_now + 1
    assert page.buttons()["Continue training"]["data-ts-post"] == "jobs/zbadge/continue"
    assert page.buttons()["Load these settings"]["data-ts-load"] == "run:zbadge"


def test_marks_for_the_script(manager: FakeManager) -> None:
    trained(manager, *saved(2), CheckpointSaved(step=3, path="/unasked", num_modules=1))
    assert 'data-ts-published="1"' in live(manager) and "data-ts-active" not in live(manager)
    assert "data-ts-checkpoints" not in live(manager)
    manager.at_work = "zbadge"
    assert "data-ts-active" in live(manager)


def test_a_published_checkpoint_is_marked_for_the_script(manager: FakeManager) -> None:
    trained(manager, *saved(2), kind="dreambooth")
    assert 'data-ts-published="1" data-ts-checkpoints="1"' in live(manager)


EVIL = "<img src=x onerror=alert(1)>\"'&\u00fc"


def test_everything_from_outside_is_escaped(manager: FakeManager) -> None:
    prompts = [{"prompt": EVIL, "negative_prompt": EVIL}]
    events = [
        *saved(2, EVIL),
        PreviewReady(step=2, path="", grid_path=""),
        Warned(text=EVIL),
        JobFailed(error=EVIL, message=EVIL, hint=EVIL),
    ]
    job_id = trained(manager, *events, preview={"prompts": prompts})
    folder = manager.folder(job_id)
    draw(folder, ["base-0.png", "000002-0.png"])
    result = manager.status(job_id).results[0]
    manager.change(
        job_id,
        name=EVIL,
        preset=EVIL,
        base_model=EVIL,
        trigger_word=EVIL,
        results=(result, type(result)(3, f"/lora/{EVIL}.safetensors", 1, EVIL)),
    )
    for has_prompt in (True, False):
        for state in ("training", "failed", "preparing"):
            manager.change(job_id, state=state, phase=EVIL)
            text = live(manager, has_prompt=has_prompt)
            page = Elements(text)
            assert html.escape(EVIL) in text
            assert not [attrs for _, attrs in page.tags if "onerror" in attrs]
            assert "<img src=x" not in text


def test_a_job_id_is_quoted_in_addresses(manager: FakeManager) -> None:
    name = "m\u00fc 1%"
    trained(manager, PreviewReady(step=1, path="", grid_path=""))
    status = manager.status("zbadge")
    folder = manager.folder("zbadge").path
    folder.rename(folder.with_name(name))
    manager.known = {name: status}
    manager.change(name, job_id=name)
    draw(manager.folder(name), ["base-0.png"])
    text = live(manager)
    assert "./train-studio/v1/jobs/m%C3%BC%201%25/previews/base-0.png" in text
    assert 'data-ts-post="jobs/m%C3%BC%201%25/ask"' in text
    assert f"run {name}" in text


def test_a_long_run_stays_small_and_quick(manager: FakeManager) -> None:
    config = job_config(preview={"prompts": [{"prompt": f"prompt {n}"} for n in range(3)]})
    manager.add(config, [started(config), step(1)])
    moments = tuple(range(10, 10_001, 10))
    curve = tuple((n, 0.1 + (n % 7) / 100) for n in range(1, 10_001))
    manager.change("zbadge", step=10_000, max_train_steps=10_000, curve=curve, preview_steps=moments)
    draw(manager.folder("zbadge"), [f"{moment:06d}-{index}.png" for moment in moments[-60:] for index in range(3)])
    before = time.process_time()
    text = live(manager)
    assert time.process_time() - before < 1.0
    assert len(text.encode()) < 100_000
    assert "The first 960 previews are in the run's folder." in text


def test_statement_12_no_id_is_one_the_webui_reacts_to(manager: FakeManager) -> None:
    trained(manager, *saved(2), PauseChanged(paused=True, step=3))
    ids = [attrs["id"] for _, attrs in Elements(live(manager)).tags if "id" in attrs]
    assert ids and all(name.startswith("train_studio_") for name in ids)
    assert not [name for name in ids if re.search("_(generate|interrupt|skip|results|gallery)$", name)]
