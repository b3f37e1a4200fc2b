"""Tiny jobs on the practice model, and a host that notes what it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.config.presets import merge
from extensions_lib.events import Event
from extensions_lib.ports import AccessPolicy, BaseModel, HostFolders, Parked, Published

LORA = {"kind": "lora", "rank": 2, "alpha": 2.0, "layer_filter": "attn2", "train_text_encoder": False}
MakeJob = Callable[..., dict[str, Any]]


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
    selected: Path | None = None
    policy: AccessPolicy = field(default_factory=AccessPolicy)
    unusable: Mapping[str, str] = field(default_factory=dict)
    on_enter: Callable[[], None] = lambda: None
    on_leave: Callable[[], None] = lambda: None
    on_lend: Callable[[Parked], None] = lambda parked: None
    on_publish: Callable[[Path], Published | None] = lambda path: Published("visible", True)
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
        assert num_modules > 0
        self.notes.append(f"publish {kind} {path.name} card={path.with_suffix('.json').exists()}")
        return self.on_publish(path)

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
