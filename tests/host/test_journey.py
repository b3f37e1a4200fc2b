"""From pictures to a result in the prompt, in a browser on the real WebUI; each test builds on those before it.

What is measured against the clock is noted in `seconds` and printed at the end (`pytest -s`).
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from tests.browser.conftest import WAIT_MS, browser  # noqa: F401
from tests.browser.studio import LIVE_MS, STEP, TRAIN_MS

from .client import Picture
from .page import HostPage, typing
from .server import HostServer, Place, complaints, wait_for_state

pytestmark = pytest.mark.timeout(900)

PROMPT = "a red circle on a blue background"
NEGATIVE = "a green square"
# What the practice model learns from in a short time; the names of the form's fields.
QUICK = {
    "dataset.resolution_px": "64", "dataset.trigger_word": "zbadge",
    "lora.rank": "4", "lora.text_encoder_learning_rate": "1e-3", "optimizer.learning_rate": "4e-3",
    "training.train_batch_size": "4", "training.max_train_steps": "60", "training.num_threads": "1",
    "training.validation_every_steps": "0", "preview.every_steps": "30",
    "preview.prompts": "a [name] on a red background", "prompt.negative_prompt": "a black circle",
    "prompt.num_steps": "4", "prompt.seed": "77",
}  # fmt: skip
LONG = {"training.max_train_steps": "100000", "preview.every_steps": "10"}
# Mean difference, of 255, between a preview and the host's picture of the same parameters.
ROUNDING = 3.0
COUNT_SECONDS, RELOAD_SECONDS, ROUTE_SECONDS = 2.0, 15.0, 1.0
ALL_MATCHED = re.compile(r"visible as <lora:\w+:1>, (\d+) of \1 modules matched")
NEWEST_IS_SEEN = """() => {
    const strip = document.querySelector("#tab_train_studio .ts-strip");
    return strip && strip.clientWidth > 0 && strip.scrollLeft + strip.clientWidth >= strip.scrollWidth - 4;
}"""
KEYS = ("Control+Enter", "Alt+Enter", "Escape")


@dataclass
class Journey:
    """What the tests tell each other."""

    pictures: dict[str, Picture] = field(default_factory=dict)
    params: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def note(self, what: str, seconds: float) -> None:
        self.seconds.setdefault(what, []).append(round(seconds, 2))


@pytest.fixture(scope="module")
def journey() -> Iterator[Journey]:
    journey = Journey()
    yield journey
    print("\n" + json.dumps(journey.seconds))  # noqa: T201


@pytest.fixture(scope="module")
def server(webui_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    server = HostServer(webui_root, Place.make(tmp_path_factory.mktemp("host")))
    server.start("--api", "--skip-install")
    yield server
    server.stop()
    logs = sorted(server.place.folder.glob("start-*.log"))
    assert [log.name for log in logs if "Traceback" in complaints(log)] == []


@pytest.fixture(scope="module")
def open_page(browser: Browser, server: HostServer) -> Iterator[Callable[[], HostPage]]:  # noqa: F811
    """Opens the WebUI's page at our tab as a new visitor does."""
    pages: list[HostPage] = []

    def open_page() -> HostPage:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
        context.set_default_timeout(WAIT_MS)
        pages.append(HostPage(context.new_page(), server.url))
        pages[-1].open()
        return pages[-1]

    yield open_page
    for page in pages:
        page.page.context.close()


@pytest.fixture(scope="module")
def page(open_page: Callable[[], HostPage]) -> HostPage:
    """One page for all tests of this file."""
    return open_page()


def start(page: HostPage, settings: dict[str, str]) -> None:
    """Fill the form, on the loaded checkpoint, and press Train."""
    page.show("Train Studio")
    page.unfold_for("training.mixed_precision")
    page.choose("training_mixed_precision", "fp32")
    page.train(QUICK | settings)


def stop(page: HostPage) -> None:
    page.show("Train Studio")
    page.ask("Stop and save")
    page.expect_state("Stopped")


def finish(page: HostPage, steps: int) -> None:
    """Wait for the end of the job that was just started; the one before it may still be shown."""
    expect(page.live.locator(STEP).first).to_have_text(f"{steps} of {steps}", timeout=2 * TRAIN_MS)
    page.expect_state("Completed")


def test_statement_09_and_11_the_page_has_every_id_once(page: HostPage):
    script = "[...document.querySelectorAll('[id]')].map((one) => one.id).filter(Boolean)"
    ids = page.page.evaluate(script)
    assert any(name.startswith("train_studio_") for name in ids)
    twice = [name for name, count in Counter(ids).items() if count > 1]
    assert [name for name in twice if "train_studio" in name] == []
    assert page.page.evaluate("Object.keys(window).filter((name) => /train.?studio/i.test(name))") == ["trainStudio"]


def test_statement_01_check_shows_the_pictures(page: HostPage, server: HostServer):
    page.fill({"job.name": "first", "dataset.folder": str(server.place.pictures), "dataset.resolution_px": "64"})
    page.press("Check")
    expect(page.report.locator("img")).to_have_count(10, timeout=TRAIN_MS)
    expect(page.report).to_contain_text("of 75 tokens")


def test_a_picture_before_everything(page: HostPage, journey: Journey, server: HostServer):
    page.set_up_txt2img(PROMPT, NEGATIVE)
    journey.pictures["before"] = page.generate()
    assert page.generate().same_as(journey.pictures["before"]), "the host does not repeat itself: nothing can be shown"
    journey.params = server.place.params()
    assert PROMPT in journey.params
    for words in ("one two three", "a red circle", "blue"):
        journey.note("count tokens, no job", page.seconds_to_count(words))


def test_previews_arrive(page: HostPage, server: HostServer):
    start(page, LONG | {"job.name": "first", "dataset.folder": str(server.place.pictures)})
    expect(page.timeline).to_have_count(4, timeout=2 * TRAIN_MS)
    assert page.state.inner_text() == "Training"
    assert page.timeline.last.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64


def test_statement_15_tokens_are_counted_while_a_job_trains(page: HostPage, journey: Journey):
    """The page itself waits most of a second before it asks, and on a busy machine longer: that is taken off."""
    for words in ("one two three", "a red circle", "four five", "blue", "a b c d e"):
        journey.note("count tokens", page.seconds_to_count(words))
    with_job, without = (statistics.median(journey.seconds[f"count tokens{end}"]) for end in ("", ", no job"))
    assert with_job - without < COUNT_SECONDS, journey.seconds


def test_statement_19_21_and_24_a_picture_in_mid_training_is_the_same(
    page: HostPage, journey: Journey, server: HostServer
):
    page.set_up_txt2img(PROMPT, NEGATIVE)
    for _ in range(2):
        began = time.monotonic()
        assert page.generate().same_as(journey.pictures["before"])
        journey.note("generate", time.monotonic() - began)
    assert server.place.params() == journey.params
    page.show("Train Studio")
    page.expect_step_after(page.step())
    assert page.state.inner_text() == "Training"


def test_statement_18_the_hosts_interrupt_is_not_ours(page: HostPage, server: HostServer):
    for path in ("interrupt", "skip"):
        server.webui.post(f"/sdapi/v1/{path}", {})
    page.expect_step_after(page.step() + 3)
    assert page.state.inner_text() == "Training"


def test_statement_12_keys_neither_start_nor_stop_anything(page: HostPage, server: HostServer):
    pictures = len(list((server.place.folder / "outputs").rglob("*.png")))
    runs = len(list(server.place.runs.iterdir()))
    for key in KEYS:
        page.setting("dataset.trigger_word").press(key)
        page.live.get_by_role("button", name="Pause").press(key)
    page.expect_step_after(page.step() + 3)
    assert page.state.inner_text() == "Training"
    assert len(list((server.place.folder / "outputs").rglob("*.png"))) == pictures
    assert len(list(server.place.runs.iterdir())) == runs


def test_statement_34_every_route_answers_within_a_second(page: HostPage, journey: Journey, server: HostServer):
    job = "/train-studio/v1/jobs/first"
    paths = [
        "presets", "settings", "host", "jobs", "jobs/first", "jobs/first/events?after=0", "jobs/first/config",
        "page/live?selected=&seen=", "page/history?selected=&seen=", "jobs/first/previews/base-0.png",
    ]  # fmt: skip
    for path in paths:
        status, _, seconds = server.status_of(f"/train-studio/v1/{path}")
        assert (status, seconds < ROUTE_SECONDS) == (200, True), (path, seconds)
        journey.note("routes", seconds)
    for body in ({"request": "preview"}, {"request": "save"}):
        status, _, seconds = server.status_of(f"{job}/ask", body)
        assert (status, seconds < ROUTE_SECONDS) == (202, True), (body, seconds)


def test_statement_13_a_reload_shows_the_job_within_two_seconds(page: HostPage, journey: Journey, server: HostServer):
    runs = len(list(server.place.runs.iterdir()))
    page.reload()
    began = time.monotonic()
    expect(page.state).to_have_text("Training", timeout=LIVE_MS)
    journey.note("re-attach after F5", time.monotonic() - began)
    page.show("Train Studio")
    page.page.wait_for_function(NEWEST_IS_SEEN, timeout=LIVE_MS)
    page.expect_step_after(page.step())
    assert len(list(server.place.runs.iterdir())) == runs


def test_statement_14_reload_ui_takes_seconds_and_the_job_goes_on(
    page: HostPage, open_page: Callable[[], HostPage], journey: Journey, server: HostServer
):
    page.show("Train Studio")
    step = page.step()
    other = open_page()
    page.show("Settings")
    with typing(other.page):
        other.page.wait_for_timeout(1000)
        page.page.evaluate("window.isOldPage = true")
        began = time.monotonic()
        page.page.locator("#settings_restart_gradio").click()
        while server.text().count("Startup time:") < 2:
            assert time.monotonic() - began < 60, server.text()[-3000:]
            time.sleep(0.05)
        seconds = time.monotonic() - began
    other.page.context.close()
    journey.note("Reload UI", seconds)
    is_new = "!window.isOldPage && typeof opts === 'object' && Object.keys(opts).length > 0"
    page.page.wait_for_function(is_new, timeout=60_000)
    expect(page.state).to_have_text("Training", timeout=LIVE_MS)
    page.show("Train Studio")
    page.expect_step_after(step)
    assert seconds < RELOAD_SECONDS


def test_statement_16_20_and_21_stop_and_save_leaves_everything_as_it_was(
    page: HostPage, journey: Journey, server: HostServer
):
    stop(page)
    server.expect_free()
    result = page.live.locator(".ts-result").last
    expect(result).to_contain_text("first.safetensors")
    expect(result).to_contain_text(ALL_MATCHED)
    page.set_up_txt2img(PROMPT, NEGATIVE)
    assert page.generate().same_as(journey.pictures["before"])
    assert server.place.params() == journey.params


def test_statement_25_and_30_use_in_txt2img_adds_to_the_prompt_only(page: HostPage, journey: Journey):
    numbers = page.numbers()
    page.show("Train Studio")
    page.live.locator(".ts-result").last.get_by_role("button", name="Use in txt2img").click()
    expect(page.prompt).to_be_visible()
    assert page.prompt.input_value() == f"{PROMPT} <lora:first:1> zbadge"
    assert page.negative.input_value() == NEGATIVE
    assert page.numbers() == numbers
    journey.pictures["first"] = page.generate()
    assert journey.pictures["first"].distance(journey.pictures["before"]) > 0.5
    assert "Lora hashes" in journey.pictures["first"].infotext


def test_statement_25_the_card_is_there_with_preview_and_description(page: HostPage):
    card = page.cards("Lora").and_(page.page.locator("[data-name=first]"))
    expect(card).to_have_count(1)
    assert card.locator("img.preview").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    expect(card.locator(".description")).not_to_be_empty()
    page.back_to_generation()


def test_statement_26_training_again_changes_the_next_picture(page: HostPage, journey: Journey, server: HostServer):
    page.set_up_txt2img(f"{PROMPT} <lora:first:1> zbadge", NEGATIVE)
    assert page.generate().same_as(journey.pictures["first"])
    page.show("Train Studio")
    page.unfold_for("output.overwrite")
    page.setting("output.overwrite").check()
    start(page, {"job.name": "first", "training.max_train_steps": "15", "dataset.folder": str(server.place.pictures)})
    finish(page, 15)
    page.show("txt2img")
    journey.pictures["again"] = page.generate()
    assert journey.pictures["again"].distance(journey.pictures["first"]) > 0.5


def test_statement_30_reproduce_restores_everything_of_a_preview(page: HostPage, server: HostServer):
    page.set_up_txt2img("something else", "")
    page.number("width").fill("128")
    page.number("width").blur()
    page.show("Train Studio")
    result = page.live.locator(".ts-result").last
    preview = page.picture(result.locator("figure img").first.evaluate("image => image.src"))
    result.get_by_role("button", name="Reproduce").first.click()
    expect(page.prompt).to_have_value("a zbadge on a red background <lora:first:1>")
    expect(page.negative).to_have_value("a black circle")
    expect(page.number("seed")).to_have_value("77")
    numbers = page.numbers()
    assert [numbers[name] for name in ("steps", "width", "height")] == ["4", "64", "64"]
    assert page.generate().distance(preview) < ROUNDING


def test_statement_25_26_and_28_an_embedding_too(page: HostPage, journey: Journey, server: HostServer):
    """Its card had a text and a picture of the user's own before."""
    server.place.embeddings.mkdir(exist_ok=True)
    own = {"description": "mine", "notes": "keep this"}
    sidecar = server.place.embeddings / "zemb.json"
    sidecar.write_text(json.dumps(own), encoding="utf-8")
    preview = server.place.embeddings / "zemb.preview.png"
    Image.new("RGB", (8, 8), "red").save(preview)
    before = preview.read_bytes()
    page.set_up_txt2img(f"{PROMPT}, zemb", NEGATIVE)
    pictures = [page.generate()]
    for steps in ("8", "20"):
        page.show("Train Studio")
        page.page.locator("#train_studio_method_kind").get_by_label("Embedding", exact=True).check()
        expect(page.page.locator("#train_studio_dataset_trigger_word")).to_be_hidden()
        settings = {name: value for name, value in QUICK.items() if "lora" not in name and "trigger" not in name}
        page.fill(settings | {"job.name": "zemb", "training.max_train_steps": steps, "optimizer.learning_rate": "0.05"})
        page.fill({"dataset.folder": str(server.place.pictures)})
        page.unfold_for("output.overwrite")
        page.setting("output.overwrite").check()
        page.press("Train")
        expect(page.message).to_contain_text("started")
        finish(page, int(steps))
        expect(page.live.locator(".ts-result").last).to_contain_text("visible as zemb, ")
        page.show("txt2img")
        pictures.append(page.generate())
        assert pictures[-1].distance(pictures[-2]) > 0.5
        assert "TI hashes" in pictures[-1].infotext
    kept = json.loads(sidecar.read_text(encoding="utf-8"))
    assert {name: kept[name] for name in own} == own
    assert preview.read_bytes() == before
    cards = page.cards("Textual Inversion")
    expect(cards).to_have_count(1)
    expect(cards.locator(".description")).to_have_text("mine")
    page.back_to_generation()
    assert [path.name for path in server.place.folder.rglob("*.txt") if path.stem in ("first", "zemb")] == []
    server.expect_free()


def test_statement_17_kill_9_and_resume(page: HostPage, journey: Journey, server: HostServer):
    page.show("Train Studio")
    page.page.locator("#train_studio_method_kind").get_by_label("LoRA", exact=True).check()
    expect(page.page.locator("#train_studio_dataset_trigger_word")).to_be_visible()
    length = {"training.max_train_steps": "40", "training.state_every_steps": "10", "preview.every_steps": "100"}
    start(page, length | {"job.name": "killed", "dataset.folder": str(server.place.pictures)})
    page.expect_state("Training")
    page.expect_step_after(22)
    files = {path.name for path in server.place.loras.iterdir()}
    server.kill()
    assert {path.name for path in server.place.loras.iterdir()} == files
    assert not any("killed" in name for name in files)

    server.start("--api", "--skip-install")
    page.open()
    banner = page.page.locator("#tab_train_studio .ts-banner")
    expect(banner).to_contain_text("Run killed was interrupted at step")
    banner.get_by_role("button", name="Resume").click()
    finish(page, 40)
    expect(banner).to_have_count(0)
    story = (server.place.runs / "killed" / "events.jsonl").read_text(encoding="utf-8")
    events = [json.loads(line) for line in story.splitlines()]
    starts = [event["first_step"] for event in events if event["event"] == "TrainingStarted"]
    assert len(starts) == 2 and starts[1] >= 20, starts
    expect(page.live.locator(".ts-result")).to_contain_text(ALL_MATCHED)


def test_statement_26_after_a_restart_the_picture_is_the_one_that_was_drawn_before_it(
    page: HostPage, journey: Journey, server: HostServer
):
    """So the picture after the second training came from the new weights alone."""
    page.set_up_txt2img(f"{PROMPT} <lora:first:1> zbadge", NEGATIVE)
    assert page.generate().same_as(journey.pictures["again"])
    page.set_up_txt2img(PROMPT, NEGATIVE)
    assert page.generate().same_as(journey.pictures["before"])
    server.expect_free()


def test_no_traceback_in_the_end(server: HostServer):
    assert wait_for_state(server, "killed", "completed")["state"] == "completed"
    assert "Traceback" not in complaints(server.log)
