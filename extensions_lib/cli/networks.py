"""The commands for files of the LoRA family: bake."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from ..config.codec import read_table
from ..config.networks import BakeConfig, load_bake
from ..events import EventStream
from .console import ConsoleDisplay
from .flags import add_setting_flags, given_settings
from .interrupt import interruptible
from .merging import STOPPING, say_written

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_network_commands(command: AddCommand) -> None:
    """Add them; `command(name, run, text)` makes the parser of one."""
    bake = command("bake", _bake, "Bake LoRA files into a checkpoint.")
    bake.add_argument("networks", nargs="*", metavar="FILE", help="LoRA, LoCon, LoHa, LoKr, DoRA or full difference")
    bake.add_argument("--strengths", nargs="+", default=[], help="one for each file", metavar="STRENGTH")
    bake.add_argument("--settings", type=Path, help="a file (.toml or .json) with settings; flags win over it")
    add_setting_flags(bake, BakeConfig)


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
