"""Pictures of the page for docs/, made when TRAIN_STUDIO_SCREENSHOTS names a folder; see conftest.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from .studio import TRAIN_MS, Server, Studio

FOLDER = Path(os.environ["TRAIN_STUDIO_SCREENSHOTS"])
SCHEMES = ("light", "dark")
WIDTH = 1280
HEIGHT = 1020
# Enough steps and pictures for the badge to be seen coming.
SETTINGS = {"training.max_train_steps": "160", "preview.every_steps": "20"}
NUM_PREVIEWS = 6


@pytest.fixture(scope="module")
def server(browser: Browser) -> Iterator[Server]:
    """As for the other tests, in a folder whose name may stand in the pictures."""
    server = Server(FOLDER / "studio")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def save() -> Callable[..., None]:
    """Saves the page as it is now under a name, in light and in dark."""

    def save(studio: Studio, name: str, height: int = HEIGHT) -> None:
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": height}
        for scheme in SCHEMES:
            studio.page.evaluate("(isDark) => document.body.classList.toggle('dark', isDark)", scheme == "dark")
            picture = FOLDER / f"{name}-{scheme}.png"
            studio.page.screenshot(path=picture, full_page=True, clip=clip, animations="disabled")

    return save


@pytest.mark.timeout(600)
def test_pictures_of_the_page(studio: Studio, save: Callable[..., None]):
    save(studio, "form")
    studio.check(10)
    studio.report.locator("summary", has_text="tokens").first.click()
    save(studio, "check")

    studio.train(SETTINGS)
    studio.reload()
    expect(studio.timeline).to_have_count(NUM_PREVIEWS, timeout=4 * TRAIN_MS)
    save(studio, "training")
    studio.expect_state("Completed")
    save(studio, "finished", 1400)

    studio.fill({"job.name": "badge two", "lora.rank": "0"})
    studio.press("Train")
    expect(studio.message).to_contain_text("wrong")
    for key in ("training.device", "optimizer.learning_rate", "dataset.repeats", "prompt.seed", "output.dtype"):
        studio.unfold_for(key)
    save(studio, "settings", 6000)
