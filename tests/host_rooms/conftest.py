from __future__ import annotations

from pathlib import Path

import pytest

from .webui import Webui


@pytest.fixture
def webui(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Webui:
    """A WebUI without models, in this process."""
    return Webui(monkeypatch, tmp_path)
