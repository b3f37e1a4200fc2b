from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from extensions_lib.config.presets import merge
from extensions_lib.control import JobControl
from extensions_lib.errors import JobStopped
from extensions_lib.events import StepCompleted
from extensions_lib.practice import demo


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration with two steps, few seeds and one background."""
    steps = {"training": {"max_train_steps": 2, "train_batch_size": 1, "num_threads": 1}, "preview": {"enabled": False}}
    monkeypatch.setattr(demo, "JOBS", {name: merge(job, steps) for name, job in demo.JOBS.items()})
    monkeypatch.setattr(demo, "NUM_SEEDS", 2)
    monkeypatch.setattr(demo, "SEEDS_PER_BATCH", 1)
    monkeypatch.setattr(demo, "BACKGROUNDS", ("red",))
    monkeypatch.setattr(demo, "SAMPLER", {**demo.SAMPLER, "num_steps": 2})


@pytest.mark.usefixtures("short")
def test_demo_writes_files_picture_and_report(tmp_path: Path) -> None:
    report = demo.run_demo(tmp_path, JobControl())
    assert {Path(file).name for file in report.files} == {
        "practice-badge-lora.safetensors",
        "practice-badge.safetensors",
    }
    assert json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))["num_seeds"] == 2
    with Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.size[1] > 4 * 64
    assert report.plain_name in demo.PLAIN_NAMES
    assert 0 < report.lora_loss < 1
    assert report.lora_loss != report.base_loss
    assert report.embedding_loss != report.base_loss
    again = demo.run_demo(tmp_path, JobControl())
    assert (again.lora_loss, again.embedding_loss) == (report.lora_loss, report.embedding_loss)


@pytest.mark.usefixtures("short")
def test_a_stopped_demo_says_so(tmp_path: Path) -> None:
    control = JobControl()
    listener = lambda event: control.request_stop() if isinstance(event, StepCompleted) else None  # noqa: E731
    with pytest.raises(JobStopped, match="The demonstration was stopped"):
        demo.run_demo(tmp_path, control, (listener,))


def test_report_says_how_far_the_loss_fell() -> None:
    report = demo.DemoReport("square", 0.2, 0.15, 0.18, 0, 45, 20, 50, ())
    assert report.lines() == [
        "held-out loss: base 'square' 0.2000, LoRA 0.1500 (25.0 % lower), embedding 0.1800 (10.0 % lower)",
        "badge found in 50 fresh seeds: base 0, LoRA 45, embedding 20",
    ]


def test_jobs_train_and_validate_on_different_pictures(tmp_path: Path) -> None:
    for name in demo.JOBS:
        dataset = demo.demo_job(name, tmp_path).dataset
        train, held_out = (Path(folder) for folder in (dataset.folder, dataset.validation_folder))
        digests = [{path.read_bytes() for path in folder.glob("*.png")} for folder in (train, held_out)]
        assert len(digests[0]) >= 8
        assert len(digests[1]) == 4
        assert not digests[0] & digests[1]
