"""One process at a time trains a run."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.errors import TrainingError
from extensions_lib.jobs import lock
from extensions_lib.jobs.lock import is_locked, run_lock


def test_a_lock_is_held_once_and_left(tmp_path: Path) -> None:
    """Two openings of one file stand for two processes; another process is tested with the manager."""
    path = tmp_path / "cat" / "run.lock"
    path.parent.mkdir()
    assert not is_locked(path)

    def fail_inside() -> None:
        with run_lock(path):
            assert is_locked(path)
            with pytest.raises(TrainingError, match=r"The run .*cat is being worked on already"), run_lock(path):
                pass
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert not is_locked(path)
    with run_lock(path):
        pass


def test_a_look_from_elsewhere_does_not_keep_a_run_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, False, True])
    monkeypatch.setattr(lock, "_try_lock", lambda file: next(answers))
    with run_lock(tmp_path / "run.lock"):
        pass
    assert next(answers, None) is None


def test_without_locks_the_run_is_trained_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(file: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_take", fail)
    with run_lock(tmp_path / "run.lock"):
        assert not is_locked(tmp_path / "run.lock")
    assert "cannot be locked" in caplog.text
