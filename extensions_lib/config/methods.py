"""What is trained. A method is a tagged union: `kind` says which; `artefact_kind` what file it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .blocks import parse_block_values
from .field import option
from .hypernetwork import HypernetworkConfig
from .words import EmbeddingConfig


@dataclass(frozen=True, kw_only=True)
class TextualInversionConfig(EmbeddingConfig):
    """A few new vectors in the text encoder's table, called by a word."""

    artefact_kind: ClassVar[str] = "embedding"
    kind: str = option("textual_inversion", help="The method.", choices=("textual_inversion",))
    is_negative: bool = option(
        False,
        help="The pictures show what you do not want; the word goes into the negative prompt. It learns them like any "
        "other pictures, so choose ones that have only the fault in common.",
    )
    start_from: str = option("", help="An embedding file to go on from, or a LoRA with one in it.")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Additions to the model's own layers, called by <lora:name:weight>."""

    artefact_kind: ClassVar[str] = "lora"
    kind: str = option("lora", help="The method.", choices=("lora",))
    algorithm: str = option(
        "lora",
        help="lora: low rank. loha: twice the size, rank squared. lokr: small files. full: whole differences.",
        choices=("lora", "loha", "lokr", "full"),
    )
    rank: int = option(16, help="Size; more can hold more.", min=1, max=1024)
    alpha: float = option(8.0, help="The addition is scaled by alpha / rank.", min=0.0, max=4096.0)
    conv_rank: int = option(0, help="Rank for 3x3 convolutions; 0 leaves them alone.", min=0, max=1024)
    conv_alpha: float = option(1.0, help="Alpha for 3x3 convolutions.", min=0.0, max=4096.0, advanced=True)
    dora: bool = option(False, help="Train the length of each input's weights apart (DoRA).", advanced=True)
    dropout: float = option(0.0, help="Share of inputs dropped while training.", min=0.0, max=0.9, advanced=True)
    rank_dropout: float = option(
        0.0, help="Share of the rank's directions dropped while training.", min=0.0, max=0.9, advanced=True
    )
    module_dropout: float = option(
        0.0, help="Share of layers left unchanged while training.", min=0.0, max=0.9, advanced=True
    )
    max_norm: float = option(
        0.0, help="Changes of a layer larger than this are scaled down; 0 off.", min=0.0, max=1000.0, advanced=True
    )
    rs_lora: bool = option(False, help="Scale by alpha / root of the rank instead.", advanced=True)
    lora_plus_ratio: float = option(
        1.0,
        help="Learning rate of the factor that starts at zero, as a multiple; LoRA+ suggests 16.",
        min=1.0,
        max=64.0,
        advanced=True,
    )
    lokr_factor: int = option(
        8, help="LoKr: size of the small matrix; -1: as large as possible.", min=-1, max=1024, advanced=True
    )
    lokr_whole: bool = option(
        False, help="LoKr: keep the large matrix whole; rank and alpha then count for nothing.", advanced=True
    )
    layers: str = option(
        "transformer",
        help="Which layers: more from left to right; full adds the convolutions' blocks.",
        choices=("cross-attention", "attention", "attention+mlp", "transformer", "full"),
        advanced=True,
    )
    layer_filter: str = option(
        "", help="Regular expression; only layers whose name it finds are trained. Empty: all.", advanced=True
    )
    train_norms: bool = option(False, help="Change the norm layers between them too.", advanced=True)
    block_ranks: str = option(
        "", help="Other ranks for some layers, such as 'mid_block=32; attn2=8'; 0 leaves them out.", advanced=True
    )
    block_rates: str = option(
        "", help="Multiples of the learning rate for some layers, such as 'up_blocks=0.5'.", advanced=True
    )
    train_text_encoder: bool = option(False, help="Add to the text encoder's layers too.")
    text_encoder_learning_rate: float = option(5e-5, help="Learning rate of the text encoder's part.", min=0.0, max=1.0)
    start_from: str = option("", help="A LoRA file to go on from; its ranks are kept.")

    def problems(self) -> list[tuple[str, str]]:
        """(setting, what is wrong) for what its type and range do not tell."""
        found = []
        for name, rule in (("block_ranks", BLOCK_RANKS), ("block_rates", BLOCK_RATES)):
            try:
                parse_block_values(getattr(self, name), **rule)
            except ValueError as error:
                found.append((name, str(error)))
        if self.lokr_factor == 0:
            found.append(("lokr_factor", "is 0, accepted are -1 and whole numbers from 1 on"))
        if self.algorithm == "full":
            for name, off in (("dora", False), ("rs_lora", False), ("lora_plus_ratio", 1.0), ("rank_dropout", 0.0)):
                value = getattr(self, name)
                if value != off:
                    found.append((name, f"is {value}; the algorithm 'full' has no rank, so leave it {off}"))
        return found


# What `config.blocks` is to accept.
BLOCK_RANKS: dict[str, Any] = {"minimum": 0, "whole": True}
BLOCK_RATES: dict[str, Any] = {"minimum": 0, "whole": False}


@dataclass(frozen=True, kw_only=True)
class PivotalConfig(LoraConfig, EmbeddingConfig):
    """A LoRA and the vectors of its word, learnt together and written as one file."""

    kind: str = option("pivotal", help="The method.", choices=("pivotal",))
    embedding_learning_rate: float = option(
        1e-3, help="Learning rate of the vectors, unless relative_learning_rate is set.", min=0.0, max=10.0
    )
    embedding_until: float = option(
        1.0, help="Share of the run after which the vectors stay as they are.", min=0.0, max=1.0
    )
    embedding_files: str = option(
        "bundled",
        help="bundled: the words are inside the LoRA and work as soon as it is in the prompt, in AUTOMATIC1111 and "
        "reForge. beside: they are embedding files of their own, for Forge, ComfyUI and diffusers, which do not read "
        "them from a LoRA. both: AUTOMATIC1111 then takes the files.",
        choices=("bundled", "beside", "both"),
    )
    start_from: str = option("", help="A LoRA file to go on from, and the words inside it; its ranks are kept.")
    embedding_start_from: str = option("", help="An embedding file the vectors go on from instead.", advanced=True)


@dataclass(frozen=True, kw_only=True)
class DreamBoothConfig:
    """The whole model, to a checkpoint of its own."""

    artefact_kind: ClassVar[str] = "checkpoint"
    kind: str = option("dreambooth", help="The method.", choices=("dreambooth",))
    train_text_encoder: bool = option(True, help="Train the text encoder too.")
    text_encoder_learning_rate: float = option(1e-6, help="Learning rate of the text encoder.", min=0.0, max=1.0)
    text_encoder_until: float = option(
        0.3, help="Share of the run after which the text encoder stays as it is.", min=0.0, max=1.0
    )
    weight_dtype: str = option(
        "fp32",
        help="Number format the UNet is trained in. bf16 takes half the memory; it is rounded at random, so that small "
        "updates count on average, and needs adafactor or lion.",
        choices=("fp32", "bf16"),
    )
    difference_rank: int = option(
        0, help="Also write what was learnt as a LoRA of this rank; 0: no.", min=0, max=1024, advanced=True
    )
    start_from: str = option("", help="A checkpoint to go on from; the base stays what it is compared with.")


METHOD_CONFIGS: dict[str, type] = {
    "textual_inversion": TextualInversionConfig,
    "lora": LoraConfig,
    "pivotal": PivotalConfig,
    "hypernetwork": HypernetworkConfig,
    "dreambooth": DreamBoothConfig,
}
MethodConfig = TextualInversionConfig | LoraConfig | PivotalConfig | HypernetworkConfig | DreamBoothConfig


def artefact_kind(method: str) -> str:
    """The kind of file that a method makes, one of `artefacts.ARTEFACTS`; '' for a method there is not (any more)."""
    config = METHOD_CONFIGS.get(method)
    return config.artefact_kind if config is not None else ""
