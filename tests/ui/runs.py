"""Runs to show: real statuses folded from events, in real run folders, and a manager that only knows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from extensions_lib.config.codec import load
from extensions_lib.config.job import TrainJobConfig
from extensions_lib.config.tool import ToolConfig
from extensions_lib.config.tools import JobConfig, load_any_tool
from extensions_lib.errors import UnknownJobError
from extensions_lib.events import Event, StepCompleted, TrainingStarted
from extensions_lib.jobs.status import JobStatus, StatusFold
from extensions_lib.jobs.store import RunFolder, create_run_folder

STARTED_AT = 1_700_000_000.0


def job_config(name: str = "zbadge", kind: str = "lora", **changes: Any) -> TrainJobConfig:
    """Settings of a job; `changes` are whole sections."""
    table = {
        "name": name,
        "base_model": "/models/practice.safetensors",
        "preset": {"lora": "lora_character", "textual_inversion": "embedding_subject"}.get(kind, ""),
        "dataset": {"folder": "/pictures", "resolution_px": 64},
        "method": {"kind": kind},
        "training": {"max_train_steps": 1200},
    }
    return load({**table, **changes})


def tool_config(name: str = "half", **changes: Any) -> ToolConfig:
    """Settings of a merge."""
    models = ["/models/a.safetensors", "C:\\models\\b.safetensors"]
    return load_any_tool({"tool": "merge", "name": name, "models": models, "folder": "/models", **changes})


def started(config: TrainJobConfig, first_step: int = 0) -> TrainingStarted:
    """The event before the first step."""
    return TrainingStarted(
        name=config.name,
        method=config.method.kind,
        first_step=first_step,
        max_train_steps=config.training.max_train_steps,
        num_examples=24,
        num_parameters=1_613_824,
        run_folder="",
    )


def step(number: int, loss: float = 0.25, seconds: float = 1.5) -> StepCompleted:
    """One step."""
    return StepCompleted(
        step=number, loss=loss, learning_rate=2e-4, num_examples_seen=number, seconds=seconds, peak_memory_gib=5.25
    )


class FakeManager:
    """What the page asks a job manager for, over runs that are given to it."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.at_work: str | None = None
        self.known: dict[str, JobStatus] = {}

    def add(self, config: JobConfig, events: Sequence[Event] = (), state: str | None = None) -> JobStatus:
        """A run made of `events`; `state` as the manager would tell it."""
        folder = create_run_folder(self.runs, config)
        fold = StatusFold(folder.job_id, config)
        for number, event in enumerate(events, start=1):
            fold.apply(dataclasses.replace(event, job_id=folder.job_id, sequence=number, time=STARTED_AT + number))
        self.known[folder.job_id] = fold.status(state)
        return self.known[folder.job_id]

    def change(self, job_id: str, /, **changes: Any) -> None:
        """Something happened."""
        self.known[job_id] = dataclasses.replace(self.known[job_id], **changes)

    def statuses(self) -> tuple[JobStatus, ...]:
        return tuple(self.known.values())

    def status(self, job_id: str) -> JobStatus:
        if job_id not in self.known:
            raise UnknownJobError(f"There is no run {job_id!r}.")
        return self.known[job_id]

    def active(self) -> str | None:
        return self.at_work

    def folder(self, job_id: str) -> RunFolder:
        self.status(job_id)
        return RunFolder(self.runs / job_id)


def draw(folder: RunFolder, names: Sequence[str]) -> Mapping[str, int]:
    """Preview pictures of these names, and when each was written."""
    folder.previews.mkdir(exist_ok=True)
    stamps = {}
    for name in names:
        Image.new("RGB", (4, 4)).save(folder.previews / name)
        stamps[name] = (folder.previews / name).stat().st_mtime_ns
    return stamps
