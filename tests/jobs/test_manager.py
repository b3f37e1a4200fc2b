"""The queue and its thread, on real jobs."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.config.codec import load
from extensions_lib.errors import (
    ConfigError,
    DatasetError,
    JobStateError,
    OutputError,
    TrainingError,
    UnknownJobError,
)
from extensions_lib.events import Event, JobFailed, StepCompleted, TrainingStarted
from extensions_lib.jobs.lock import is_locked, run_lock
from extensions_lib.jobs.manager import JobManager
from extensions_lib.jobs.run import create_run
from extensions_lib.jobs.status import JobStatus
from extensions_lib.jobs.store import RunFolder

from .conftest import WAIT_SECONDS, finished, until


def test_statement_13_a_job_needs_no_page_and_any_page_sees_it(
    manager: JobManager, job: Callable[..., Any], recording_host: Any
) -> None:
    """The thread that asked, as a page's request would, is gone long before the job ends."""
    ids = []
    page = threading.Thread(target=lambda: ids.append(manager.submit(load(job()))))
    page.start()
    page.join()
    (job_id,) = ids
    ended = finished(manager, job_id)
    assert (job_id, ended.state, ended.step) == ("zbadge", "completed", 6)
    assert [status.job_id for status in manager.statuses()] == ["zbadge"]
    assert manager.active() is None
    assert (recording_host.folders().runs / "zbadge" / "job.json").is_file()
    others = JobManager(recording_host).status(job_id)
    assert others == ended


def test_statement_13_live_state_is_at_most_two_seconds_old(
    manager: JobManager, job: Callable[..., Any], recording_host: Any
) -> None:
    late: list[float] = []

    def look(parked: Any) -> None:
        steps = [event for event in recording_host.mirrored if isinstance(event, StepCompleted)]
        if steps and manager.status("zbadge").step != steps[-1].step:
            late.append(time.time() - steps[-1].time)

    recording_host.on_lend = look
    manager.submit(load(job()))
    assert finished(manager, "zbadge").state == "completed"
    assert late == []


def test_jobs_run_one_after_the_other_in_the_order_of_the_queue(
    manager: JobManager, job: Callable[..., Any], recording_host: Any, hold: threading.Event
) -> None:
    for name in ("one", "two", "three"):
        manager.submit(load(job(name=name, training={"max_train_steps": 1})))
    until(manager, "one", lambda status: status.state == "preparing")
    assert [(status.job_id, status.state) for status in manager.statuses()] == [
        ("two", "queued"), ("three", "queued"), ("one", "preparing"),
    ]  # fmt: skip
    assert manager.active() == "one"
    hold.set()
    assert manager.wait_idle(WAIT_SECONDS)
    assert [status.job_id for status in manager.statuses()] == ["three", "two", "one"]
    started = [event.name for event in recording_host.mirrored if isinstance(event, TrainingStarted)]
    assert started == ["one", "two", "three"]
    bounds = [note for note in recording_host.notes if note in ("enter", "leave")]
    assert bounds == ["enter", "leave"] * 3
    assert threading.get_ident() not in recording_host.lenders
    assert len(recording_host.lenders) == 1


def test_a_queued_job_can_be_taken_out_and_started_later(
    manager: JobManager, job: Callable[..., Any], hold: threading.Event
) -> None:
    manager.submit(load(job(name="one", training={"max_train_steps": 1})))
    manager.submit(load(job(name="two", training={"max_train_steps": 1})))
    manager.ask("two", "stop")
    assert (manager.status("two").state, manager.status("two").step) == ("stopped", 0)
    with pytest.raises(JobStateError, match="The job two is stopped; it cannot be asked to stop"):
        manager.ask("two", "stop")
    hold.set()
    assert manager.wait_idle(WAIT_SECONDS)
    assert manager.status("two").state == "stopped"
    manager.continue_run("two")
    assert finished(manager, "two").state == "completed"


def test_requests_reach_the_running_job(manager: JobManager, job: Callable[..., Any], recording_host: Any) -> None:
    manager.submit(load(job(training={"max_train_steps": 500})))
    until(manager, "zbadge", lambda status: status.step >= 1)
    manager.ask("zbadge", "pause")
    paused = until(manager, "zbadge", lambda status: status.state == "paused")
    lent = recording_host.num_lent
    deadline = time.monotonic() + 10
    while recording_host.num_lent < lent + 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert manager.status("zbadge").step == paused.step
    manager.ask("zbadge", "save")
    manager.ask("zbadge", "resume")
    saved = until(manager, "zbadge", lambda status: bool(status.results and status.results[0].published))
    assert saved.results[0].step == paused.step + 1
    assert (saved.results[0].published, saved.results[0].is_usable) == ("visible", True)
    manager.ask("zbadge", "stop")
    assert finished(manager, "zbadge").state == "stopped"


def test_statement_16_stop_ends_within_one_step_with_a_result_and_a_state(
    manager: JobManager, job: Callable[..., Any], recording_host: Any
) -> None:
    from extensions_lib.formats.safetensors_io import read_tensors

    steps_after: list[int] = []

    def stop(parked: Any) -> None:
        steps = [event.step for event in recording_host.mirrored if isinstance(event, StepCompleted)]
        if len(steps) == 2 and not steps_after:
            manager.ask("zbadge", "stop")
            steps_after.append(len(steps))

    recording_host.on_lend = stop
    manager.submit(load(job(training={"state_every_steps": 100})))
    stopped = finished(manager, "zbadge")
    assert (stopped.state, stopped.step, steps_after) == ("stopped", 2, [2])
    assert read_tensors(Path(stopped.results[-1].path))
    manager.continue_run("zbadge")
    assert (finished(manager, "zbadge").state, manager.status("zbadge").step) == ("completed", 6)


def test_stop_while_the_job_waits_for_the_host_trains_nothing(
    manager: JobManager, job: Callable[..., Any], hold: threading.Event
) -> None:
    manager.submit(load(job()))
    until(manager, "zbadge", lambda status: status.state == "preparing")
    manager.ask("zbadge", "stop")
    hold.set()
    assert (finished(manager, "zbadge").state, manager.status("zbadge").step) == ("stopped", 0)


def test_statement_16_a_job_out_of_memory_says_so_and_can_go_on(
    manager: JobManager, job: Callable[..., Any], recording_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from extensions_lib.training.loop import TrainingLoop

    train_step = TrainingLoop.train_step

    def full(self: TrainingLoop, step: int) -> None:
        if step == 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        train_step(self, step)

    monkeypatch.setattr(TrainingLoop, "train_step", full)
    manager.submit(load(job(training={"state_every_steps": 100})))
    failed = finished(manager, "zbadge")
    assert (failed.state, failed.step) == ("failed", 3)
    assert failed.error.startswith("Out of memory while training")
    assert "ower the batch size" in failed.hint
    assert recording_host.notes[-1] == "leave"
    monkeypatch.undo()
    manager.continue_run("zbadge")
    assert finished(manager, "zbadge").state == "completed"
    first = [event.first_step for event in recording_host.mirrored if isinstance(event, TrainingStarted)]
    assert first == [0, 3]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "Out of memory while training"),
        (KeyError("a bug"), "an error that should not happen: KeyError: 'a bug'"),
        (SystemExit(3), "an error that should not happen: SystemExit: 3"),
        (DatasetError("No pictures.", "Add some."), "No pictures."),
        (ImportError("No module named 'diffusers'"), "A package that the job needs cannot be imported: No module"),
    ],
    ids=["memory", "bug", "exit", "user", "package"],
)
def test_whatever_happens_in_a_job_is_told_and_the_next_job_runs(
    manager: JobManager,
    job: Callable[..., Any],
    recording_host: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    told: str,
) -> None:
    from extensions_lib.training.loop import TrainingLoop

    train_step = TrainingLoop.train_step

    def fail_once(self: TrainingLoop, step: int) -> None:
        if step == 1:
            monkeypatch.setattr(TrainingLoop, "train_step", train_step)
            raise error
        train_step(self, step)

    monkeypatch.setattr(TrainingLoop, "train_step", fail_once)
    manager.submit(load(job(name="bad")))
    manager.submit(load(job(name="good", training={"max_train_steps": 1})))
    assert finished(manager, "good").state == "completed"
    failed = manager.status("bad")
    assert failed.state == "failed"
    assert told in failed.error
    assert sum(isinstance(event, JobFailed) for event in manager.events("bad", 0)) == 1
    logged = [record for record in caplog.records if "Job bad failed" in record.message]
    assert [bool(record.exc_info) for record in logged] == [not isinstance(error, (DatasetError, MemoryError))]
    bounds = [note for note in recording_host.notes if note in ("enter", "leave")]
    assert bounds == ["enter", "leave"] * 2


def test_a_failure_before_the_first_event_is_told(
    manager: JobManager, job: Callable[..., Any], hold: threading.Event, tmp_path: Path
) -> None:
    manager.submit(load(job(name="one", training={"max_train_steps": 1})))
    manager.submit(load(job(name="two")))
    (tmp_path / "out" / "two.safetensors").write_bytes(b"precious")
    hold.set()
    failed = finished(manager, "two")
    assert failed.state == "failed"
    assert "two.safetensors exists already" in failed.error
    assert (tmp_path / "out" / "two.safetensors").read_bytes() == b"precious"


def test_statement_16_a_full_disk_does_not_hide_the_message(
    manager: JobManager,
    job: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither the result nor the log of events can be written any more."""
    from extensions_lib.errors import DiskFullError
    from extensions_lib.jobs.sinks import JsonlSink
    from extensions_lib.training import results

    def full(path: Path, *arguments: object, **options: object) -> Path:
        def no_room(self: JsonlSink, event: Event) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(JsonlSink, "__call__", no_room)
        raise DiskFullError(f"The disk of {path.parent} is full.", "Free some space.")

    monkeypatch.setattr(results, "write_checkpoint", full)
    manager.submit(load(job(training={"max_train_steps": 2})))
    failed = finished(manager, "zbadge")
    assert (failed.state, failed.hint) == ("failed", "Free some space.")
    assert "is full" in failed.error
    monkeypatch.undo()
    manager.continue_run("zbadge")
    ended = finished(manager, "zbadge")
    assert (ended.state, ended.error) == ("completed", "")


def test_a_finished_run_can_be_made_longer(manager: JobManager, job: Callable[..., Any]) -> None:
    manager.submit(load(job(training={"max_train_steps": 2})))
    assert finished(manager, "zbadge").state == "completed"
    with pytest.raises(TrainingError, match="is finished: 2 of 2 steps"):
        manager.continue_run("zbadge")
    with pytest.raises(ConfigError, match="max_train_steps"):
        manager.continue_run("zbadge", -3)
    manager.continue_run("zbadge", 3)
    ended = finished(manager, "zbadge")
    assert (ended.state, ended.step, ended.max_train_steps) == ("completed", 3, 3)


def test_a_name_that_waits_in_the_queue_is_taken(
    manager: JobManager, job: Callable[..., Any], hold: threading.Event
) -> None:
    manager.submit(load(job(training={"max_train_steps": 1})))
    with pytest.raises(OutputError, match="The job zbadge, which is not finished yet, will write zbadge"):
        manager.submit(load(job()))
    assert manager.submit(load(job(output={"overwrite": True}, training={"max_train_steps": 1}))) == "zbadge-2"
    with pytest.raises(JobStateError, match="is preparing|is queued"):
        manager.continue_run("zbadge")


def test_errors_of_a_submission_make_no_run(
    manager: JobManager, job: Callable[..., Any], recording_host: Any, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "zbadge.safetensors").write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists already"):
        manager.submit(load(job()))
    assert manager.statuses() == ()


def test_a_run_that_its_process_left_is_interrupted_and_can_go_on(
    manager: JobManager, job: Callable[..., Any], recording_host: Any
) -> None:
    runs = recording_host.folders().runs
    folder = create_run(load(job(name="never", output={"runs_folder": str(runs)})))
    assert (manager.status("never").state, manager.status("never").step) == ("interrupted", 0)
    folder.event_file.write_text(
        json.dumps(StepCompleted(
            job_id="never", sequence=1, time=5.0, step=1, loss=0.5, learning_rate=1.0, num_examples_seen=1,
            seconds=1.0, peak_memory_gib=0.0,
        ).to_json()) + "\n" + '{"event": "StepCompl'
    )  # fmt: skip
    assert (manager.status("never").state, manager.status("never").step) == ("interrupted", 1)
    manager.continue_run("never")
    assert finished(manager, "never").state == "completed"


HOLD_LOCK = """
import sys, time
from pathlib import Path
from extensions_lib.jobs.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_of_another_process_is_shown_and_left_alone(
    manager: JobManager, job: Callable[..., Any], recording_host: Any
) -> None:
    folder = create_run(load(job(output={"runs_folder": str(recording_host.folders().runs)})))
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(folder.lock_file)],
        cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "held\n"
        assert manager.status("zbadge").state == "preparing"
        with pytest.raises(JobStateError):
            manager.continue_run("zbadge")
        with pytest.raises(TrainingError, match="is being worked on already"), run_lock(folder.lock_file):
            pass
        with pytest.raises(JobStateError):
            manager.forget("zbadge")
        manager.ask("zbadge", "stop")
        assert (folder.requests / "stop").exists()
    finally:
        process.kill()
        process.communicate()
    assert not is_locked(folder.lock_file)
    assert manager.status("zbadge").state == "interrupted"


def test_only_plain_folder_names_are_jobs(manager: JobManager, job: Callable[..., Any], recording_host: Any) -> None:
    runs = recording_host.folders().runs
    create_run(load(job(output={"runs_folder": str(runs / "below")})))
    for wrong in ("", ".", "..", "below/zbadge", "below\\zbadge", "../train-studio/runs", "none", "a\0b", "C:zbadge"):
        with pytest.raises(UnknownJobError, match="There is no job"):
            manager.status(wrong)
    with pytest.raises(UnknownJobError):
        manager.ask("none", "stop")
    with pytest.raises(ConfigError, match="accepted are save, preview"):
        manager.ask("none", "explode")


def test_events_come_from_a_number_on(manager: JobManager, job: Callable[..., Any]) -> None:
    manager.submit(load(job(training={"max_train_steps": 2})))
    assert manager.wait_idle(WAIT_SECONDS)
    events = manager.events("zbadge", 0)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert manager.events("zbadge", len(events) - 2) == events[-2:]
    assert manager.events("zbadge", len(events)) == []
    assert events == list(RunFolder(manager.folder("zbadge").path).events())


def test_the_version_changes_with_the_status(
    manager: JobManager, job: Callable[..., Any], hold: threading.Event
) -> None:
    seen: dict[int, JobStatus] = {}
    manager.submit(load(job(name="first", training={"max_train_steps": 1})))
    manager.submit(load(job()))
    hold.set()
    deadline = time.monotonic() + WAIT_SECONDS
    while not manager.wait_idle(0):
        assert time.monotonic() < deadline
        status = manager.status("zbadge")
        assert seen.setdefault(status.version, status) == status
        time.sleep(0.005)
    assert {status.state for status in seen.values()} >= {"queued", "preparing", "training"}


def test_other_results_are_deleted_and_nothing_else(
    manager: JobManager, job: Callable[..., Any], tmp_path: Path
) -> None:
    manager.submit(load(job(training={"max_train_steps": 3, "save_every_steps": 1})))
    assert [result.step for result in finished(manager, "zbadge").results] == [1, 2, 3]
    out = tmp_path / "out"
    (out / "zbadge-000009.safetensors").write_bytes(b"precious")
    (out / "zbadge-000001.preview.png").write_bytes(b"the user's own")
    with pytest.raises(ConfigError, match="is 9, accepted are 1, 2, 3"):
        manager.delete_results("zbadge", 9)
    deleted = manager.delete_results("zbadge", 2)
    assert {path.name for path in deleted} == {
        "zbadge-000001.safetensors", "zbadge-000001.json", "zbadge.safetensors", "zbadge.json",
    }  # fmt: skip
    assert {path.name for path in out.iterdir()} == {
        "zbadge-000002.safetensors", "zbadge-000002.json", "zbadge-000009.safetensors", "zbadge-000001.preview.png",
    }  # fmt: skip
    assert [result.step for result in manager.status("zbadge").results] == [2]


def test_a_result_that_another_run_wrote_again_is_not_deleted(
    manager: JobManager, job: Callable[..., Any], tmp_path: Path
) -> None:
    first = {"training": {"max_train_steps": 2, "save_every_steps": 1}}
    manager.submit(load(job(**first)))
    assert manager.wait_idle(WAIT_SECONDS)
    manager.submit(load(job(training={"max_train_steps": 1}, output={"overwrite": True})))
    assert manager.wait_idle(WAIT_SECONDS)
    assert {path.name for path in manager.delete_results("zbadge", 1)} == set()
    assert (tmp_path / "out" / "zbadge.safetensors").exists()


def test_forgetting_a_run_leaves_its_results(
    manager: JobManager, job: Callable[..., Any], tmp_path: Path, hold: threading.Event
) -> None:
    manager.submit(load(job(training={"max_train_steps": 1})))
    with pytest.raises(JobStateError, match=r"Stop it first"):
        manager.forget("zbadge")
    with pytest.raises(JobStateError):
        manager.delete_results("zbadge", 1)
    hold.set()
    folder = manager.folder("zbadge").path
    assert manager.wait_idle(WAIT_SECONDS)
    manager.forget("zbadge")
    assert not folder.exists()
    assert manager.statuses() == ()
    assert (tmp_path / "out" / "zbadge.safetensors").exists()


def test_a_run_that_cannot_be_read_is_left_out_and_said_once(
    manager: JobManager, recording_host: Any, caplog: pytest.LogCaptureFixture
) -> None:
    broken = recording_host.folders().runs / "broken"
    broken.mkdir(parents=True)
    (broken / "job.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert manager.statuses() == ()
        assert manager.statuses() == ()
    assert [record.message.split(":")[0] for record in caplog.records] == [
        f"The run {broken} cannot be read and is left out"
    ]
