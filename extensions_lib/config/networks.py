"""Baking LoRA-family files into a checkpoint, and making LoRAs from others: the settings of these commands."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import Problem
from .field import option
from .tool import DTYPES, ToolConfig

_STRENGTH_HELP = "A number, block weights (26 or 17; SDXL: 20 or 12), or entries such as '0.5, IN04-IN08=0.2, TE=0'."


EMBEDDINGS_FOLDER_HELP = "Folder for these embeddings; empty: that of the result."


@dataclass(frozen=True, kw_only=True)
class BakeNetwork:
    """One of the files that are baked in."""

    path: str = option(help="A LoRA, LoCon, LoHa, LoKr, DoRA or full difference.", file="lora")
    strength: str = option("1", help=_STRENGTH_HELP)


@dataclass(frozen=True, kw_only=True)
class BakeConfig(ToolConfig):
    """A checkpoint with LoRA-family files baked in."""

    base: str = option(help="The checkpoint: .safetensors, .ckpt or .pt.", file="checkpoint")
    networks: tuple[BakeNetwork, ...] = option(
        help="The files, in the order in which they are applied.", item=BakeNetwork, of_line=lambda path: {"path": path}
    )
    ignore_unknown: bool = option(False, help="Leave out layers the checkpoint does not have; they are listed.")
    embeddings: str = option(
        "beside", help="Words bundled with the files, which no checkpoint can hold; beside: as embeddings.",
        choices=("beside", "drop"),
    )  # fmt: skip
    embeddings_folder: str = option("", help=EMBEDDINGS_FOLDER_HELP, file="folder", advanced=True)
    dtype: str = option("fp16", help="Number format of the result.", choices=DTYPES)
    vae_dtype: str = option("keep", help="That of the VAE; keep: as it was.", choices=("keep", *DTYPES), advanced=True)

    def problems(self) -> list[Problem]:
        """Mistakes that only several settings together make."""
        missing = [] if self.networks else [Problem("networks", "are none; give one file or more")]
        return [*missing, *super().problems()]


# How many directions of a layer are kept: at most `rank`; by all but the first only what `threshold` asks for.
CRITERIA = ("rank", "ratio", "cumulative", "frobenius", "energy")
_CRITERION_HELP = (
    "How many directions a layer keeps. rank: that many; ratio: those at least 1 / threshold of the largest; "
    "cumulative, frobenius, energy: the fewest that hold this share of the sum of sizes, of their length, of their "
    "squares."
)


@dataclass(frozen=True, kw_only=True)
class LoraToolConfig(ToolConfig):
    """A LoRA-family file."""

    dtype: str = option("fp16", help="Number format of the result.", choices=DTYPES)


@dataclass(frozen=True, kw_only=True)
class LowRankConfig(LoraToolConfig):
    """A LoRA of the directions of each layer that say most."""

    rank: int = option(32, help="Directions per layer, at most.", min=1, max=1024)
    criterion: str = option("rank", help=_CRITERION_HELP, choices=CRITERIA)
    threshold: float = option(
        0.0, help="For the criterion: a ratio of 1 or more, or a share up to 1. None for rank.", min=0.0
    )

    def problems(self) -> list[Problem]:
        """Mistakes that only several settings together make."""
        return [*_about_threshold(self.criterion, self.threshold), *super().problems()]


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(LowRankConfig):
    """A LoRA with the difference of two checkpoints."""

    base: str = option(help="The checkpoint that the LoRA will be used with.", file="checkpoint")
    tuned: str = option(help="The checkpoint whose difference from it is wanted.", file="checkpoint")


_BIASES_HELP = (
    "What changes the bias of a layer has no place beside factors. keep: such layers stay whole; drop: it is left out, "
    "and counts as such."
)
BIASES = ("keep", "drop")


@dataclass(frozen=True, kw_only=True)
class ReducingConfig(LowRankConfig):
    """A LoRA of the directions that say most of what other files do to each layer."""

    biases: str = option("keep", help=_BIASES_HELP, choices=BIASES, advanced=True)


@dataclass(frozen=True, kw_only=True)
class ResizeConfig(ReducingConfig):
    """A LoRA with fewer directions, or one of factors from another kind."""

    network: str = option(help="A LoRA, LoCon, LoHa, LoKr or full difference.", file="lora")
    rank: int = option(16, help="Directions per layer, at most.", min=1, max=1024)


COMBINE_FORMULAS = ("svd", "concat")


@dataclass(frozen=True, kw_only=True)
class CombineNetwork:
    """One of the files that are combined."""

    path: str = option(help="A LoRA, LoCon, LoHa, LoKr or full difference.", file="lora")
    weight: str = option("1", help=_STRENGTH_HELP)


@dataclass(frozen=True, kw_only=True)
class CombineConfig(ReducingConfig):
    """A LoRA that adds what several files add, each with its weight."""

    networks: tuple[CombineNetwork, ...] = option(
        help="The files, all of one family.", item=CombineNetwork, of_line=lambda path: {"path": path}
    )
    formula: str = option(
        "svd",
        help="svd: the sum, with at most rank directions a layer. concat: all directions side by side, exact; the rank "
        "is the sum of theirs, and rank, criterion and threshold have no effect.",
        choices=COMBINE_FORMULAS,
    )

    def problems(self) -> list[Problem]:
        """Mistakes that only several settings together make."""
        missing = [] if self.networks else [Problem("networks", "are none; give one file or more")]
        return [*missing, *super().problems()]


@dataclass(frozen=True, kw_only=True)
class ConvertLoraConfig(LoraToolConfig):
    """A LoRA-family file as the WebUI reads it."""

    network: str = option(help="A file of any program: LoRA, LoCon, LoHa, LoKr, DoRA, full difference.", file="lora")
    family: str = option("auto", help="The models it is for.", choices=("auto", "sd1", "sd2", "sdxl"))
    scale: float = option(1.0, help="The strength of the file that strength 1 of the result is.")
    alpha: float = option(
        0.0, help="Alpha where the file holds none (peft's lora_alpha); 0: what it says, or as its rank.", min=0.0,
        advanced=True,
    )  # fmt: skip
    base: str = option(
        "", help="For a DoRA: the checkpoint it was trained on. What it adds there is written.", file="checkpoint"
    )
    rank: int = option(
        0, help="With base: directions a layer of the DoRA gets, at most. 0: whole differences, exact and large.",
        min=0, max=1024,
    )  # fmt: skip
    embeddings: str = option(
        "keep", help="Words bundled with it; beside: as embeddings of their own.", choices=("keep", "drop", "beside")
    )
    embeddings_folder: str = option("", help=EMBEDDINGS_FOLDER_HELP, file="folder", advanced=True)
    ignore_unknown: bool = option(False, help="Leave out layers that these models do not have; they are listed.")

    def problems(self) -> list[Problem]:
        """Mistakes that only several settings together make."""
        zero = [Problem("scale", "is 0; the result would change nothing")] if self.scale == 0 else []
        idle = [Problem("rank", "is for a DoRA with its base; give base too")] if self.rank and not self.base else []
        return [*zero, *idle, *super().problems()]


def _about_threshold(criterion: str, threshold: float) -> list[Problem]:
    accepted = {"rank": "0", "ratio": "1 or more"}.get(criterion, "above 0 and at most 1")
    fits = {"rank": threshold == 0, "ratio": threshold >= 1}.get(criterion, 0 < threshold <= 1)
    return [] if fits else [Problem("threshold", f"is {threshold:g}; for {criterion} it must be {accepted}")]
