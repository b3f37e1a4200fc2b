"""Every tool of `config.tools`: those that make files of files, and those that draw, with the device in their hands."""

from __future__ import annotations

from collections.abc import Callable

from ..config.grid import GridConfig
from ..config.tool import ToolConfig
from ..config.tools import kind_of
from ..control import JobControl
from ..events import EventStream
from ..merge import tools as files
from ..merge.tools import Outlook, ToolResult
from ..ports import Surroundings
from .merge_grid import check_grid, draw_grid


def foresee(config: ToolConfig) -> Outlook:
    """What can be told of a result without any work. Raises as `merge.tools.foresee`."""
    outlook = files.foresee(config)
    return Outlook(check_grid(config)) if isinstance(config, GridConfig) else outlook


def run_tool(config: ToolConfig, control: JobControl, events: EventStream, surroundings: Surroundings) -> ToolResult:
    """Do what the settings say. Raises ExtensionError; there is then no file under the result's name, or the old one.

    `surroundings` lend the device to tools that draw.
    """
    draw = DRAWERS.get(kind_of(config))
    if draw is not None:
        return draw(config, control, events, surroundings)
    return files.run_tool(config, control, events.emit, hash_of=surroundings.known_sha256)


def _grid(config: GridConfig, control: JobControl, events: EventStream, surroundings: Surroundings) -> ToolResult:
    drawn = draw_grid(config, control, events, surroundings)
    text = f"{len(drawn.pictures)} pictures, each by itself in the folder {drawn.pictures[0].parent.name} beside it."
    return ToolResult(drawn.path, "", text)


DRAWERS: dict[str, Callable[..., ToolResult]] = {"grid": _grid}
