"""The state a run is resumed from: one safetensors file a save, the newest two kept.

Everything random is derived from (seed, step), so that the step number stands for the random state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import FormatError, TrainingError
from ..formats.safetensors_io import read_header, read_tensors, write_atomic

KEPT_STATES = 2


@dataclass(frozen=True)
class RunState:
    """After `step` completed steps: tensors grouped by owner ('trainable', 'optimizer', 'ema'), and plain values."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    values: Mapping[str, Any]


def state_path(folder: Path, step: int) -> Path:
    """Where the state after `step` steps stands."""
    return folder / f"state-{step:08d}.safetensors"


def save_state(folder: Path, state: RunState) -> Path:
    """Write `state` atomically, then drop all but the newest two. Raises DiskFullError or OutputError."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = {f"{owner}/{name}": tensor for owner, group in state.tensors.items() for name, tensor in group.items()}
    metadata = {"step": str(state.step), "values": json.dumps(state.values)}
    path = write_atomic(state_path(folder, state.step), flat, metadata, overwrite=True)
    for old in _states(folder)[:-KEPT_STATES]:
        old.unlink(missing_ok=True)
    return path


def load_newest(folder: Path) -> RunState | None:
    """The newest state that can be read; None when there is no file at all.

    Raises TrainingError when there are files and none can be read.
    """
    paths = _states(folder)
    for path in reversed(paths):
        try:
            return load_state(path)
        except FormatError:
            continue
    if paths:
        raise TrainingError(
            f"None of the {len(paths)} saved states in {folder} can be read.",
            "Start a new run; it can go on from the last result with method.start_from.",
        )
    return None


def load_state(path: Path) -> RunState:
    """The state in one file. Raises FormatError when it is damaged."""
    _, metadata = read_header(path)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(path).items():
        owner, name = key.split("/", 1)
        groups.setdefault(owner, {})[name] = tensor
    return RunState(int(metadata["step"]), groups, json.loads(metadata["values"]))


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.safetensors"))
