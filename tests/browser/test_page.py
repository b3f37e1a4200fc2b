"""What holds for the page as a whole: ids, names, keys, width, speed; and what it does when its server dies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import expect

from extensions_lib.config.codec import load
from extensions_lib.events import EventStream, JobFinished, StepCompleted, TrainingStarted
from extensions_lib.host.standalone import practice_job
from extensions_lib.jobs.sinks import JsonlSink
from extensions_lib.jobs.store import RunFolder, create_run_folder

from .studio import LIVE_MS, LONG, Server, Studio, is_scrolled_sideways, nameless_controls

FOCUSED = """() => {
    const focused = document.activeElement, style = getComputedStyle(focused);
    return [focused.textContent.trim(), style.outlineStyle !== "none" || style.boxShadow !== "none"];
}"""
NUM_RUNS = 500
NUM_STEPS = 100


def _unfold_all(studio: Studio) -> None:
    parts = ("like", "method", "training", "prior", "optimizer", "dataset", "preview", "output", "why", "mine")
    for part in parts:
        studio.page.locator(f"#train_studio_{part} > .label-wrap").click()
    for more in studio.page.locator("[id^=train_studio_more_] > .label-wrap").all():
        if more.is_visible():
            more.click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_fits_at_1280_px(open_page: Callable[..., Studio], scheme: str):
    studio = open_page(color_scheme=scheme)
    _unfold_all(studio)
    studio.check(10)

    assert nameless_controls(studio) == []
    assert not is_scrolled_sideways(studio)


def test_statement_09_no_id_is_there_twice(studio: Studio):
    studio.check(10)
    ids = studio.page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id).filter(Boolean)")
    ids = [name for name in ids if not name.startswith("component-")]  # gradio 3.41 itself gives gr.HTML's id twice

    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert [name for name in ids if name.endswith(("_generate", "_interrupt", "_skip", "_results", "_gallery"))] == []


def test_check_and_train_are_reached_with_the_keyboard_and_seen(studio: Studio):
    studio.setting("dataset.trigger_word").focus()
    reached = []
    for _ in range(2):
        studio.page.keyboard.press("Tab")
        reached.append(studio.page.evaluate(FOCUSED))
    assert reached == [["Check", True], ["Train", True]]


def test_statement_12_keys_of_the_host_neither_start_nor_stop_a_job(studio: Studio):
    field = studio.setting("dataset.trigger_word")
    keys = ("Control+Enter", "Alt+Enter", "Escape")
    for key in keys:
        field.press(key)
    studio.train(LONG | {"job.name": "keys"})
    studio.expect_state("Training")
    for key in keys:
        field.press(key)
        studio.live.get_by_role("button", name="Pause").press(key)

    studio.expect_step_after(studio.step() + 1)
    assert studio.state.inner_text() == "Training"
    expect(studio.history.locator("tbody tr")).to_have_count(1)
    assert not is_scrolled_sideways(studio)
    assert nameless_controls(studio) == []
    studio.ask("Stop and save")
    studio.expect_state("Stopped")


def test_a_file_of_another_trainer_fills_the_form_and_says_what_does_not_map(studio: Studio, tmp_path: Path):
    preset = tmp_path / "preset.json"
    settings = {"training_method": "LORA", "lora_rank": 6, "epochs": 2, "learning_rate_scheduler": "REX"}
    preset.write_text(json.dumps(settings), encoding="utf-8")
    studio.page.locator("#train_studio_like > .label-wrap").click()
    place = studio.page.locator("#train_studio_like_file")
    place.locator("input[type=file]").set_input_files(preset)
    expect(place.locator("tr.file")).to_have_count(1)
    studio.press("Fill the form from it")
    expect(studio.message).to_contain_text("The form is filled in from a OneTrainer config.")
    expect(studio.message).to_contain_text("learning_rate_scheduler = REX")
    expect(studio.setting("lora.rank")).to_have_value("6")
    expect(studio.setting("training.num_samples")).to_have_value("20")  # ten pictures in the practice folder
    why = studio.page.locator("#train_studio_why_text")
    expect(why).to_contain_text("holds a face and its clothes")


def test_statement_17_a_killed_server_offers_to_resume(studio: Studio, server: Server):
    settings = {"training.max_train_steps": "60", "training.train_batch_size": "4", "training.state_every_steps": "5"}
    studio.train(LONG | settings | {"job.name": "killed"})
    studio.expect_state("Training")
    studio.expect_step_after(5)
    server.kill()
    expect(studio.page.locator(".ts-connection")).to_contain_text("retrying")
    assert not list((server.folder / "loras").glob("killed*"))
    run = RunFolder(server.folder / "runs" / "killed")
    done = max(event.step for event in run.events() if isinstance(event, StepCompleted))

    server.start()
    banner = studio.live.locator(".ts-banner")
    expect(banner).to_contain_text("killed was interrupted")
    assert studio.setting("job.name").input_value() == "killed"
    studio.errors.clear()  # that the server was away
    banner.get_by_role("button", name="Resume").click()
    studio.expect_state("Completed")
    assert studio.step() == 60
    first_steps = [event.first_step for event in run.events() if isinstance(event, TrainingStarted)]
    assert first_steps[0] == 0 and 0 <= done - first_steps[1] <= 5
    expect(banner).to_have_count(0)
    assert (server.folder / "loras" / "killed.safetensors").is_file()


def test_a_history_of_500_runs_is_shown_within_two_seconds(studio: Studio, server: Server):
    studio.page.goto("about:blank")  # so that the server meets them all at once
    before = len(list((server.folder / "runs").glob("*/job.json")))
    _write_runs(server, NUM_RUNS)

    studio.open()
    expect(studio.history.get_by_text("older runs")).to_be_visible(timeout=LIVE_MS)
    expect(studio.history.locator("tbody tr")).to_have_count(NUM_RUNS + before)
    studio.history.locator("summary").click()
    expect(studio.history.get_by_text("fake-000", exact=True)).to_be_visible(timeout=LIVE_MS)
    assert not is_scrolled_sideways(studio)


def _write_runs(server: Server, number: int) -> None:
    """Finished runs of a hundred steps, with no picture and no result."""
    table = practice_job() | {"output": {"folder": str(server.folder / "loras")}}
    folders = [
        create_run_folder(server.folder / "runs", load(table | {"name": f"fake-{index:03}"})) for index in range(number)
    ]
    with closing(JsonlSink(folders[0].event_file)) as sink:
        events = EventStream(folders[0].job_id, (sink,))
        events.emit(
            TrainingStarted(
                name="fake", method="lora", first_step=0, max_train_steps=NUM_STEPS, num_examples=10,
                num_parameters=1000, run_folder="",
            )
        )  # fmt: skip
        for step in range(1, NUM_STEPS + 1):
            events.emit(
                StepCompleted(
                    step=step, loss=0.1, learning_rate=1e-4, num_examples_seen=step, seconds=0.1, peak_memory_gib=0
                )
            )
        events.emit(JobFinished(reason="completed", step=NUM_STEPS, path=""))
    story = folders[0].event_file.read_text(encoding="utf-8")
    for folder in folders[1:]:
        folder.event_file.write_text(story.replace(folders[0].job_id, folder.job_id), encoding="utf-8")
