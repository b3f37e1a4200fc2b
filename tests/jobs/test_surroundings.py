"""What a job does to the program it runs in: statements 20 to 23 of the host's contract."""

from __future__ import annotations

import gc
import logging
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from extensions_lib.config.codec import load
from extensions_lib.control import JobControl
from extensions_lib.errors import HostError, OutOfMemoryError
from extensions_lib.events import (
    CheckpointSaved,
    Event,
    JobFailed,
    PhaseProgress,
    PreviewReady,
    ResultPublished,
    StepCompleted,
    Warned,
)
from extensions_lib.formats.safetensors_io import read_tensors
from extensions_lib.jobs.manager import JobManager
from extensions_lib.jobs.run import Outcome, start
from extensions_lib.ports import Published
from extensions_lib.training import build, lending
from extensions_lib.training.loop import TrainingLoop
from extensions_lib.training.parking import job_tensors

WAIT_SECONDS = 120
PREVIEW = {"enabled": True, "every_steps": 1, "prompts": [{"prompt": "a [name]", "num_steps": 2}]}
EVERYTHING = {
    "method": {"kind": "lora", "rank": 2, "alpha": 2.0, "train_text_encoder": True, "dropout": 0.2},
    "training": {"max_train_steps": 2, "ema_decay": 0.9, "gradient_checkpointing": True, "validation_every_steps": 1},
    "preview": PREVIEW,
}
MakeJob = Callable[..., dict[str, Any]]


def train(table: dict[str, Any], host: Any, control: JobControl | None = None) -> tuple[Outcome, list[Event]]:
    events: list[Event] = []
    return start(load(table), control or JobControl(), (events.append,), host), events


def process_state() -> dict[str, Any]:
    """What torch and Python keep for all of a process or thread, as this thread sees it."""
    return {
        "torch random": torch.get_rng_state().tolist(),
        "python random": random.getstate(),
        "numpy random": repr(np.random.get_state()),
        **thread_state(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": [
            getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")
        ],
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "mkldnn": torch.backends.mkldnn.enabled,
        "attention": [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()],
        "patched": [nn.Module.to, nn.Linear.reset_parameters, nn.init.kaiming_uniform_, torch.load],
        "overwrite": torch.__future__.get_overwrite_module_params_on_conversion(),
        "logging": (logging.getLogger().level, list(logging.getLogger().handlers)),
    }


def thread_state() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled(),
    }


def in_a_new_thread(ask: Callable[[], Any]) -> Any:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    thread.join()
    return answers[0]


@pytest.fixture
def two_threads() -> Iterator[None]:
    """The host computes with two threads, the job asks for one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("is_failing", [False, True], ids=["success", "failure"])
@pytest.mark.usefixtures("two_threads")
def test_statement_21_a_job_changes_nothing_that_the_process_shares(
    job: MakeJob, recording_host: Any, is_failing: bool
) -> None:
    """The numbers of the host's own threads too, of those it starts while the job runs."""
    seen_inside: list[Any] = []
    own_thread: dict[str, Any] = {}

    def look(parked: Any) -> None:
        seen_inside.append(in_a_new_thread(thread_state))
        if is_failing and len(seen_inside) > 12:
            raise KeyError("a bug")

    recording_host.on_enter = lambda: own_thread.update(before=thread_state())
    recording_host.on_leave = lambda: own_thread.update(after=thread_state())
    recording_host.on_lend = look
    table = load(job(**EVERYTHING))
    manager = JobManager(recording_host)
    before, thread_before = process_state(), in_a_new_thread(thread_state)
    manager.submit(table)
    assert manager.wait_idle(WAIT_SECONDS)
    assert manager.status("zbadge").state == ("failed" if is_failing else "completed")
    assert process_state() == before
    assert in_a_new_thread(thread_state) == thread_before
    assert own_thread["after"] == own_thread["before"]
    assert seen_inside == [thread_before] * len(seen_inside)


def bounds(host: Any) -> list[str]:
    return [note for note in host.notes if note in ("enter", "leave")]


@pytest.mark.parametrize("end", ["success", "stop", "stop before the first step", "bug", "memory", "interrupt"])
def test_statement_20_the_host_gets_everything_back_however_a_job_ends(
    job: MakeJob, recording_host: Any, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The base model is gone before others may compute, and nothing is lent afterwards."""
    models: list[weakref.ref[nn.Module]] = []
    left: list[bool] = []
    load_model, train_step, control = build.load_model, TrainingLoop.train_step, JobControl()

    def note_model(*arguments: Any) -> Any:
        bundle = load_model(*arguments)
        models.append(weakref.ref(bundle.unet))
        if end == "stop before the first step":
            control.request_stop()
        return bundle

    def end_job(self: TrainingLoop, step: int) -> None:
        train_step(self, step)
        if end == "stop":
            control.request_stop()
        if end in ENDS:
            raise ENDS[end]

    monkeypatch.setattr(build, "load_model", note_model)
    monkeypatch.setattr(TrainingLoop, "train_step", end_job)
    recording_host.on_leave = lambda: left.append(models[0]() is None)
    gc.disable()
    try:
        if end in ENDS:
            with pytest.raises((KeyError, OutOfMemoryError, KeyboardInterrupt)):
                train(job(**EVERYTHING), recording_host, control)
        else:
            train(job(**EVERYTHING), recording_host, control)
    finally:
        gc.enable()
    assert left == [True]
    assert bounds(recording_host) == ["enter", "leave"]
    lent = recording_host.num_lent
    assert not control.paused
    assert recording_host.num_lent == lent


ENDS = {"bug": KeyError("a bug"), "memory": MemoryError(), "interrupt": KeyboardInterrupt()}


def test_statement_20_the_device_is_lent_again_after_every_step_and_in_every_phase(
    job: MakeJob, recording_host: Any
) -> None:
    """Also between the pictures that are encoded and between the steps of a preview."""
    lent_at: list[str] = []
    recording_host.on_lend = lambda parked: lent_at.append(type(recording_host.mirrored[-1]).__name__)
    train(job(**EVERYTHING), recording_host)
    events = [type(event).__name__ for event in recording_host.mirrored]
    assert lent_at.count("PhaseProgress") >= 5
    assert lent_at.count("ValidationMeasured") >= 4
    assert lent_at.count("PreviewReady") >= 2
    assert lent_at.count("ResultPublished") >= 2
    assert events.count("StepCompleted") == 2


def test_statement_22_lending_and_parking_anywhere_change_no_weight(
    job: MakeJob, recording_host: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every tensor of the job gets other memory at every boundary, in previews too, as if it had been away."""
    num_moved: list[int] = []

    @contextmanager
    def away_and_back(*parts: Any) -> Iterator[None]:
        tensors = job_tensors(*parts[:3])
        num_moved.append(len(tensors))
        kept = [tensor.data.clone() for tensor in tensors]
        for tensor in tensors:
            tensor.data = torch.empty(0)
        yield
        for tensor, data in zip(tensors, kept, strict=True):
            tensor.data = data

    def lend(parked: Any) -> None:
        with parked():
            torch.zeros(10)

    straight, _ = train(job(**EVERYTHING, output={"folder": str(tmp_path / "straight")}), recording_host)
    monkeypatch.setattr(lending, "parked", away_and_back)
    recording_host.on_lend = lend
    moved, _ = train(job(**EVERYTHING), recording_host)
    assert max(num_moved) > 100
    left, right = read_tensors(straight.path), read_tensors(moved.path)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    pictures = [
        {path.name: path.read_bytes() for path in (outcome.run_folder / "previews").glob("*-0.png")}
        for outcome in (straight, moved)
    ]
    assert len(pictures[0]) == 4
    assert pictures[0] == pictures[1]


def test_statement_23_nothing_is_built_before_the_host_is_ready(
    job: MakeJob, recording_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, built = threading.Event(), []
    init = nn.Module.__init__

    def note(self: nn.Module, *arguments: Any, **options: Any) -> None:
        built.append(ready.is_set())
        init(self, *arguments, **options)

    monkeypatch.setattr(nn.Module, "__init__", note)

    def wait() -> None:
        assert ready.wait(WAIT_SECONDS)

    recording_host.on_enter = wait
    manager = JobManager(recording_host)
    manager.submit(load(job(training={"max_train_steps": 1})))
    while not recording_host.mirrored:
        assert not manager.wait_idle(0.01)
    waiting = manager.status("zbadge")
    assert (waiting.state, waiting.phase) == ("preparing", "wait for the device")
    assert built == []
    ready.set()
    assert manager.wait_idle(WAIT_SECONDS)
    assert manager.status("zbadge").state == "completed"
    assert built and all(built)


def test_results_are_published_with_their_cards_before_the_picture(job: MakeJob, recording_host: Any) -> None:
    _, events = train(
        job(training={"max_train_steps": 2, "save_every_steps": 1}, preview={**PREVIEW, "at_start": False}),
        recording_host,
    )
    kinds = (StepCompleted, CheckpointSaved, ResultPublished, PreviewReady)
    assert [type(event).__name__ for event in events if isinstance(event, kinds)] == [
        "StepCompleted", "CheckpointSaved", "ResultPublished", "PreviewReady",
        "StepCompleted", "CheckpointSaved", "ResultPublished", "PreviewReady",
    ]  # fmt: skip
    assert [note for note in recording_host.notes if note.startswith("publish")] == [
        "publish lora zbadge-000001.safetensors card=True",
        "publish lora zbadge.safetensors card=True",
    ]
    assert recording_host.mirrored == events
    published = [event for event in events if isinstance(event, ResultPublished)][-1]
    assert (published.step, published.text, published.is_usable) == (2, "visible", True)


def test_a_host_that_says_nothing_of_a_result_makes_no_event(job: MakeJob, recording_host: Any) -> None:
    recording_host.on_publish = lambda path: None
    _, events = train(job(training={"max_train_steps": 1}), recording_host)
    assert not [event for event in events if isinstance(event, ResultPublished)]


def test_a_host_in_trouble_loses_no_training(job: MakeJob, recording_host: Any) -> None:
    def fail(*arguments: Any) -> Published:
        raise HostError("The WebUI did not answer.", "Restart it.")

    recording_host.on_lend = recording_host.on_publish = fail
    outcome, events = train(job(training={"max_train_steps": 2}), recording_host)
    assert outcome.reason == "completed"
    assert read_tensors(outcome.path)
    assert [event.text for event in events if isinstance(event, Warned)] == [
        "The WebUI did not answer. Restart it.",
        "zbadge.safetensors is saved, but the WebUI was not told: The WebUI did not answer. Restart it.",
    ]


def test_a_failing_progress_display_is_dropped(
    job: MakeJob, recording_host: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: Event) -> None:
        raise AttributeError("shared.state is gone")

    monkeypatch.setattr(recording_host, "mirror", fail)
    outcome, _ = train(job(training={"max_train_steps": 1}), recording_host)
    assert outcome.reason == "completed"
    assert sum("A listener of job" in record.message for record in caplog.records) == 1


def test_a_host_that_is_not_ready_is_a_failed_job(job: MakeJob, recording_host: Any) -> None:
    def refuse() -> None:
        raise HostError("The WebUI's checkpoint cannot be loaded.", "Look at its console.")

    recording_host.on_enter = refuse
    manager = JobManager(recording_host)
    manager.submit(load(job()))
    assert manager.wait_idle(WAIT_SECONDS)
    failed = manager.status("zbadge")
    assert (failed.state, failed.error) == ("failed", "The WebUI's checkpoint cannot be loaded.")
    assert [type(event) for event in manager.events("zbadge")] == [PhaseProgress, JobFailed]
