"""Tools that give one file another form: pruned, converted, or with other metadata."""

from __future__ import annotations

from dataclasses import dataclass

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
