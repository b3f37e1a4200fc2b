"""install.py adds what is absent, changes nothing, and never stops a start."""

from __future__ import annotations

import runpy
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

INSTALLER = Path(__file__).resolve().parents[2] / "install.py"


class Pip:
    """Takes pip's place and keeps the calls."""

    def __init__(self, error: str = "") -> None:
        self.error = error
        self.commands: list[list[str]] = []
        self.constraints = ""

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        self.constraints = Path(command[command.index("--constraint") + 1]).read_text(encoding="utf-8")
        return subprocess.CompletedProcess(command, int(bool(self.error)), "", self.error)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    pip = Pip()
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.delenv("COMMANDLINE_ARGS", raising=False)
    monkeypatch.delenv("INDEX_URL", raising=False)
    return pip


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these distributions were not installed."""
    real = metadata.distribution

    def distribution(name: str) -> metadata.Distribution:
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def run() -> None:
    runpy.run_path(str(INSTALLER), run_name="__main__")


def test_statement_5_nothing_to_do_is_quick_and_silent() -> None:
    """In this environment everything is installed; the WebUI starts the installer in its own process."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, str(INSTALLER)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert time.perf_counter() - started < 1.0


def test_statement_2_only_absent_packages_are_added_and_none_is_looked_for_beside_them(
    pip: Pip, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "diffusers")
    run()
    [command] = pip.commands
    assert command[:5] == [sys.executable, "-m", "pip", "install", "--no-deps"]
    assert [part for part in command[5:] if "==" in part] == ["diffusers==0.31.0"]
    assert command[-1] == "diffusers==0.31.0"
    assert f"torch=={metadata.version('torch')}\n" in pip.constraints
    assert capsys.readouterr().out == "Train Studio installed diffusers==0.31.0\n"


def test_the_hosts_index_is_used(pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "diffusers")
    monkeypatch.setenv("INDEX_URL", "https://mirror.example/simple")
    run()
    assert pip.commands[0][-3:-1] == ["--index-url", "https://mirror.example/simple"]


def test_a_module_without_a_distribution_counts_as_installed(pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.distribution

    def distribution(name: str) -> metadata.Distribution:
        if name == "PyYAML":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    run()
    assert pip.commands == []


def test_statement_4_skip_install_is_respected(pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "diffusers")
    monkeypatch.setenv("COMMANDLINE_ARGS", "--listen --skip-install")
    run()
    assert pip.commands == []


def test_a_failure_is_two_lines_and_the_start_goes_on(
    monkeypatch: pytest.MonkeyPatch, pip: Pip, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "diffusers")
    pip.error = "WARNING: Retrying\nERROR: No matching distribution found for diffusers==0.31.0\n"
    run()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "Train Studio could not install diffusers==0.31.0: ERROR: No matching distribution found for diffusers==0.31.0",
        "Until they are there nothing can be trained: pip install --no-deps diffusers==0.31.0",
    ]
