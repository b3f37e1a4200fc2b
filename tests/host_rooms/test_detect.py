"""Which host, by packages in sys.path only."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions_lib.host.detect import host_name


@pytest.mark.parametrize(
    ("packages", "name"),
    [
        ([], "AUTOMATIC1111"),
        (["backend"], "AUTOMATIC1111"),
        (["modules_forge", "ldm_patched"], "reForge"),
        (["modules_forge", "backend"], "Forge"),
    ],
)
def test_hosts_are_told_by_their_packages(
    packages: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in packages:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('looked for, not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert host_name() == name
