"""The workshop in the real WebUI's page: a merge becomes a checkpoint of its list, and is tried before it is saved."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import WAIT_MS, browser  # noqa: F401
from tests.browser.studio import TRAIN_MS

from .page import HostPage
from .server import HostServer, Place, complaints

pytestmark = pytest.mark.timeout(600)

IDS = "[...document.querySelectorAll('[id^=train_studio]')].map((one) => one.id)"


@pytest.fixture(scope="module")
def server(webui_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    server = HostServer(webui_root, Place.make(tmp_path_factory.mktemp("host")))
    shutil.copyfile(server.place.checkpoints / "practice.safetensors", server.place.checkpoints / "other.safetensors")
    shutil.copyfile(server.place.checkpoints / "practice.yaml", server.place.checkpoints / "other.yaml")
    server.start("--api", "--skip-install")
    yield server
    server.stop()
    logs = sorted(server.place.folder.glob("start-*.log"))
    assert [log.name for log in logs if "Traceback" in complaints(log)] == []


@pytest.fixture
def page(server: HostServer, browser: Browser) -> Iterator[HostPage]:  # noqa: F811
    """A page with two checkpoints chosen."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    context.set_default_timeout(WAIT_MS)
    page = HostPage(context.new_page(), server.url)
    page.open()
    page.show_tab("Merge & files")
    titles = [model["title"] for model in server.webui.get("/sdapi/v1/sd-models")]
    for letter, name in (("a", "practice"), ("b", "other")):
        page.choose(f"merge_models_{letter}_path", next(title for title in titles if title.startswith(name)))
    page.fill({"tool.name": "page mix", "merge.alpha": "0.25"})
    yield page
    context.close()


def said(page: HostPage, text: str) -> None:
    expect(page.page.locator("#train_studio_message_tool")).to_contain_text(text, timeout=TRAIN_MS)


def picture(page: HostPage, name: str) -> None:
    """For people, where TRAIN_STUDIO_SCREENSHOTS names a folder."""
    if folder := os.environ.get("TRAIN_STUDIO_SCREENSHOTS"):
        page.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_no_id_of_ours_is_there_twice(page: HostPage):
    picture(page, "webui-workshop")
    assert [name for name, count in Counter(page.page.evaluate(IDS)).items() if count > 1] == []


def test_a_merge_is_tried_and_taken_out_again(page: HostPage):
    page.page.locator("#train_studio_try_tool").click()
    trial = page.page.locator("[data-ts-fragment=trial]")
    expect(trial).to_contain_text("On trial: weighted_sum of practice + other", timeout=TRAIN_MS)
    picture(page, "webui-workshop-trial")
    trial.get_by_role("button", name="Undo the trial").click()
    expect(trial).not_to_contain_text("trial", timeout=TRAIN_MS)
    expect(page.page.locator("#train_studio_trial")).to_have_css("display", "none")  # takes no room


def test_a_merge_becomes_a_checkpoint_of_the_list(page: HostPage, server: HostServer):
    page.press("Check")
    said(page, "Nothing is in the way. It makes page mix.safetensors, 15.8 MB")
    page.press("Merge")
    said(page, '"page mix" started')
    page.expect_state("Completed")
    picture(page, "webui-workshop-done")
    assert (server.place.checkpoints / "page mix.safetensors").is_file()
    assert any(model["model_name"] == "page mix" for model in server.webui.get("/sdapi/v1/sd-models"))
    expect(page.live).to_contain_text("in the list of checkpoints as page mix.safetensors")
