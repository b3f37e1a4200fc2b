"""The commands that combine checkpoints: merge and rebuild."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from ..config.codec import read_table
from ..config.merge import MergeConfig, load_merge
from ..events import EventStream
from .console import ConsoleDisplay
from .flags import add_setting_flags, given_settings
from .interrupt import interruptible

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
EXIT_DIFFERENT = 7
STOPPING = "Stopping; nothing is written"
_GB = 1e9


def add_merge_commands(command: AddCommand) -> None:
    """Add `merge` and `rebuild`; `command(name, run, text)` makes the parser of one."""
    merge = command("merge", _merge, "Combine checkpoints into a new one.")
    merge.add_argument("models", nargs="*", metavar="MODEL", help="A, B, C, ... in order; the result starts from A")
    merge.add_argument("--weights", nargs="+", default=[], help="one for each model after A", metavar="WEIGHT")
    merge.add_argument("--settings", type=Path, help="a file (.toml or .json) with settings; flags win over it")
    add_setting_flags(merge, MergeConfig)
    rebuild = command("rebuild", _rebuild, "Make a merged file again from its recipe and its models.")
    rebuild.add_argument("file", type=Path, help="a merged .safetensors, or its recipe (.json)")
    rebuild.add_argument("--models", type=Path, nargs="+", required=True, help="folders to look for its models in")
    rebuild.add_argument("--output", type=Path, required=True, help="the file to write")
    rebuild.add_argument("--overwrite", action="store_true", help="replace a file of the same name")


def _merge(options: argparse.Namespace) -> int:
    config = load_merge(_table(options))
    from ..merge.execute import execute
    from ..merge.plan import plan_merge

    with interruptible(STOPPING) as control, closing(ConsoleDisplay(sys.stdout)) as display:
        merged = execute(plan_merge(config), control, EventStream("merge", (display,)).emit)
    say_written(merged.path, merged.yaml)
    return 0


def _table(options: argparse.Namespace) -> dict[str, Any]:
    table = read_table(options.settings) if options.settings else {}
    table = {**table, **given_settings(options, MergeConfig)}
    if options.models:
        table["models"] = [{"path": path} for path in options.models]
    if options.weights:
        models = [dict(model) if isinstance(model, dict) else {"path": model} for model in table.get("models", [])]
        if len(options.weights) != len(models) - 1:
            raise SystemExit(f"error: {len(options.weights)} weights for {len(models)} models; one for each after A")
        for model, weight in zip(models[1:], options.weights, strict=True):
            model["weight"] = weight
        table["models"] = models
    return table


def _rebuild(options: argparse.Namespace) -> int:
    from ..merge.rebuild import rebuild

    with interruptible(STOPPING) as control, closing(ConsoleDisplay(sys.stdout)) as display:
        emit = EventStream("rebuild", (display,)).emit
        result = rebuild(options.file, options.models, options.output, control, emit, overwrite=options.overwrite)
    say_written(result.merged.path, result.merged.yaml)
    if result.is_same is False:
        print(f"The bytes are not those of {options.file}.", file=sys.stderr)
        return EXIT_DIFFERENT
    if result.is_same:
        print(f"The bytes are those of {options.file}.")
    return 0


def say_written(path: Path, yaml: Path | None) -> None:
    """Name the result on the screen."""
    beside = f", and {yaml.name} beside it" if yaml else ""
    print(f"written: {path} ({path.stat().st_size / _GB:.2f} GB){beside}")
