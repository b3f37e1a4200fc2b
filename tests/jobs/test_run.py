"""Jobs from settings to result, on the practice model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from extensions_lib.config.codec import load
from extensions_lib.config.job import TrainJobConfig
from extensions_lib.config.preview import PreviewPrompt
from extensions_lib.control import JobControl
from extensions_lib.errors import FormatError, OutputError, TrainingError
from extensions_lib.events import (
    CheckpointSaved,
    Event,
    JobFailed,
    JobFinished,
    PauseChanged,
    PreviewReady,
    StepCompleted,
    TrainingStarted,
    ValidationMeasured,
    Warned,
)
from extensions_lib.formats.safetensors_io import read_header, read_tensors
from extensions_lib.jobs.run import Outcome, resume, start
from extensions_lib.jobs.store import RunFolder
from extensions_lib.preview.record import read_prompts
from extensions_lib.training.precision import cpu_has_bf16
from extensions_lib.training.run_state import load_newest

LORA = {"kind": "lora", "rank": 2, "alpha": 2.0, "layer_filter": "attn2", "train_text_encoder": False}
LORA_EVERYTHING = {**LORA, "layer_filter": "", "train_text_encoder": True, "dropout": 0.2}
EMBEDDING = {"kind": "textual_inversion", "vectors_per_token": 2, "initializer_text": "red"}


def run(table: dict[str, Any], control: JobControl | None = None) -> tuple[Outcome, list[Event]]:
    events: list[Event] = []
    return start(load(table), control or JobControl(), (events.append,)), events


def elsewhere(tmp_path: Path, name: str) -> dict[str, str]:
    """Output settings for a second run of the same name."""
    return {"folder": str(tmp_path / name), "runs_folder": str(tmp_path / f"runs-{name}")}


def of(events: list[Event], cls: type) -> list:
    return [event for event in events if isinstance(event, cls)]


def losses(folder: Path) -> dict[int, float]:
    """The last loss recorded for each step."""
    return {event.step: event.loss for event in RunFolder(folder).events() if isinstance(event, StepCompleted)}


def stop_after(step: int, control: JobControl) -> Callable[[Event], None]:
    return lambda event: control.request_stop() if isinstance(event, StepCompleted) and event.step == step else None


def same_tensors(one: Path, two: Path) -> bool:
    left, right = read_tensors(one), read_tensors(two)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_job_ends_in_a_file_a_card_and_a_story(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    outcome, events = run(
        job(
            training={"save_every_steps": 3, "validation_every_steps": 3},
            preview={"enabled": True, "every_steps": 3, "prompts": [{"prompt": "a [name]", "num_steps": 2}]},
        )
    )
    assert outcome.reason == "completed"
    assert outcome.path == tmp_path / "out" / "zbadge.safetensors"
    assert [type(event).__name__ for event in events if type(event).__name__ != "PhaseProgress"] == [
        "TrainingStarted",
        "ValidationMeasured",
        "PreviewReady",
        "StepCompleted",
        "StepCompleted",
        "StepCompleted",
        "CheckpointSaved",
        "ValidationMeasured",
        "PreviewReady",
        "StepCompleted",
        "StepCompleted",
        "StepCompleted",
        "ValidationMeasured",
        "CheckpointSaved",
        "PreviewReady",
        "JobFinished",
    ]
    assert [event.step for event in of(events, CheckpointSaved)] == [3, 6]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "zbadge-000003.safetensors",
        "zbadge-000003.json",
        "zbadge-000003.png",
        "zbadge.safetensors",
        "zbadge.json",
        "zbadge.png",
    }
    card = json.loads((tmp_path / "out" / "zbadge.json").read_text(encoding="utf-8"))
    assert (card["activation text"], card["sd version"]) == ("zbadge", "SD1")
    newest = (outcome.run_folder / "previews" / "000006-0.png").read_bytes()
    assert (tmp_path / "out" / "zbadge.png").read_bytes() == newest
    metadata = read_header(outcome.path)[1]
    assert (metadata["ss_output_name"], metadata["ss_steps"], metadata["ss_num_train_images"]) == ("zbadge", "6", "5")
    assert list(RunFolder(outcome.run_folder).events())[-1] == events[-1]
    with Image.open(outcome.run_folder / "previews" / "grid.png") as grid:
        assert grid.size[0] > 64


def test_step_zero_preview_equals_the_base_and_the_last_does_not(job: Callable[..., dict[str, Any]]) -> None:
    outcome, _ = run(
        job(
            optimizer={"learning_rate": 0.05},
            preview={"enabled": True, "every_steps": 6, "prompts": [{"prompt": "a [name]", "num_steps": 2}]},
        )
    )
    previews = outcome.run_folder / "previews"
    pixels = {}
    for name in ("base", "000000", "000006"):
        with Image.open(previews / f"{name}-0.png") as image:
            pixels[name] = image.tobytes()
    assert pixels["base"] == pixels["000000"]
    assert pixels["base"] != pixels["000006"]
    assert read_prompts(previews) == (PreviewPrompt(prompt="a [name]", num_steps=2),)


def test_statement_22_previews_do_not_change_the_training(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    plain, _ = run(job(output=elsewhere(tmp_path, "plain")))
    drawn, _ = run(job(preview={"enabled": True, "every_steps": 1, "prompts": [{"prompt": "x", "num_steps": 2}]}))
    assert losses(plain.run_folder) == losses(drawn.run_folder)
    assert same_tensors(plain.path, drawn.path)


@pytest.mark.parametrize("method", [LORA_EVERYTHING, EMBEDDING], ids=["lora", "embedding"])
def test_resume_twice_equals_straight(
    job: Callable[..., dict[str, Any]], method: dict[str, Any], tmp_path: Path
) -> None:
    more = {"gradient_accumulation_steps": 2, "ema_decay": 0.9, "loss_weighting": "min_snr"}
    straight, _ = run(job(method=method, training=more, output=elsewhere(tmp_path, "straight")))
    control = JobControl()
    table = job(method=method, training=more)
    stopped = start(load(table), control, (stop_after(2, control),))
    assert (stopped.reason, stopped.step) == ("stopped", 2)
    control = JobControl()
    stopped = resume(RunFolder(stopped.run_folder), control, (stop_after(3, control),))
    assert (stopped.reason, stopped.step) == ("stopped", 3)
    ended = resume(RunFolder(stopped.run_folder), JobControl())
    assert ended.reason == "completed"
    assert losses(straight.run_folder) == losses(ended.run_folder)
    assert set(losses(ended.run_folder)) == set(range(1, 7))
    left, right = load_newest(straight.run_folder / "state"), load_newest(ended.run_folder / "state")
    assert left.values == {**right.values}
    for owner in left.tensors:
        assert left.tensors[owner].keys() == right.tensors[owner].keys()
        assert all(torch.equal(left.tensors[owner][name], right.tensors[owner][name]) for name in left.tensors[owner])


def test_statement_17_kill_9_and_resume_equals_straight(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    steps = {"max_train_steps": 8, "state_every_steps": 2, "gradient_accumulation_steps": 2, "save_every_steps": 4}
    straight, _ = run(job(training=steps, output=elsewhere(tmp_path, "a")))
    table = job(training=steps)
    (tmp_path / "job.json").write_text(json.dumps(table), encoding="utf-8")
    command = [sys.executable, "-m", "extensions_lib", "train", str(tmp_path / "job.json")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = RunFolder(tmp_path / "runs" / "zbadge")
    deadline = time.monotonic() + 120
    while len(losses(folder.path)) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert load_newest(folder.state).step in (4, 6)
    ended = resume(folder, JobControl())
    assert losses(straight.run_folder) == losses(ended.run_folder)
    for name in ("zbadge.safetensors", "zbadge-000004.safetensors"):
        assert same_tensors(tmp_path / "a" / name, tmp_path / "out" / name)
    assert {p.name for p in (tmp_path / "a").iterdir()} == {p.name for p in (tmp_path / "out").iterdir()}


def test_a_finished_run_says_so_and_can_be_extended(job: Callable[..., dict[str, Any]]) -> None:
    outcome, _ = run(job(training={"max_train_steps": 2}))
    with pytest.raises(TrainingError, match="is finished: 2 of 2 steps"):
        resume(RunFolder(outcome.run_folder), JobControl())
    longer = resume(RunFolder(outcome.run_folder), JobControl(), max_train_steps=4)
    assert (longer.reason, longer.step, longer.path) == ("completed", 4, outcome.path)
    assert set(losses(outcome.run_folder)) == {1, 2, 3, 4}


def test_the_card_of_an_extended_run_shows_its_newest_picture(
    job: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    preview = {"enabled": True, "at_start": False, "prompts": [{"prompt": "a [name]", "num_steps": 2}]}
    rates = {"learning_rate": 0.05, "lr_scheduler": "constant"}
    outcome, _ = run(job(training={"max_train_steps": 1}, preview=preview, optimizer=rates))
    card = tmp_path / "out" / "zbadge.png"
    first = card.read_bytes()
    resume(RunFolder(outcome.run_folder), JobControl(), max_train_steps=2)
    newest = (outcome.run_folder / "previews" / "000002-0.png").read_bytes()
    assert newest != first
    assert card.read_bytes() == newest


def test_stopping_before_anything_is_learnt_is_no_failure(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """With warm-up the first step has a rate of zero, and its LoRA would do nothing."""
    control, events = JobControl(), []
    table = job(optimizer={"lr_scheduler": "cosine", "lr_warmup_ratio": 0.5})
    outcome = start(load(table), control, (events.append, stop_after(1, control)))
    assert (outcome.reason, outcome.step, outcome.path) == ("stopped", 1, None)
    assert not list((tmp_path / "out").iterdir())
    (warning,) = of(events, Warned)
    assert "of no use yet" in warning.text and "only zeros" in warning.text
    assert resume(RunFolder(outcome.run_folder), JobControl()).reason == "completed"


def test_discard_leaves_no_result(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    control = JobControl()
    events: list[Event] = []
    listeners = (
        events.append,
        lambda event: control.request_stop(discard=True) if isinstance(event, StepCompleted) else None,
    )
    outcome = start(load(job()), control, listeners)
    assert (outcome.reason, outcome.path) == ("discarded", None)
    assert not list((tmp_path / "out").iterdir())
    assert of(events, JobFinished)[0].reason == "discarded"


def test_requests_of_another_process(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    def ask(event: Event) -> None:
        folder = RunFolder(tmp_path / "runs" / "zbadge")
        if isinstance(event, TrainingStarted):
            folder.request("pause")
        if isinstance(event, PauseChanged) and event.paused:
            folder.request("save")
            folder.request("resume")
        if isinstance(event, StepCompleted):
            folder.request("stop")

    events: list[Event] = []
    outcome = start(load(job()), JobControl(), (events.append, ask))
    assert [event.paused for event in of(events, PauseChanged)] == [True, False]
    assert of(events, CheckpointSaved)[0].step == 1
    assert outcome.reason == "stopped"
    assert not list((tmp_path / "runs" / "zbadge" / "requests").iterdir())


def test_a_request_left_from_before_does_not_stop_a_resumed_run(job: Callable[..., dict[str, Any]]) -> None:
    outcome, _ = run(job(training={"max_train_steps": 1}))
    folder = RunFolder(outcome.run_folder)
    folder.request("stop")
    assert resume(folder, JobControl(), max_train_steps=2).reason == "completed"


def test_stop_while_pictures_are_encoded_trains_nothing(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    control = JobControl()
    outcome = start(
        load(job()),
        control,
        (lambda event: control.request_stop() if getattr(event, "phase", "") == "encode pictures" else None,),
    )
    assert (outcome.reason, outcome.step, outcome.path) == ("stopped", 0, None)
    ended = resume(RunFolder(outcome.run_folder), JobControl())
    assert ended.reason == "completed"


def test_stop_while_a_preview_is_drawn_ends_the_drawing(job: Callable[..., dict[str, Any]]) -> None:
    control = JobControl()
    events: list[Event] = []
    listeners = (
        events.append,
        lambda event: control.request_stop() if isinstance(event, TrainingStarted) else None,
    )
    outcome = start(load(job(preview={"enabled": True, "prompts": ["a [name]"]})), control, listeners)
    assert (outcome.reason, outcome.step) == ("stopped", 0)
    assert not of(events, PreviewReady)
    assert not of(events, Warned)


def test_an_existing_result_is_never_replaced_unasked(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "zbadge.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"zbadge\.safetensors exists already"):
        run(job())
    assert path.read_bytes() == b"precious"
    assert not (tmp_path / "runs").exists()
    outcome, _ = run(job(output={"overwrite": True}, training={"max_train_steps": 1}))
    assert read_tensors(outcome.path)


def test_a_crash_between_writing_and_saying_so_does_not_disown_the_result(
    job: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from extensions_lib.training import session

    def crash(*arguments: object, **fields: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "CheckpointSaved", crash)
    with pytest.raises(KeyboardInterrupt):
        run(job(training={"max_train_steps": 2}))
    monkeypatch.undo()
    assert (tmp_path / "out" / "zbadge.safetensors").exists()
    folder = RunFolder(tmp_path / "runs" / "zbadge")
    assert resume(folder, JobControl()).reason == "completed"


def test_a_file_that_appears_while_training_is_left_alone(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "out" / "zbadge.safetensors"

    def appear(event: Event) -> None:
        if isinstance(event, StepCompleted) and event.step == 2:
            path.write_bytes(b"precious")

    with pytest.raises(OutputError, match="appeared while this job ran"):
        start(load(job(training={"max_train_steps": 2})), JobControl(), (appear,))
    assert path.read_bytes() == b"precious"
    path.unlink()
    assert resume(RunFolder(tmp_path / "runs" / "zbadge"), JobControl()).path == path


def test_unwritable_output_folder_is_one_sentence_before_any_work(
    job: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="The output folder .* cannot be written"):
        run(job(output={"folder": str(tmp_path / "file" / "out")}))
    assert not (tmp_path / "runs").exists()


def test_a_disk_that_fills_up_keeps_the_state(
    job: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from extensions_lib.errors import DiskFullError
    from extensions_lib.training import results

    def full(path: Path, *arguments: object, **options: object) -> Path:
        raise DiskFullError(f"The disk of {path.parent} is full.", "Free some space.")

    straight, _ = run(job(output=elsewhere(tmp_path, "straight")))
    monkeypatch.setattr(results, "write_checkpoint", full)
    events: list[Event] = []
    with pytest.raises(DiskFullError, match="is full"):
        start(load(job()), JobControl(), (events.append,))
    assert of(events, JobFailed)[0].error == "DiskFullError"
    monkeypatch.undo()
    folder = RunFolder(tmp_path / "runs" / "zbadge")
    assert load_newest(folder.state).step == 6
    saved = resume(folder, JobControl())
    assert same_tensors(saved.path, straight.path)


def test_too_little_room_is_said_before_the_first_step(
    job: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from extensions_lib.errors import DiskFullError

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with pytest.raises(DiskFullError, match="has 1 MiB free"):
        run(job())


def test_nan_latents_name_the_picture(job: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    from extensions_lib.errors import NonFiniteLossError
    from extensions_lib.training import batches

    sample = batches.sample_latents

    def spoilt(mean: torch.Tensor, *arguments: object) -> torch.Tensor:
        return sample(mean, *arguments) * float("nan")

    monkeypatch.setattr(batches, "sample_latents", spoilt)
    with pytest.raises(NonFiniteLossError, match=r"Step 1: the loss is not finite for \d\.png"):
        run(job())


def test_another_base_model_is_refused_on_resume(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    control = JobControl()
    outcome = start(load(job()), control, (stop_after(2, control),))
    folder = RunFolder(outcome.run_folder)
    state = load_newest(folder.state)
    from extensions_lib.training.run_state import RunState, save_state

    save_state(folder.state, RunState(state.step, state.tensors, {**state.values, "base_model_sha256": "0" * 64}))
    with pytest.raises(TrainingError, match="is not the one this run was started with"):
        resume(folder, JobControl())


def test_changed_pictures_are_a_warning_on_resume(job: Callable[..., dict[str, Any]], pictures: Path) -> None:
    control = JobControl()
    outcome = start(load(job()), control, (stop_after(2, control),))
    (pictures / "0.txt").write_text("other words", encoding="utf-8")
    events: list[Event] = []
    resume(RunFolder(outcome.run_folder), JobControl(), (events.append,))
    assert any("pictures or captions changed" in event.text for event in of(events, Warned))


def test_loss_at_fixed_noise_falls(job: Callable[..., dict[str, Any]]) -> None:
    _, events = run(
        job(training={"max_train_steps": 12, "validation_every_steps": 12}, optimizer={"learning_rate": 5e-3})
    )
    first, last = of(events, ValidationMeasured)
    assert last.loss < first.loss


def test_a_failed_preview_is_a_warning(job: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    from extensions_lib.training import previews

    def fail(*arguments: object, **options: object) -> None:
        raise TrainingError("latents are not finite")

    monkeypatch.setattr(previews, "sample_image", fail)
    outcome, events = run(job(preview={"enabled": True}, training={"max_train_steps": 1}))
    assert outcome.reason == "completed"
    assert {event.text for event in of(events, Warned)} == {
        "No preview after step 0: latents are not finite",
        "No preview after step 1: latents are not finite",
    }
    assert not of(events, PreviewReady)


def test_a_save_before_anything_is_learnt_is_a_warning(job: Callable[..., dict[str, Any]]) -> None:
    """A slow warm-up leaves the half precision file of the first step zero."""
    optimizer = {"learning_rate": 1e-8, "lr_scheduler": "constant"}
    table = job(optimizer=optimizer, training={"save_every_steps": 1, "max_train_steps": 2})
    control = JobControl()
    events: list[Event] = []
    with pytest.raises(FormatError, match="holds only zeros"):
        start(load(table), control, (events.append,))
    assert [event.text.partition(":")[0] for event in of(events, Warned)] == [
        "The result after step 1 is of no use yet"
    ]
    assert [event.step for event in of(events, StepCompleted)] == [1, 2]


def test_gradient_checkpointing_changes_no_loss(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    steps = {"max_train_steps": 3}
    plain, _ = run(job(method=LORA_EVERYTHING, training=steps, output=elsewhere(tmp_path, "plain")))
    checkpointed, _ = run(job(method=LORA_EVERYTHING, training={**steps, "gradient_checkpointing": True}))
    assert losses(checkpointed.run_folder) == pytest.approx(losses(plain.run_folder), rel=1e-5)


@pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU has no bf16 instructions")
def test_bf16_trains_float32_parameters(job: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    steps = {"max_train_steps": 3}
    precise, _ = run(job(training=steps, output=elsewhere(tmp_path, "plain")))
    halved, _ = run(job(training={**steps, "mixed_precision": "bf16"}))
    assert losses(halved.run_folder) == pytest.approx(losses(precise.run_folder), rel=0.05)
    assert losses(halved.run_folder) != losses(precise.run_folder)
    tensors = load_newest(halved.run_folder / "state").tensors["trainable"]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_the_run_folder_remembers_the_job(job: Callable[..., dict[str, Any]]) -> None:
    config: TrainJobConfig = load(job())
    outcome, _ = run(job())
    assert RunFolder(outcome.run_folder).config() == config
