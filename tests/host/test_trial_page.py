"""A merge tried from the page, in a browser on the real WebUI: the button, the state, Generate, and the undo."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import WAIT_MS, browser  # noqa: F401

torch = pytest.importorskip("torch")

from extensions_lib.formats.safetensors_io import read_tensors, write_atomic  # noqa: E402

from .page import HostPage  # noqa: E402
from .server import HostServer, Place, complaints  # noqa: E402

pytestmark = pytest.mark.timeout(600)
PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def server(webui_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    place = Place.make(tmp_path_factory.mktemp("page"))
    own, other = (place.checkpoints / f"{name}.safetensors" for name in ("practice", "other"))
    tensors = read_tensors(own)
    for name, tensor in tensors.items():
        if name.startswith("model.") and tensor.is_floating_point() and tensor.ndim > 1:
            tensors[name] = (1.2 * tensor.float()).to(tensor.dtype)
    write_atomic(other, tensors, {})
    shutil.copyfile(own.with_suffix(".yaml"), other.with_suffix(".yaml"))
    host = HostServer(webui_root, place)
    host.start("--api", "--skip-install", options={"randn_source": "CPU"})
    yield host
    host.stop()
    assert "Traceback" not in complaints(host.log)


@pytest.fixture
def page(browser: Browser, server: HostServer) -> Iterator[HostPage]:  # noqa: F811
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
    context.set_default_timeout(WAIT_MS)
    page = HostPage(context.new_page(), server.url)
    page.open()
    yield page
    context.close()


def test_try_generate_and_undo(page: HostPage, server: HostServer) -> None:
    page.set_up_txt2img(PROMPT)
    before = page.generate()
    titles = {entry["model_name"]: entry["title"] for entry in server.webui.get("/sdapi/v1/sd-models")}
    page.show("Train Studio")
    page.show_tab("Merge & files")
    page.page.locator("#train_studio_refresh_files").click()
    page.choose("merge_models_a_path", titles["practice"])
    page.choose("merge_models_b_path", titles["other"])
    page.fill({"merge.alpha": "1"})
    page.page.locator("#train_studio_try_tool").click()
    trial = page.page.locator("[data-ts-fragment=trial]")
    expect(trial).to_contain_text("On trial: weighted_sum of practice + other; alpha 1, in place of practice")
    during = page.generate()
    assert "Train Studio trial: weighted_sum" in during.infotext.replace('"', "")
    assert during.distance(before) > 2
    page.show("Train Studio")
    trial.get_by_role("button", name="Undo the trial").click()
    expect(trial).to_have_text("")
    assert page.generate().same_as(before)
