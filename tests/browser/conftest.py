"""A Chromium that is on the machine, and the standalone page in a process of its own.

Environment:
    CHROMIUM                    the browser, when it has another name or place than usual
    TRAIN_STUDIO_SCREENSHOTS    a folder: pictures of the page are made there (and nothing else is done for them)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from .studio import Server, Studio

NO_CHROMIUM = "browser tests skipped: no Chromium found (install one, or name it in CHROMIUM)"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
WAIT_MS = 20_000

collect_ignore = [] if os.environ.get("TRAIN_STUDIO_SCREENSHOTS") else ["test_screenshots.py"]


def chromium() -> str | None:
    """The path of a Chromium, None when there is none."""
    wanted = os.environ.get("CHROMIUM")
    names = (wanted,) if wanted else ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it where it is seen: -q hides why tests were skipped."""
    skipped = terminalreporter.stats.get("skipped", ())
    if any(NO_CHROMIUM in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(NO_CHROMIUM, yellow=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for a file; ended with it, because its event loop would disturb other tests."""
    path = chromium()
    if path is None:
        pytest.skip(NO_CHROMIUM)
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The standalone page on an empty folder; its log may hold no traceback at the end."""
    server = Server(tmp_path_factory.mktemp("studio folder \u00e9"))
    server.start()
    yield server
    server.kill()
    assert "Traceback" not in server.log(), server.log()


@pytest.fixture
def open_page(browser: Browser, server: Server) -> Iterator[Callable[..., Studio]]:
    """Opens the page as a new visitor does; at the end no page may have met an error in its console."""
    pages: list[Studio] = []

    def open_page(**options: object) -> Studio:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        context.set_default_timeout(WAIT_MS)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
        studio = Studio(context.new_page(), server.url)
        pages.append(studio)
        studio.open()
        return studio

    yield open_page
    for studio in pages:
        studio.page.context.close()
    assert [studio.errors for studio in pages] == [[] for _ in pages]


@pytest.fixture
def studio(open_page: Callable[[], Studio]) -> Studio:
    """One page, open."""
    return open_page()


@pytest.fixture
def badge_pictures() -> Path:
    """Ten captioned pictures of the practice subject."""
    return Path(__file__).parents[2] / "extensions_lib" / "practice" / "subjects" / "badge" / "train"
