"""From pictures to a result in the prompt, as a person goes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import expect

from extensions_lib.ui.wording import PURPOSES

from .studio import LIVE_MS, LONG, SMALL, TRAIN_MS, Server, Studio


def test_check_shows_what_the_model_will_see(studio: Studio):
    studio.check(10)
    expect(studio.report).to_contain_text("64x64")
    expect(studio.report).to_contain_text("6 of 75 tokens")
    expect(studio.report).to_contain_text("200 steps")
    assert studio.history.get_by_text("No runs yet").is_visible(), "Check must not make a run"


def test_previews_arrive_while_it_trains_and_what_is_typed_stays(studio: Studio):
    studio.train(LONG | {"job.name": "first", "preview.every_steps": "4"})

    expect(studio.timeline.nth(3)).to_be_visible(timeout=TRAIN_MS)  # the base model, steps 0, 4 and 8
    assert studio.state.inner_text() == "Training"
    assert studio.timeline.last.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    expect(studio.live.locator(".ts-chart polyline.ts-smooth")).to_have_count(1)
    word = studio.setting("dataset.trigger_word")
    word.press_sequentially("a word typed while")
    studio.expect_step_after(studio.step())
    word.press_sequentially(" it trains")
    studio.expect_step_after(studio.step())
    expect(word).to_be_focused()
    assert word.input_value() == "a word typed while it trains"

    studio.ask("Stop and save")
    studio.expect_state("Stopped")
    studio.ask("Copy")
    expect(studio.live.get_by_role("button", name="copied")).to_be_visible()
    assert studio.copied() == "<lora:first:1> first"


def test_statement_13_reloading_or_a_second_page_neither_stops_nor_doubles_a_job(
    studio: Studio, open_page: Callable[..., Studio]
):
    studio.train(LONG | {"job.name": "long", "dataset.trigger_word": "zbadge"})
    studio.expect_state("Training")
    seen = studio.expect_step_after(2)

    studio.reload()
    expect(studio.state).to_have_text("Training", timeout=LIVE_MS)
    expect(studio.timeline).to_have_count(2, timeout=LIVE_MS)
    second = open_page()
    expect(second.state).to_have_text("Training", timeout=LIVE_MS)
    for page in (studio, second):
        assert page.expect_step_after(seen) > seen
    expect(second.history.locator("tbody tr")).to_have_count(2)

    second.ask("Pause")
    studio.expect_state("Paused")
    studio.ask("Resume")
    second.expect_state("Training")
    second.ask("Stop and save")
    studio.expect_state("Stopped")


def test_preview_now_save_now_stop_use_and_resume(studio: Studio, server: Server):
    studio.train(LONG | {"job.name": "asked", "dataset.trigger_word": "zbadge"})
    studio.expect_state("Training")
    studio.expect_step_after(0)

    studio.ask("Preview now")
    expect(studio.timeline).to_have_count(3, timeout=TRAIN_MS)
    studio.ask("Save now")
    result = studio.live.locator(".ts-result")
    expect(result).to_have_count(1, timeout=TRAIN_MS)
    studio.ask("Stop and save")
    studio.expect_state("Stopped")
    expect(result).to_have_count(2)
    last = result.filter(has_text=f"step {studio.step()}")
    expect(last).to_contain_text("asked.safetensors")
    last.get_by_role("button", name="Copy", exact=True).click()
    expect(last.get_by_role("button", name="copied")).to_be_visible()
    assert studio.copied() == "<lora:asked:1> zbadge"

    stopped_at = studio.step()
    studio.live.get_by_label("to step").fill(str(stopped_at + 3))
    studio.ask("Continue training")
    studio.expect_state("Completed")
    assert studio.step() == stopped_at + 3
    assert (server.folder / "loras" / "asked.safetensors").is_file()

    keep = studio.live.locator(".ts-result", has_text=f"step {stopped_at + 3}")
    keep.get_by_role("button", name="Keep only this one").click()
    expect(result).to_have_count(1)
    assert [file.name for file in (server.folder / "loras").glob("asked*.safetensors")] == ["asked.safetensors"]


def test_dropped_pictures_become_an_embedding(studio: Studio, badge_pictures: Path):
    studio.page.locator("#train_studio_method_kind").get_by_label("Embedding", exact=True).check()
    expect(studio.page.locator("#train_studio_start input")).to_have_value(PURPOSES["embedding_subject"])
    studio.setting("dataset.folder").fill("")
    studio.drop([badge_pictures / f"{number:02}{ending}" for number in (1, 2, 3) for ending in (".png", ".txt")])
    studio.fill(SMALL | {"job.name": "zdropped", "training.max_train_steps": "2", "dataset.resolution_px": "64"})

    studio.check(3)
    studio.press("Train")
    expect(studio.message).to_contain_text("started")
    expect(studio.report.locator("img")).to_have_count(0)  # it makes room for the job
    studio.expect_state("Completed")
    studio.ask("Copy")
    expect(studio.live.get_by_role("button", name="copied")).to_be_visible()
    assert studio.copied() == "zdropped"


def test_discard_asks_first_and_writes_no_result(studio: Studio, server: Server):
    studio.train(LONG | {"job.name": "unwanted"})
    studio.expect_state("Training")
    seen = studio.expect_step_after(0)

    studio.accepts = False
    studio.ask("Stop and discard")
    studio.expect_step_after(seen)
    studio.accepts = True
    studio.ask("Stop and discard")
    studio.expect_state("Stopped, result discarded")
    assert len(studio.questions) == 2 and "without saving" in studio.questions[0]
    assert not list((server.folder / "loras").glob("unwanted*"))


def test_a_wrong_setting_is_named_and_nothing_typed_is_lost(studio: Studio):
    wrong = {"job.name": "kept name", "lora.rank": "0", "training.train_batch_size": "7"}
    studio.fill(wrong)

    studio.press("Train")

    expect(studio.message).to_contain_text("One setting is wrong")
    expect(studio.message).to_contain_text("Rank")
    for key, value in wrong.items():
        assert studio.setting(key).input_value() == value
    expect(studio.history).not_to_contain_text("kept name")


def test_settings_of_a_run_and_my_own_start_values_come_back(studio: Studio):
    studio.fill({"training.max_train_steps": "77"})
    studio.history.locator("tr", has_text="first").get_by_role("button", name="Load settings").click()
    expect(studio.message).to_contain_text("first")
    expect(studio.setting("training.max_train_steps")).to_have_value("100000")
    expect(studio.setting("job.name")).to_have_value("first")

    studio.fill({"lora.rank": "24"})
    studio.page.locator("#train_studio_mine > .label-wrap").click()
    studio.setting("mine_name").fill("M\u00fchle 24")
    studio.page.get_by_role("button", name="Save as my start values").click()
    expect(studio.message).to_contain_text("Mine: M\u00fchle 24")
    studio.choose("start", PURPOSES["lora_style"])
    expect(studio.setting("lora.rank")).to_have_value("32")
    studio.reload()
    studio.choose("start", "Mine: M\u00fchle 24")
    expect(studio.setting("lora.rank")).to_have_value("24")
    studio.page.locator("#train_studio_mine > .label-wrap").click()
    studio.page.get_by_role("button", name="Delete the chosen ones").click()
    expect(studio.message).to_contain_text("deleted")
    studio.page.locator("#train_studio_start input").click()
    expect(studio.option(PURPOSES["lora_style"])).to_be_visible()
    expect(studio.option("Mine: M\u00fchle 24")).to_have_count(0)
