"""Voting on block weights, as a person does it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, expect

from extensions_lib.practice import practice_checkpoint

from .studio import TRAIN_MS, Server, Studio


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page with two checkpoints of its own, described as the practice model is."""
    server = Server(tmp_path_factory.mktemp("votes"))
    checkpoints = shutil.copytree(practice_checkpoint().parent, server.folder / "checkpoints")
    for ending in (".safetensors", ".yaml"):
        shutil.copyfile(practice_checkpoint().with_suffix(ending), checkpoints / f"two{ending}")
    server.start()
    yield server
    server.kill()
    assert "Traceback" not in server.log(), server.log()


def shown(studio: Studio) -> Locator:
    return studio.page.locator("[data-ts-fragment=votes]")


def test_from_the_form_to_the_second_pair(studio: Studio, server: Server):
    studio.show_tab("Merge & files")
    studio.page.locator("#train_studio_tool").get_by_label("Compare merges in a grid", exact=True).check()
    studio.choose("grid_models_a_path", "practice.safetensors")
    studio.choose("grid_models_b_path", "two.safetensors")
    fields = {"prompts": "a red circle", "num_steps": "2", "width_px": "64", "height_px": "64"}
    studio.fill({**{f"grid.{name}": text for name, text in fields.items()}, "tool.name": "best"})
    studio.page.locator("#train_studio_begin_vote").click()
    expect(studio.page.locator("#train_studio_message_tool")).to_contain_text("The first pair is being drawn")
    votes = shown(studio)
    expect(votes).to_contain_text("best: pair 1 of at most 64.", timeout=TRAIN_MS)
    left = votes.get_by_role("button", name="Left is better")
    expect(left).to_be_visible(timeout=TRAIN_MS)
    pictures = votes.locator("img")
    expect(pictures).to_have_count(2)
    assert pictures.evaluate_all("all => all.every(image => image.complete && image.naturalWidth === 64)")
    left.click()
    expect(votes).to_contain_text("best: pair 2 of at most 64.", timeout=TRAIN_MS)
    expect(votes.get_by_role("button", name="Alike")).to_be_visible(timeout=TRAIN_MS)
    studio.reload()
    studio.show_tab("Merge & files")
    expect(votes).to_contain_text("best: pair 2 of at most 64.", timeout=TRAIN_MS)
    votes.get_by_role("button", name="Delete this vote").click()
    expect(votes).to_have_text("")
    expect(studio.page.locator("#train_studio_votes")).to_have_css("display", "none")  # takes no room
    assert studio.errors == []
