"""The commands for files of the LoRA family: bake, extract, resize."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ..config.codec import read_table
from ..config.networks import BakeConfig, ExtractConfig, ResizeConfig, load_bake, load_extract, load_resize
from ..events import EventStream
from .console import ConsoleDisplay
from .flags import add_setting_flags, given_settings
from .interrupt import interruptible
from .merging import STOPPING, say_written

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
_MB = 1e6


def add_network_commands(command: AddCommand) -> None:
    """Add them; `command(name, run, text)` makes the parser of one."""
    bake = command("bake", _bake, "Bake LoRA files into a checkpoint.")
    bake.add_argument("networks", nargs="*", metavar="FILE", help="LoRA, LoCon, LoHa, LoKr, DoRA or full difference")
    bake.add_argument("--strengths", nargs="+", default=[], help="one for each file", metavar="STRENGTH")
    bake.add_argument("--settings", type=Path, help="a file (.toml or .json) with settings; flags win over it")
    add_setting_flags(bake, BakeConfig)
    extract = command("extract", _extract, "Make a LoRA of the difference of two checkpoints.")
    extract.add_argument("base", help="the checkpoint the LoRA will be used with")
    extract.add_argument("tuned", help="the checkpoint whose difference from it is wanted")
    add_setting_flags(extract, ExtractConfig, skip=("base", "tuned"))
    resize = command("resize", _resize, "Make a LoRA smaller: fewer directions a layer.")
    resize.add_argument("network", metavar="FILE", help="the LoRA or LoCon")
    add_setting_flags(resize, ResizeConfig, skip=("network",))


def _bake(options: argparse.Namespace) -> int:
    config = load_bake(_bake_table(options))
    from ..merge.bake import bake, plan_bake

    with interruptible(STOPPING) as control, closing(ConsoleDisplay(sys.stdout)) as display:
        merged = bake(plan_bake(config), control, EventStream("bake", (display,)).emit)
    say_written(merged.path, merged.yaml)
    return 0


def _bake_table(options: argparse.Namespace) -> dict[str, Any]:
    table = read_table(options.settings) if options.settings else {}
    table = {**table, **given_settings(options, BakeConfig)}
    if options.networks:
        table["networks"] = [{"path": path} for path in options.networks]
    if options.strengths:
        networks = [dict(each) if isinstance(each, dict) else {"path": each} for each in table.get("networks", [])]
        if len(options.strengths) != len(networks):
            raise SystemExit(f"error: {len(options.strengths)} strengths for {len(networks)} files; give one for each")
        for network, strength in zip(networks, options.strengths, strict=True):
            network["strength"] = strength
        table["networks"] = networks
    return table


def _extract(options: argparse.Namespace) -> int:
    given = given_settings(options, ExtractConfig, skip=("base", "tuned"))
    config = load_extract({**given, "base": options.base, "tuned": options.tuned})
    from ..merge.extract import extract

    with interruptible(STOPPING) as control, closing(ConsoleDisplay(sys.stdout)) as display:
        reduced = extract(config, control, EventStream("extract", (display,)).emit)
    _say_reduced(reduced.path, reduced.error, reduced.ranks)
    return 0


def _resize(options: argparse.Namespace) -> int:
    given = given_settings(options, ResizeConfig, skip=("network",))
    config = load_resize({**given, "network": options.network})
    from ..merge.resize import resize

    with interruptible(STOPPING) as control, closing(ConsoleDisplay(sys.stdout)) as display:
        reduced = resize(config, control, EventStream("resize", (display,)).emit)
    _say_reduced(reduced.path, reduced.error, reduced.ranks)
    return 0


def _say_reduced(path: Path, error: float, ranks: Sequence[int]) -> None:
    spread = f"{min(ranks)} to {max(ranks)}" if min(ranks) < max(ranks) else f"{max(ranks)}"
    print(f"written: {path} ({path.stat().st_size / _MB:.1f} MB), {len(ranks)} layers of rank {spread}")
    print(f"left out: {100 * error:.2f} % of the difference's length")
