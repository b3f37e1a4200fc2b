"""What the Check button answers: plain values, JSON-able."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import ConfigError, ExtensionError

PACE_UNKNOWN = "known after the first steps"

Value = TypeVar("Value")


@dataclass(frozen=True)
class CheckProblem:
    """What would stop the start; `setting` is its path, such as 'dataset.folder'."""

    setting: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class PictureCheck:
    """One picture as the model gets it. Sizes are (width, height) in pixels.

    `crop_px` is the part (left, top, right, bottom) of the upright picture that is used. `chunks` holds the caption's
    tokens in groups of at most `limit`, which the text encoder reads one after the other: none are cut off. `left_out`
    are parts of the caption that the model does not get. `thumb` is a data URI of the crop, `thumb_px` its size;
    `mask`, one of the same size, shows in white what counts, '' without a mask.
    """

    name: str
    size_px: tuple[int, int]
    bucket_px: tuple[int, int]
    crop_px: tuple[int, int, int, int]
    caption: str
    chunks: tuple[tuple[str, ...], ...]
    num_tokens: int
    limit: int
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    thumb: str
    thumb_px: tuple[int, int]
    mask: str = ""


@dataclass(frozen=True)
class DiskRoom:
    """Room a job needs at one place, 'results' or 'run', and the room that is there."""

    place: str
    needed_mib: int
    free_mib: int


@dataclass(frozen=True)
class CheckReport:
    """All that is known of a job before it starts.

    `pictures` are the first of `num_pictures`; `skipped` holds (name, reason). `buckets` counts pictures by size. A
    number is None when a problem keeps it from being known; `seconds_per_step` also when no earlier run on this machine
    was alike, `pace_text` says so. `memory_gib` is an estimate.
    """

    problems: tuple[CheckProblem, ...]
    warnings: tuple[str, ...]
    method: str
    max_train_steps: int
    pictures: tuple[PictureCheck, ...] = ()
    num_pictures: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
    num_ignored: int = 0
    buckets: dict[str, int] = dataclasses.field(default_factory=dict)
    epochs: float | None = None
    num_samples: int | None = None
    num_parameters: int | None = None
    seconds_per_step: float | None = None
    pace_text: str = PACE_UNKNOWN
    memory_gib: float | None = None
    device: str = ""
    disk: tuple[DiskRoom, ...] = ()

    @property
    def can_start(self) -> bool:
        """Whether nothing would stop the start."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**dataclasses.asdict(self), "can_start": self.can_start}


class Findings:
    """Collects what would stop the start, so that all of it is told at once."""

    def __init__(self) -> None:
        self.problems: list[CheckProblem] = []
        self.warnings: list[str] = []

    def attempt(self, setting: str, action: Callable[[], Value]) -> Value | None:
        """The result of `action`, or None and a problem of `setting` when it raised ExtensionError."""
        try:
            return action()
        except ConfigError as error:
            self.problems += [CheckProblem(each.path, str(each), error.hint) for each in error.problems]
        except ExtensionError as error:
            self.add(setting, error.message, error.hint)
        return None

    def add(self, setting: str, message: str, hint: str = "") -> None:
        """Note a problem."""
        self.problems.append(CheckProblem(setting, message, hint))
