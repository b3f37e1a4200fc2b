"""What is trained. A method is a tagged union: `kind` says which; `artefact_kind` what file it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .field import option


@dataclass(frozen=True, kw_only=True)
class TextualInversionConfig:
    """A few new vectors in the text encoder's table, called by a word."""

    artefact_kind: ClassVar[str] = "embedding"
    kind: str = option("textual_inversion", help="The method.", choices=("textual_inversion",))
    vectors_per_token: int = option(4, help="How many vectors the word stands for.", min=1, max=75)
    initializer_text: str = option("", help="The vectors start as those of this text, such as 'dog'; empty: zeros.")
    start_from: str = option("", help="An embedding file to go on from.")
    max_norm_ratio: float = option(
        0.0,
        help="Vectors longer than this many times the median of the model's own are shortened; 0 off.",
        min=0.0,
        max=100.0,
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank additions to the model's own layers, called by <lora:name:weight>."""

    artefact_kind: ClassVar[str] = "lora"
    kind: str = option("lora", help="The method.", choices=("lora",))
    rank: int = option(16, help="Size; more can hold more.", min=1, max=1024)
    alpha: float = option(8.0, help="The addition is scaled by alpha / rank.", min=0.0, max=4096.0)
    conv_rank: int = option(0, help="Rank for 3x3 convolutions; 0 leaves them alone.", min=0, max=1024)
    conv_alpha: float = option(1.0, help="Alpha for 3x3 convolutions.", min=0.0, max=4096.0, advanced=True)
    dropout: float = option(0.0, help="Share of inputs dropped while training.", min=0.0, max=0.9, advanced=True)
    train_text_encoder: bool = option(False, help="Add to the text encoder's layers too.")
    text_encoder_learning_rate: float = option(5e-5, help="Learning rate of the text encoder's part.", min=0.0, max=1.0)
    layer_filter: str = option(
        "", help="Regular expression; only layers whose name it finds are trained. Empty: all.", advanced=True
    )
    start_from: str = option("", help="A LoRA file to go on from; its ranks are kept.")


METHOD_CONFIGS: dict[str, type] = {"textual_inversion": TextualInversionConfig, "lora": LoraConfig}
MethodConfig = TextualInversionConfig | LoraConfig


def artefact_kind(method: str) -> str:
    """The kind of file that a method makes, one of `artefacts.ARTEFACTS`; '' for a method there is not (any more)."""
    config = METHOD_CONFIGS.get(method)
    return config.artefact_kind if config is not None else ""
