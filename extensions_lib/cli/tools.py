"""A command for each tool of `config.tools`, made from its declarations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.codec import read_table
from ..config.field import Setting, settings_of
from ..config.tools import TOOLS, Tool, load_tool
from ..events import EventStream
from .console import ConsoleDisplay
from .flags import add_setting_flags, given_settings
from .interrupt import interruptible

if TYPE_CHECKING:
    from ..merge.tools import ToolResult

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
EXIT_DIFFERENT = 7
STOPPING = "Stopping; nothing is written"
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def add_tool_commands(command: AddCommand) -> None:
    """Add them; `command(name, run, text)` makes the parser of one.

    A list of files stands without a flag, their values (weights, strengths) behind a flag of that name. Where there is
    none, the files that must be given stand without a flag.
    """
    for kind, tool in TOOLS.items():
        parser = command(kind, partial(_run, kind), tool.help)
        parser.add_argument("--settings", type=Path, help="a file (.toml or .json) with settings; flags win over it")
        plain = _plain_files(tool)
        for name in plain:
            parser.add_argument(name, nargs="?", metavar=name.upper(), help=_setting(tool, name).option.help)
        files = tool.files
        if files is not None:
            count = "+" if plain else "*"
            flag = f"--{files.name}" if plain else files.name
            parser.add_argument(flag, nargs=count, default=[], metavar="FILE", help=files.option.help)
        if values := _values_flag(tool):
            parser.add_argument(f"--{values}", nargs="+", default=[], metavar="VALUE", help=_values_help(tool))
        add_setting_flags(parser, tool.settings, skip=plain)


def _run(kind: str, options: argparse.Namespace) -> int:
    config = load_tool(kind, _table(TOOLS[kind], options))
    from ..ports import ALONE
    from ..training.tools import run_tool

    with interruptible(STOPPING) as control, closing(ConsoleDisplay(sys.stdout)) as display:
        result = run_tool(config, control, EventStream(kind, (display,)), ALONE)
    _say(result)
    return 0 if result.is_as_asked else EXIT_DIFFERENT


def _table(tool: Tool, options: argparse.Namespace) -> dict[str, Any]:
    table = read_table(options.settings) if options.settings else {}
    table |= given_settings(options, tool.settings, _plain_files(tool))
    table |= {name: getattr(options, name) for name in _plain_files(tool) if getattr(options, name) is not None}
    files = tool.files
    if files is None:
        return table
    if given := getattr(options, files.name):
        table[files.name] = [{"path": path} for path in given]
    if (flag := _values_flag(tool)) and (values := getattr(options, flag)):
        entries = [dict(each) if isinstance(each, dict) else {"path": each} for each in table.get(files.name, [])]
        having = entries[tool.values_from :]
        if len(values) != len(having):
            accepted = "one for each after the first" if tool.values_from else "one for each"
            raise SystemExit(f"error: {len(values)} {flag} for {len(entries)} {files.name}; give {accepted}")
        for entry, value in zip(having, values, strict=True):
            entry[flag[:-1]] = value
        table[files.name] = entries
    return table


def _plain_files(tool: Tool) -> tuple[str, ...]:
    """The settings that stand without a flag: single files that must be given, unless a list of models does."""
    if _values_flag(tool):
        return ()
    return tuple(s.name for s in settings_of(tool.settings) if s.required and s.option.file)


def _values_flag(tool: Tool) -> str:
    """'weights' where each file has a weight."""
    return f"{_value(tool).name}s" if _value(tool) is not None else ""


def _values_help(tool: Tool) -> str:
    which = "one for each file after the first" if tool.values_from else "one for each file"
    return f"{which}: {_value(tool).option.help}".replace("%", "%%")


def _value(tool: Tool) -> Setting | None:
    """What each file of the list has besides its path."""
    settings = settings_of(tool.files.option.item) if tool.files is not None else ()
    return next((setting for setting in settings if setting.name != "path"), None)


def _setting(tool: Tool, name: str) -> Setting:
    return next(setting for setting in settings_of(tool.settings) if setting.name == name)


def _say(result: ToolResult) -> None:
    beside = "".join(f", and {path.name} beside it" for path in result.beside)
    print(f"written: {result.path} ({_size(result.path)}){beside}")
    if result.text:
        print(result.text, file=sys.stdout if result.is_as_asked else sys.stderr)


def _size(path: Path) -> str:
    size = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
    factor, unit = next(((factor, unit) for factor, unit in _UNITS if size >= factor), _UNITS[-1])
    return f"{size / factor:.2f} {unit}"
