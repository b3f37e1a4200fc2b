"""Tools that give one file another form: pruned, converted, or with other metadata."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import Problem
from .field import option
from .tool import DTYPES, ToolConfig

EMA_CHOICES = ("drop", "use")
NAN_CHOICES = ("refuse", "zero")
_KEPT_OR = ("keep", *DTYPES)


@dataclass(frozen=True, kw_only=True)
class PruneConfig(ToolConfig):
    """A checkpoint without what no model needs, in another number format, repaired."""

    model: str = option(help="The checkpoint: .safetensors, .ckpt or .pt.", file="checkpoint")
    dtype: str = option("fp16", help="Number format of the result; keep: as it was.", choices=_KEPT_OR)
    vae_dtype: str = option("keep", help="That of the VAE; keep: as it was.", choices=_KEPT_OR)
    ema: str = option(
        "drop", help="Averaged weights (model_ema.) in the file: left out, or put in place of the UNet's.",
        choices=EMA_CHOICES,
    )  # fmt: skip
    nan: str = option(
        "refuse", help="NaN and infinite numbers: nothing is written, or they become 0. They are always listed.",
        choices=NAN_CHOICES,
    )  # fmt: skip
    leave_out_vae: bool = option(False, help="Without the VAE; the WebUI then needs one chosen beside the checkpoint.")
    leave_out_text_encoder: bool = option(
        False, help="Without the text encoders; for programs that load them apart.", advanced=True
    )


# What a checkpoint can be converted to, and the ending of its name.
FORMATS = {"safetensors": ".safetensors", "ckpt": ".ckpt", "diffusers": ""}


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(ToolConfig):
    """The same tensors in another kind of file."""

    model: str = option(help="A checkpoint: .safetensors, .ckpt, .pt, or a diffusers folder.", file="checkpoint")
    to: str = option(
        "safetensors", help="One file (.safetensors, or .ckpt for old programs), or a folder for diffusers.",
        choices=tuple(FORMATS),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MetadataConfig(ToolConfig):
    """A .safetensors file with other metadata; its tensors stay."""

    file: str = option(help="A .safetensors file: LoRA, embedding, checkpoint, VAE.", file="model")
    title: str = option("", help="What model sites call it. Empty here and below: as it was.")
    author: str = option("", help="Who made it.")
    description: str = option("", help="What it is.")
    tags: str = option("", help="Words to find it by, separated by commas.")
    license: str = option("", help="What others may do with it.")
    trigger_phrase: str = option("", help="What in a prompt calls it.")
    private: bool = option(
        False,
        help="Take out what should not be published: folders, times, comments, tags and numbers of pictures, settings "
        "files of trainers, and every key that is not known to be harmless.",
    )
    remove: str = option("", help="Keys to take out, separated by commas; ss_* stands for all that begin so.")
    pairs: str = option("", help="Further entries, key=value, one a line.", advanced=True)

    def problems(self) -> list[Problem]:
        """Mistakes that only several settings together make."""
        lines = [line for line in self.pairs.splitlines() if line.strip()]
        wrong = [line for line in lines if "=" not in line or not line.partition("=")[0].strip()]
        problems = [Problem("pairs", f"has {line!r}, accepted are lines key=value") for line in wrong]
        return [*problems, *super().problems()]

    def entries(self) -> dict[str, str]:
        """`pairs` as a table."""
        split = (line.partition("=") for line in self.pairs.splitlines() if line.strip())
        return {key.strip(): text.strip() for key, _, text in split}
