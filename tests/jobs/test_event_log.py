"""Following a log of events while it grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.config.codec import load
from extensions_lib.events import JobFailed, PhaseProgress, Warned
from extensions_lib.jobs.event_log import EventLog
from extensions_lib.jobs.store import RunFolder


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    config = load({"name": "cat", "base_model": "x", "dataset": {"folder": "y"}, "method": "lora"})
    return EventLog(tmp_path / "events.jsonl", "cat", config)


def line(sequence: int, **changes: Any) -> str:
    event = Warned(text=f"number {sequence}", job_id="cat", sequence=sequence, time=float(sequence))
    return json.dumps({**event.to_json(), **changes}, ensure_ascii=False) + "\n"


def test_only_what_is_new_is_read(log: EventLog, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    log.refresh()
    assert log.status().warnings == ()
    assert log.events(0) == []
    file.write_text(line(1) + line(2)[:20], encoding="utf-8")
    log.refresh()
    assert log.status().warnings == ("number 1",)
    file.write_text(line(1) + line(2) + "\n" + line(3), encoding="utf-8")
    log.refresh()
    assert log.status().warnings == ("number 1", "number 2", "number 3")
    assert [event.sequence for event in log.events(1)] == [2, 3]
    assert log.last_sequence == 3


def test_lines_that_mean_nothing_are_left_out(log: EventLog, tmp_path: Path) -> None:
    strange = ['{"event": "FromTheFuture", "sequence": 2}\n', "17\n", '{"event": "Warned", "sp\n', "\n", "[]\n"]
    file = tmp_path / "events.jsonl"
    file.write_bytes((line(1) + "".join(strange)).encode() + b"\xff\xc3\n" + line(2, text="\u2028 \x85 ü").encode())
    log.refresh()
    assert log.status().warnings == ("number 1", "\u2028 \x85 ü")
    assert [event.sequence for event in RunFolder(tmp_path).events()] == [1, 2]
    assert RunFolder(tmp_path).last_sequence() == 2


def test_a_log_that_became_shorter_is_read_anew(log: EventLog, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(line(1) + line(2))
    log.refresh()
    (tmp_path / "events.jsonl").write_text(line(1))
    log.refresh()
    assert log.status().warnings == ("number 1",)


def test_an_end_that_could_not_be_written_is_told_and_not_kept(log: EventLog, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(line(1))
    log.refresh()
    end = JobFailed(error="DiskFullError", message="full", hint="", sequence=2, time=2.0)
    assert (log.status(end).state, log.status(end).error) == ("failed", "full")
    assert log.status().state == "queued"
    phase = PhaseProgress(phase="load model", done=0, total=1, sequence=1, time=1.0)
    assert log.status(phase).state == "queued"


def test_runs_of_earlier_versions_have_their_end(log: EventLog, tmp_path: Path) -> None:
    ended = {"reason": "completed", "step": 9, "path": "cat.safetensors"}
    stamps = {"job_id": "cat", "time": 1.0}
    events = [
        {"event": "CheckpointSaved", "step": 9, "path": "cat.safetensors", "num_modules": 3, "sequence": 1},
        {"event": "TrainingFinished", **ended, "sequence": 2},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps({**event, **stamps}) + "\n" for event in events))
    log.refresh()
    assert (log.status().state, log.status().step) == ("completed", 9)
    failed = {"event": "TrainingFailed", "error": "X", "message": "it broke", "hint": "", "sequence": 3, **stamps}
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write(json.dumps(failed) + "\n")
    log.refresh()
    assert (log.status().state, log.status().error) == ("failed", "it broke")
