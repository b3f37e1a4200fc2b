"""Logins, paths and frozen settings on the real WebUI."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import WAIT_MS, browser  # noqa: F401
from tests.browser.studio import TRAIN_MS

from .page import HostPage
from .server import PICTURES, HostServer, Place, job_table, running, wait_for_state
from .test_journey import QUICK

pytestmark = pytest.mark.timeout(600)

API = "/train-studio/v1"
BASIC = {"Authorization": "Basic " + base64.b64encode(b"robot:word").decode()}
LOGIN = {"username": "me", "password": "secret"}


@pytest.fixture(scope="module")
def server(webui_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    server = HostServer(webui_root, Place.make(tmp_path_factory.mktemp("host")))
    yield server
    server.stop()


@pytest.fixture
def open_page(browser: Browser, server: HostServer) -> Iterator[Callable[..., HostPage]]:  # noqa: F811
    """Opens the WebUI's page at our tab as a new visitor does, after a login if one is given."""
    contexts = []

    def open_page(login: dict[str, str] | None = None) -> HostPage:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        if login:
            assert context.request.post(f"{server.url}/login", form=login).ok
        page = HostPage(context.new_page(), server.url)
        page.open()
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def guarded(server: HostServer) -> Iterator[HostServer]:
    """Open to other machines, with both kinds of login."""
    flags = ("--api", "--listen", "--api-auth", "robot:word", "--gradio-auth", "me:secret", "--skip-install")
    with running(server, *flags):
        yield server


def test_statement_31_every_route_answers_401_without_a_login(guarded: HostServer):
    _, description, _ = guarded.status_of("/openapi.json")
    routes = [(path, method) for path, methods in description["paths"].items() for method in methods if API in path]
    assert len(routes) > 12
    for path, method in routes:
        body = {} if method == "post" else None
        address = path.format(job_id="none", file="grid.png", name="live")
        assert guarded.status_of(address, body)[0] == 401, path
        wrong = {"Authorization": "Basic " + base64.b64encode(b"robot:wrong").decode()}
        assert guarded.status_of(address, body, wrong)[0] == 401, path
        assert guarded.status_of(address, body, BASIC)[0] != 401, path


def test_statement_31_a_login_to_the_page_opens_ours(guarded: HostServer, open_page: Callable[..., HostPage]):
    page = open_page(LOGIN)
    expect(page.live).to_contain_text("No training yet")
    expect(page.page.locator(".ts-connection")).to_be_empty()
    assert page.page.context.request.get(f"{guarded.url}{API}/jobs").ok


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": {"folder": "/usr/share"}},
        {"dataset": {"folder": "models/../../.."}},
        {"base_model": "/tmp/some.ckpt"},
        {"vae": "vae.pt"},
        {"output": {"folder": "/tmp"}},
        {"name": "../outside"},
        {"method": {"start_from": "/etc/passwd"}},
    ],
    ids=lambda changes: str(changes),
)
def test_statement_32_open_to_others_nothing_outside_may_be_named(guarded: HostServer, changes: dict):
    table = job_table(guarded.place, **changes)
    for route in ("check", "jobs"):
        status, answer, _ = guarded.status_of(f"{API}/{route}", table, BASIC)
        assert status in (400, 403), answer
        assert answer["error"] in ("AccessError", "ConfigError"), answer
    assert not guarded.place.runs.exists() or not list(guarded.place.runs.iterdir())


def test_statement_32_the_hosts_own_folders_may(guarded: HostServer):
    status, report, _ = guarded.status_of(f"{API}/check", job_table(guarded.place), BASIC)
    assert status == 200, report
    assert report["num_pictures"] == 10


def test_statement_33_frozen_and_without_paths_a_job_still_runs(server: HostServer, open_page: Callable[..., HostPage]):
    """The only way to give pictures is to drop them; no answer of ours names a folder."""
    with running(server, "--api", "--hide-ui-dir-config", "--freeze-settings", "--skip-install"):
        table = job_table(server.place)
        for route in ("check", "jobs"):
            assert server.status_of(f"{API}/{route}", table)[0] == 403
        page = open_page()
        expect(page.page.locator("#train_studio_dataset_folder")).to_be_hidden()
        page.drop([PICTURES / f"{number:02}{end}" for number in (1, 2, 3) for end in (".png", ".txt")])
        page.unfold_for("training.mixed_precision")
        page.choose("training_mixed_precision", "fp32")
        page.train(QUICK | {"job.name": "dropped", "training.max_train_steps": "4", "preview.every_steps": "100"})
        page.expect_state("Completed")
        expect(page.live.locator(".ts-result")).to_contain_text("modules matched", timeout=TRAIN_MS)
        wait_for_state(server, "dropped", "completed")
        for path in ("host", "jobs", "jobs/dropped", "jobs/dropped/config", "jobs/dropped/events"):
            status, answer, _ = server.status_of(f"{API}/{path}")
            assert status == 200
            assert str(server.place.folder) not in str(answer), path
        server.expect_free()
