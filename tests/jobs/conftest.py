"""Tiny jobs on the practice model, and a host that notes what it is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.config.presets import merge
from extensions_lib.events import Event
from extensions_lib.jobs.manager import JobManager
from extensions_lib.jobs.status import JobStatus
from extensions_lib.ports import AccessPolicy, BaseModel, HostFolders, Parked, Published

LORA = {"kind": "lora", "rank": 2, "alpha": 2.0, "layer_filter": "attn2", "train_text_encoder": False}
MakeJob = Callable[..., dict[str, Any]]
WAIT_SECONDS = 120


@pytest.fixture
def job(tmp_path: Path, pictures: Path, practice_model: Path) -> MakeJob:
    """The table of a job of six steps, with the changes asked for."""

    def make(**changes: Any) -> dict[str, Any]:
        table = {
            "name": "zbadge",
            "base_model": str(practice_model),
            "dataset": {"folder": str(pictures), "resolution_px": 64, "caption_template": "[filewords]"},
            "method": LORA,
            "training": {
                "max_train_steps": 6,
                "train_batch_size": 2,
                "state_every_steps": 1,
                "num_threads": 1,
                "mixed_precision": "fp32",
            },
            "preview": {"enabled": False},
            "output": {"folder": str(tmp_path / "out"), "runs_folder": str(tmp_path / "runs")},
        }
        return merge(table, changes) | ({"method": changes["method"]} if "method" in changes else {})

    return make


@dataclass
class RecordingHost:
    """Folders below `root`; `notes` says what was asked, in order; `on_...` may do or raise more."""

    root: Path
    models: tuple[BaseModel, ...] = ()
    files: dict[str, tuple[BaseModel, ...]] = field(default_factory=dict)
    selected: Path | None = None
    policy: AccessPolicy = field(default_factory=AccessPolicy)
    unusable: Mapping[str, str] = field(default_factory=dict)
    on_enter: Callable[[], None] = lambda: None
    on_leave: Callable[[], None] = lambda: None
    on_lend: Callable[[Parked], None] = lambda parked: None
    on_publish: Callable[[Path], Published | None] = lambda path: Published("visible", True)
    on_hash: Callable[[Path], str | None] = lambda path: None
    name: str = "test"
    has_prompt: bool = False
    reads_words_in_loras: bool = True
    notes: list[str] = field(default_factory=list)
    mirrored: list[Event] = field(default_factory=list)
    num_lent: int = 0
    lenders: set[int] = field(default_factory=set)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self.on_enter()
        self.notes.append("enter")
        try:
            yield
        finally:
            self.on_leave()
            self.notes.append("leave")

    def lend(self, parked: Parked) -> None:
        assert self.notes[-1] != "leave"
        self.num_lent += 1
        self.lenders.add(threading.get_ident())
        self.on_lend(parked)

    def publish(self, path: Path, kind: str, num_modules: int) -> Published | None:
        assert num_modules > 0 or kind in ("checkpoint", "embedding")
        self.notes.append(f"publish {kind} {path.name} card={path.with_suffix('.json').exists()}")
        return self.on_publish(path)

    def known_sha256(self, path: Path) -> str | None:
        return self.on_hash(path)

    def mirror(self, event: Event) -> None:
        self.mirrored.append(event)

    def folders(self) -> HostFolders:
        results = {
            "lora": self.root / "Lora",
            "embedding": self.root / "embeddings",
            "checkpoint": self.root / "Stable-diffusion",
            "hypernetwork": self.root / "hypernetworks",
        }
        return HostFolders(results, results["checkpoint"], self.root / "train-studio")

    def base_models(self) -> tuple[BaseModel, ...]:
        return self.models

    def model_files(self, kind: str) -> tuple[BaseModel, ...]:
        return self.files.get(kind, ())

    def selected_base_model(self) -> Path | None:
        return self.selected

    def access(self) -> AccessPolicy:
        return self.policy

    def unusable_methods(self) -> Mapping[str, str]:
        return self.unusable


@pytest.fixture
def recording_host(tmp_path: Path) -> RecordingHost:
    """A host that lists nothing and allows everything."""
    return RecordingHost(tmp_path / "host")


@pytest.fixture
def manager(recording_host: Any) -> Iterator[JobManager]:
    """A manager whose jobs are stopped at the end, whatever the test did."""
    made = JobManager(recording_host)
    yield made
    for status in made.statuses():
        if status.is_active or status.state == "queued":
            made.ask(status.job_id, "discard")
    assert made.wait_idle(WAIT_SECONDS)


@pytest.fixture
def hold(recording_host: Any) -> Iterator[threading.Event]:
    """The job thread waits for this before its first step of exclusive work."""
    go = threading.Event()
    recording_host.on_enter = lambda: assert_in_time(go.wait(WAIT_SECONDS))
    yield go
    go.set()


def assert_in_time(happened: bool) -> None:
    assert happened


def until(manager: JobManager, job_id: str, is_met: Callable[[JobStatus], bool]) -> JobStatus:
    """The status as soon as it is so."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_met(status := manager.status(job_id)):
        assert time.monotonic() < deadline, status
        time.sleep(0.02)
    return status


def finished(manager: JobManager, job_id: str) -> JobStatus:
    assert manager.wait_idle(WAIT_SECONDS)
    return manager.status(job_id)
