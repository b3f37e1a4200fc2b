"""The status of a job is nothing but its events, folded."""

from __future__ import annotations

import dataclasses
import json

import pytest

from extensions_lib.config.codec import load
from extensions_lib.events import (
    CheckpointSaved,
    Event,
    JobFailed,
    JobFinished,
    PauseChanged,
    PhaseProgress,
    PreviewReady,
    ResultPublished,
    StepCompleted,
    TrainingStarted,
    ValidationMeasured,
    Warned,
)
from extensions_lib.jobs.status import JobStatus, SavedResult, StatusFold

CONFIG = load(
    {
        "name": "cat",
        "base_model": "model.safetensors",
        "dataset": {"folder": "pictures", "trigger_word": "sks"},
        "method": {"kind": "lora"},
        "training": {"max_train_steps": 10},
    }
)


def fold(*events: Event) -> JobStatus:
    folding = StatusFold("cat-2", CONFIG)
    for number, event in enumerate(events, start=1):
        folding.apply(dataclasses.replace(event, job_id="cat-2", sequence=number, time=100.0 + number))
    return folding.status()


def started(first_step: int = 0) -> TrainingStarted:
    return TrainingStarted(
        name="cat", method="lora", first_step=first_step, max_train_steps=10, num_examples=4, num_parameters=99,
        run_folder="runs/cat-2",
    )  # fmt: skip


def step(number: int, loss: float = 0.5, seconds: float = 2.0) -> StepCompleted:
    return StepCompleted(
        step=number, loss=loss, learning_rate=1e-4, num_examples_seen=number, seconds=seconds, peak_memory_gib=1.5
    )


def test_before_any_event_a_job_is_queued_and_knows_its_settings() -> None:
    status = fold()
    assert (status.job_id, status.name, status.method, status.trigger_word) == ("cat-2", "cat", "lora", "sks")
    assert (status.state, status.step, status.max_train_steps) == ("queued", 0, 10)
    assert status.eta_seconds is None
    assert not status.is_active


def test_a_whole_run() -> None:
    status = fold(
        PhaseProgress(phase="load model", done=1, total=1),
        started(),
        ValidationMeasured(step=0, loss=0.9),
        step(1, 0.7, seconds=1.0),
        step(2, 0.6, seconds=3.0),
        CheckpointSaved(step=2, path="a-000002.safetensors", num_modules=192),
        ResultPublished(step=2, path="a-000002.safetensors", text="visible", is_usable=True),
        PreviewReady(step=2, path="p", grid_path="g"),
        Warned(text="careful"),
    )
    assert status.state == "training"
    assert (status.step, status.loss, status.learning_rate) == (2, 0.6, 1e-4)
    assert status.curve == ((1, 0.7), (2, 0.6))
    assert status.validation == ((0, 0.9),)
    assert status.seconds_per_step == 2.0
    assert status.eta_seconds == 16.0
    assert status.results == (SavedResult(2, "a-000002.safetensors", 192, "visible", True),)
    assert status.preview_steps == (2,)
    assert status.warnings == ("careful",)
    assert (status.started_at, status.updated_at, status.version) == (101.0, 109.0, 9)


def test_after_a_resume_the_steps_that_were_lost_are_forgotten() -> None:
    status = fold(
        started(), step(1), step(2), ValidationMeasured(step=2, loss=0.4), step(3, seconds=50.0),
        started(first_step=2), step(3, 0.1, seconds=1.0),
    )  # fmt: skip
    assert status.curve == ((1, 0.5), (2, 0.5), (3, 0.1))
    assert status.validation == ((2, 0.4),)
    assert status.seconds_per_step == 1.0


def test_a_result_rewritten_under_its_name_is_listed_once() -> None:
    status = fold(started(), *[CheckpointSaved(step=n, path="a", num_modules=1) for n in (1, 2)])
    assert status.results == (SavedResult(2, "a", 1),)


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (PauseChanged(paused=True, step=1), "paused"),
        (PauseChanged(paused=False, step=1), "training"),
        (JobFinished(reason="completed", step=10, path="x"), "completed"),
        (JobFinished(reason="stopped", step=1, path="x"), "stopped"),
        (JobFinished(reason="discarded", step=1, path=""), "discarded"),
        (JobFailed(error="DiskFullError", message="full", hint="free some"), "failed"),
        (PhaseProgress(phase="encode pictures", done=1, total=4), "preparing"),
    ],
)
def test_states(last: Event, state: str) -> None:
    assert fold(started(), step(1), last).state == state


def test_a_failed_job_that_is_tried_again_forgets_its_error() -> None:
    failed = (JobFailed(error="E", message="full", hint="free some"),)
    assert (fold(started(), *failed).error, fold(started(), *failed).hint) == ("full", "free some")
    again = fold(Warned(text="old"), *failed, PhaseProgress(phase="load model", done=0, total=1))
    assert (again.error, again.hint, again.warnings) == ("", "", ())
    phases = PhaseProgress(phase="a", done=0, total=1), Warned(text="new"), PhaseProgress(phase="b", done=0, total=1)
    assert fold(*phases).warnings == ("new",)


def test_a_status_is_plain_values() -> None:
    status = fold(started(), step(1), CheckpointSaved(step=1, path="a", num_modules=1))
    record = json.loads(json.dumps(status.to_json()))
    assert record["results"][0]["path"] == "a"
    assert record["eta_seconds"] == 18.0
