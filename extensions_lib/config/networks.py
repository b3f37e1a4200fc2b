"""Baking LoRA-family files into a checkpoint, extracting and resizing LoRAs: the settings of these commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, Problem
from .codec import load_settings
from .field import option
from .merge import name_problems

NETWORKS_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class BakeNetwork:
    """One of the files that are baked in."""

    path: str = option(help="A LoRA, LoCon, LoHa, LoKr, DoRA or full difference.")
    strength: str = option(
        "1",
        help="A number, block weights (26 or 17; SDXL: 20 or 12), or entries such as '0.5, IN04-IN08=0.2, TE=0'.",
    )


@dataclass(frozen=True, kw_only=True)
class BakeConfig:
    """A checkpoint with LoRA-family files baked in."""

    schema_version: int = option(
        NETWORKS_SCHEMA_VERSION, help="Version of this format.", min=1, max=NETWORKS_SCHEMA_VERSION, advanced=True
    )
    name: str = option(help="Name of the result.")
    base: str = option(help="The checkpoint: .safetensors, .ckpt or .pt.")
    networks: tuple[BakeNetwork, ...] = option(
        help="The files, in the order in which they are applied.", item=BakeNetwork, of_line=lambda path: {"path": path}
    )
    ignore_unknown: bool = option(False, help="Leave out layers the checkpoint does not have; they are listed.")
    dtype: str = option("fp16", help="Number format of the result.", choices=("fp16", "bf16", "fp32"))
    vae_dtype: str = option(
        "keep", help="That of the VAE; keep: as it was.", choices=("keep", "fp16", "bf16", "fp32"), advanced=True
    )
    folder: str = option("outputs", help="Folder for the result; in a WebUI its checkpoint folder.")
    overwrite: bool = option(False, help="Replace a file of the same name.")

    def problems(self) -> list[Problem]:
        """Mistakes that only several settings together make."""
        missing = [] if self.networks else [Problem("networks", "are none; give one file or more")]
        return [*missing, *name_problems(self.name)]


def load_bake(table: Mapping[str, Any]) -> BakeConfig:
    """Settings from a table. Raises ConfigError with every mistake."""
    config: BakeConfig = load_settings(BakeConfig, table)
    if problems := config.problems():
        raise ConfigError(problems, "Correct these settings and start again; nothing was changed.")
    return config


# How many directions of a layer are kept: at most `rank`; by all but the first only what `threshold` asks for.
CRITERIA = ("rank", "ratio", "cumulative", "frobenius", "energy")
_CRITERION_HELP = (
    "How many directions a layer keeps. rank: that many; ratio: those at least 1 / threshold of the largest; "
    "cumulative, frobenius, energy: the fewest that hold this share of the sum of sizes, of their length, of their "
    "squares."
)


@dataclass(frozen=True, kw_only=True)
class _LowRankConfig:
    """A LoRA of the directions of each layer that say most."""

    schema_version: int = option(
        NETWORKS_SCHEMA_VERSION, help="Version of this format.", min=1, max=NETWORKS_SCHEMA_VERSION, advanced=True
    )
    name: str = option(help="Name of the result.")
    rank: int = option(32, help="Directions per layer, at most.", min=1, max=1024)
    criterion: str = option("rank", help=_CRITERION_HELP, choices=CRITERIA)
    threshold: float = option(
        0.0, help="For the criterion: a ratio of 1 or more, or a share up to 1. None for rank.", min=0.0
    )
    dtype: str = option("fp16", help="Number format of the result.", choices=("fp16", "bf16", "fp32"))
    folder: str = option("outputs", help="Folder for the result; in a WebUI its LoRA folder.")
    overwrite: bool = option(False, help="Replace a file of the same name.")

    def problems(self) -> list[Problem]:
        """Mistakes that only several settings together make."""
        return [*_about_threshold(self.criterion, self.threshold), *name_problems(self.name)]


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(_LowRankConfig):
    """A LoRA with the difference of two checkpoints."""

    base: str = option(help="The checkpoint that the LoRA will be used with.")
    tuned: str = option(help="The checkpoint whose difference from it is wanted.")


def load_extract(table: Mapping[str, Any]) -> ExtractConfig:
    """Settings from a table. Raises ConfigError with every mistake."""
    config: ExtractConfig = load_settings(ExtractConfig, table)
    if problems := config.problems():
        raise ConfigError(problems, "Correct these settings and start again; nothing was changed.")
    return config


@dataclass(frozen=True, kw_only=True)
class ResizeConfig(_LowRankConfig):
    """A LoRA with fewer directions."""

    network: str = option(help="The LoRA or LoCon.")
    rank: int = option(16, help="Directions per layer, at most.", min=1, max=1024)


def load_resize(table: Mapping[str, Any]) -> ResizeConfig:
    """Settings from a table. Raises ConfigError with every mistake."""
    config: ResizeConfig = load_settings(ResizeConfig, table)
    if problems := config.problems():
        raise ConfigError(problems, "Correct these settings and start again; nothing was changed.")
    return config


def _about_threshold(criterion: str, threshold: float) -> list[Problem]:
    accepted = {"rank": "0", "ratio": "1 or more"}.get(criterion, "above 0 and at most 1")
    fits = {"rank": threshold == 0, "ratio": threshold >= 1}.get(criterion, 0 < threshold <= 1)
    return [] if fits else [Problem("threshold", f"is {threshold:g}; for {criterion} it must be {accepted}")]
