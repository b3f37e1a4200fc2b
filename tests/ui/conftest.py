from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from extensions_lib.host.standalone import PRACTICE_TITLE

from .pages import BusyHost, Page


@pytest.fixture
def page(tmp_path: Path, pictures: Path) -> Iterator[Page]:
    page = Page(BusyHost(tmp_path / "studio"))
    page.shown |= {
        "job.name": "cat",
        "job.base_model": PRACTICE_TITLE,
        "dataset.folder": str(pictures),
        "dataset.resolution_px": 64,
        "training.max_train_steps": 1,
        "preview.enabled": False,
    }
    yield page
    for status in page.manager.statuses():
        if status.state in ("queued", "preparing", "training"):
            page.manager.ask(status.job_id, "discard")
    page.host.free.set()
    assert page.manager.wait_idle(60)
