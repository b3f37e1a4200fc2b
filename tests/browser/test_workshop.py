"""The workshop: a file made from files that are there, as a person goes it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, expect

from extensions_lib.config.tools import TOOLS
from extensions_lib.formats.safetensors_io import read_header
from extensions_lib.practice import practice_checkpoint

from .studio import Server, Studio, is_scrolled_sideways, nameless_controls


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page with two checkpoints of its own."""
    server = Server(tmp_path_factory.mktemp("workshop"))
    checkpoints = server.folder / "checkpoints"
    checkpoints.mkdir()
    for name in ("one", "two"):
        shutil.copyfile(practice_checkpoint(), checkpoints / f"{name}.safetensors")
    server.start()
    yield server
    server.kill()
    assert "Traceback" not in server.log(), server.log()


@pytest.fixture
def workshop(studio: Studio) -> Studio:
    """The page with the workshop in front."""
    studio.show_tab("Merge & files")
    expect(start_button(studio)).to_be_visible()
    return studio


def start_button(studio: Studio) -> Locator:
    return studio.page.locator("#train_studio_start_tool")


def message(studio: Studio) -> Locator:
    return studio.page.locator("#train_studio_message_tool")


def choose_tool(studio: Studio, title: str) -> None:
    studio.page.locator("#train_studio_tool").get_by_label(title, exact=True).check()


def test_two_checkpoints_become_a_third_and_its_settings_come_back(workshop: Studio, server: Server):
    workshop.choose("merge_models_a_path", "one.safetensors")
    workshop.choose("merge_models_b_path", "two.safetensors")
    workshop.fill({"merge.alpha": "0.25", "tool.name": "mixed"})
    workshop.press("Check")
    expect(message(workshop)).to_contain_text("Nothing is in the way. It makes mixed.safetensors, 15.8 MB")
    assert not (server.folder / "checkpoints" / "mixed.safetensors").exists()
    start_button(workshop).click()
    expect(message(workshop)).to_contain_text('"mixed" started')
    workshop.expect_state("Completed")
    made = server.folder / "checkpoints" / "mixed.safetensors"
    assert '"alpha": "0.25"' in read_header(made)[1]["train_studio.merge"]

    workshop.reload()
    expect(workshop.page.locator("#train_studio_tab_workshop")).to_be_hidden()
    workshop.live.get_by_role("button", name="Load these settings").click()
    expect(message(workshop)).to_contain_text("The settings of 'mixed' are in the form.")
    expect(workshop.setting("merge.models_b_path")).to_have_value("two.safetensors")
    expect(workshop.setting("merge.alpha")).to_have_value("0.25")
    expect(workshop.setting("tool.name")).to_have_value("mixed")


def test_mistakes_are_named_by_their_labels_all_at_once_and_nothing_is_lost(workshop: Studio):
    workshop.choose("merge_formula", "DARE")
    workshop.choose("merge_models_a_path", "one.safetensors")
    workshop.fill({"merge.density": "7", "merge.seed": "", "tool.name": "kept"})
    start_button(workshop).click()
    expect(message(workshop)).to_contain_text("2 settings are wrong")
    for label in ("Density: is 7", "Seed: must be a whole number"):
        expect(message(workshop)).to_contain_text(label)
    assert workshop.setting("merge.density").input_value() == "7"
    workshop.fill({"merge.density": "0.5", "merge.seed": "0"})
    start_button(workshop).click()
    expect(message(workshop)).to_contain_text("Models: are 1; dare takes 2 or more")
    expect(workshop.history).not_to_contain_text("kept")


def test_only_what_the_chosen_tool_and_formula_read_is_seen(workshop: Studio):
    expect(workshop.setting("merge.alpha")).to_be_visible()
    for name in ("merge.beta", "merge.density", "merge.models_b_weight", "merge.models_d_path"):
        expect(workshop.setting(name)).to_be_hidden()
    workshop.choose("merge_formula", "TIES")
    expect(workshop.setting("merge.density")).to_be_visible()
    expect(workshop.page.locator("#train_studio_note_merge")).to_contain_text("What fine-tunes of A changed most")
    workshop.choose("merge_models_c_path", "one.safetensors")
    expect(workshop.setting("merge.models_d_path")).to_be_visible()
    workshop.choose("merge_formula", "SLERP")
    expect(workshop.setting("merge.models_c_path")).to_be_hidden()

    choose_tool(workshop, "Bake LoRAs into a checkpoint")
    expect(start_button(workshop)).to_have_text("Bake")
    expect(workshop.setting("bake.networks_a_strength")).to_have_value("1")
    expect(workshop.setting("merge.alpha")).to_be_hidden()


def test_what_is_this_file_says_it_in_words(workshop: Studio):
    workshop.page.locator("#train_studio_file > .label-wrap").click()
    workshop.choose("file_chosen", "Checkpoint: one.safetensors")
    workshop.page.get_by_label("Read all of it").check()
    workshop.page.get_by_role("button", name="Look", exact=True).click()
    found = workshop.page.locator("#train_studio_file_found")
    expect(found).to_contain_text("Stable Diffusion 1")
    expect(found).to_contain_text("d75978bb3c2baca42ce8d6b6d166f52211b3e3ea9cdf141e122fb997c9ce5318")


def test_new_files_are_listed_after_refresh(workshop: Studio, server: Server):
    choose_tool(workshop, "Resize a LoRA")
    loras = server.folder / "loras"
    (loras / "people").mkdir()
    shutil.copyfile(practice_checkpoint(), loras / "people" / "new.safetensors")
    with workshop.page.expect_response("**/run/predict*"):  # a list that is open already does not change
        workshop.page.locator("#train_studio_refresh_files").click()
    workshop.choose("resize_network", "people/new.safetensors")


def test_sliders_write_a_number_for_every_block(workshop: Studio):
    workshop.unfold_for("merge.discard")
    sliders = workshop.page.locator("#train_studio_more_merge details", has_text="26 blocks")
    sliders.locator("summary").click()
    sliders.get_by_label("Shape").select_option("Rising")
    sliders.get_by_label("M00").fill("0.9")
    sliders.get_by_label("Write into").select_option("Beta")
    expect(workshop.setting("merge.beta")).to_have_value("")
    numbers = [float(number) for number in workshop.setting("merge.alpha").input_value().split(",")]
    assert (len(numbers), numbers[:2], numbers[13], numbers[-1]) == (26, [0.5, 0], 0.9, 1)
    sliders.get_by_label("IN00").fill("0.1")
    assert workshop.setting("merge.beta").input_value().startswith("0.5, 0.1, 0.04,")


def test_every_tool_has_names_for_its_controls_and_fits_at_1280_px(workshop: Studio):
    workshop.page.locator("#train_studio_file > .label-wrap").click()
    for kind in TOOLS:
        workshop.page.locator(f"#train_studio_tool input[value={kind}]").check()
        expect(workshop.page.locator(f"#train_studio_tool_{kind}")).to_be_visible()
        for head in workshop.page.locator(f"#train_studio_more_{kind}").locator("> .label-wrap, summary").all():
            head.click()
        assert nameless_controls(workshop) == []
        assert not is_scrolled_sideways(workshop)
