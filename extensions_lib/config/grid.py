"""A sheet of pictures of merges that differ in one or two settings, as it stands in a file or on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, Problem
from .codec import dump, load_settings, name_problems
from .field import option, settings_of
from .merge import MergeConfig
from .preview import SAMPLERS

# The settings of a merge that may differ from cell to cell.
AXES = ("alpha", "beta", "formula", "density", "epsilon", "top", "seed", "text_encoder", "vae")
MAX_PICTURES = 1000


@dataclass(frozen=True)
class Cell:
    """One merge of a sheet: where it stands, what its column and row are called, and its settings."""

    column: int
    row: int
    x_label: str
    y_label: str
    merge: MergeConfig


@dataclass(frozen=True, kw_only=True)
class GridConfig(MergeConfig):
    """Merges that are drawn and not written: one column for each value of x, one row for each value of y and prompt."""

    x: str = option("alpha", help="The setting that differs from column to column.", choices=AXES)
    x_values: str = option("", help="Its values, with ' | ' between them: '0 | 0.25 | 0.5, TE=0'.")
    y: str = option("", help="A second setting, from row to row; empty: none.", choices=("", *AXES))
    y_values: str = option("", help="Its values, with ' | ' between them.")
    prompts: str = option("", help="What to draw; several with ' | ' between them.")
    negative_prompt: str = option("", help="What not to draw.")
    picture_seed: int = option(1, help="All pictures begin with the same noise.", min=0, max=2**32 - 1)
    num_steps: int = option(20, help="Denoising steps.", min=1, max=1000)
    guidance_scale: float = option(7.0, help="How strictly the prompt is followed.", min=0.0, max=100.0)
    sampler: str = option("dpmpp_2m", help="Sampling method.", choices=SAMPLERS)
    width_px: int = option(512, help="Of each picture.", unit="px", min=64, max=4096)
    height_px: int = option(512, help="Of each picture.", unit="px", min=64, max=4096)
    clip_skip: int = option(1, help="Layer of the text encoder, counted from its end.", min=1, max=12, advanced=True)
    precision: str = option(
        "auto",
        help="What the UNet computes in; the WebUI in fp16.",
        choices=("auto", "fp32", "bf16", "fp16"),
        advanced=True,
    )
    device: str = option("auto", help="auto, cpu, cuda, cuda:1, ...", advanced=True)

    def problems(self) -> list[Problem]:
        """Mistakes that only several settings together make, in any of the merges."""
        problems = list(self._about_axes())
        if not problems:
            problems = list(dict.fromkeys(problem for cell in cells(self) for problem in cell.merge.problems()))
        return [*problems, *(each for each in name_problems("name", self.name) if each not in problems)]

    def _about_axes(self) -> Iterator[Problem]:
        columns, rows, prompts = listed(self.x_values), listed(self.y_values), listed(self.prompts)
        if not columns:
            yield Problem("x_values", "are none; give one value or more")
        if bool(self.y) != bool(rows):
            yield Problem("y_values", "and y belong together; give both or none")
        if self.y == self.x:
            yield Problem("y", f"is {self.y!r}, as x is; choose another setting")
        if not prompts:
            yield Problem("prompts", "are none; give one or more")
        count = len(columns) * max(len(rows), 1) * len(prompts)
        if count > MAX_PICTURES:
            yield Problem("x_values", f"make {count} pictures with y_values and prompts; at most {MAX_PICTURES}")
        for name in ("width_px", "height_px"):
            if getattr(self, name) % 8:
                yield Problem(name, f"is {getattr(self, name)}; accepted are multiples of 8")
        for axis, values in (("x_values", columns), ("y_values", rows)):
            for value in values:
                try:
                    self._merge({getattr(self, axis[0]): value})
                except ConfigError as error:
                    yield from (Problem(axis, f"hold {value!r}: {problem}") for problem in error.problems)

    def _merge(self, values: dict[str, str]) -> MergeConfig:
        """The merge with these values. Raises ConfigError for one that is not of the setting's type or range."""
        kinds = {setting.name: setting.type for setting in settings_of(MergeConfig)}
        own = {name: value for name, value in dump(self).items() if name in kinds}
        merge: MergeConfig = load_settings(MergeConfig, own | {n: _typed(v, kinds[n]) for n, v in values.items()})
        return merge


def cells(config: GridConfig) -> list[Cell]:
    """Row by row. The settings must be without problems."""
    found = []
    for row, y in enumerate(listed(config.y_values) or [""]):
        for column, x in enumerate(listed(config.x_values)):
            values = {config.x: x} | ({config.y: y} if config.y else {})
            y_label = f"{config.y} {y}" if config.y else ""
            found.append(Cell(column, row, f"{config.x} {x}", y_label, config._merge(values)))
    return found


def listed(text: str) -> list[str]:
    """Values with ' | ' or a line's end between them."""
    return [part.strip() for part in re.split(r"\s\|\s|\n", text) if part.strip()]


def _typed(value: str, kind: type) -> Any:
    if kind is str:
        return value
    try:
        return kind(value)
    except ValueError:
        return value
