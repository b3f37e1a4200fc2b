"""Settings to method: one line each."""

from __future__ import annotations

from pathlib import Path

import torch

from ..config.blocks import parse_block_values
from ..config.hypernetwork import (
    HypernetworkConfig,
    parse_dropout_structure,
    parse_layer_structure,
    parse_widths,
)
from ..config.job import OutputConfig
from ..config.methods import (
    BLOCK_RANKS,
    BLOCK_RATES,
    DreamBoothConfig,
    LoraConfig,
    MethodConfig,
    PivotalConfig,
    TextualInversionConfig,
)
from ..config.words import EmbeddingConfig
from ..formats.hypernetwork import HypernetworkDesign
from .base import TrainMethod
from .dreambooth import DreamBooth
from .hypernetwork import Hypernetwork
from .lora import Lora
from .new_words import NewWord
from .pivotal import Pivotal
from .textual_inversion import TextualInversion

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def make_method(config: MethodConfig, output: OutputConfig) -> TrainMethod:
    """The training method that `config` describes. Raises KeyError for a kind that has none."""
    return _METHODS[config.kind](config, output)


def _textual_inversion(config: TextualInversionConfig, output: OutputConfig) -> TextualInversion:
    return TextualInversion(
        vectors_per_token=config.vectors_per_token,
        initializer_text=config.initializer_text,
        start_from=_path(config.start_from),
        max_norm_ratio=config.max_norm_ratio,
        file_format=output.file_format,
        further=_further(config),
        relative_learning_rate=config.relative_learning_rate,
        is_negative=config.is_negative,
    )


def _further(config: EmbeddingConfig) -> tuple[NewWord, ...]:
    return tuple(
        NewWord(each.word, each.vectors_per_token, each.initializer_text, _path(each.start_from))
        for each in config.further_words
    )


def _pivotal(config: PivotalConfig, output: OutputConfig) -> Pivotal:
    embedding = TextualInversion(
        vectors_per_token=config.vectors_per_token,
        initializer_text=config.initializer_text,
        start_from=_path(config.embedding_start_from),
        max_norm_ratio=config.max_norm_ratio,
        further=_further(config),
        relative_learning_rate=config.relative_learning_rate,
        learning_rate=config.embedding_learning_rate,
        train_share=config.embedding_until,
    )
    return Pivotal(_lora(config, output), embedding, _path(config.start_from), config.embedding_files)


def _lora(config: LoraConfig, output: OutputConfig) -> Lora:
    return Lora(
        rank=config.rank,
        alpha=config.alpha,
        conv_rank=config.conv_rank,
        conv_alpha=config.conv_alpha,
        dropout=config.dropout,
        train_text_encoder=config.train_text_encoder,
        text_encoder_learning_rate=config.text_encoder_learning_rate,
        layer_filter=config.layer_filter,
        start_from=_path(config.start_from),
        dtype=DTYPES[output.dtype],
        algorithm=config.algorithm,
        dora=config.dora,
        layers=config.layers,
        train_norms=config.train_norms,
        lokr_factor=config.lokr_factor,
        lokr_whole=config.lokr_whole,
        rank_dropout=config.rank_dropout,
        module_dropout=config.module_dropout,
        max_norm=config.max_norm,
        rs_lora=config.rs_lora,
        lora_plus_ratio=config.lora_plus_ratio,
        block_ranks=parse_block_values(config.block_ranks, **BLOCK_RANKS),
        block_rates=parse_block_values(config.block_rates, **BLOCK_RATES),
    )


def _hypernetwork(config: HypernetworkConfig, output: OutputConfig) -> Hypernetwork:
    sizes = parse_layer_structure(config.layer_structure)
    design = HypernetworkDesign(
        layer_structure=sizes,
        activation=config.activation,
        weight_init=config.weight_init,
        layer_norm=config.layer_norm,
        activate_output=config.activate_output,
        dropout_structure=parse_dropout_structure(config.dropout_structure, len(sizes)),
    )
    return Hypernetwork(
        design=design,
        widths=parse_widths(config.widths),
        start_from=_path(config.start_from),
        dtype=DTYPES[output.dtype],
    )


def _dreambooth(config: DreamBoothConfig, output: OutputConfig) -> DreamBooth:
    return DreamBooth(
        train_text_encoder=config.train_text_encoder,
        text_encoder_learning_rate=config.text_encoder_learning_rate,
        text_encoder_until=config.text_encoder_until,
        weight_dtype=DTYPES[config.weight_dtype],
        start_from=_path(config.start_from),
        dtype=DTYPES[output.dtype],
        file_format=output.file_format,
        folder=Path(output.folder),
        difference_rank=config.difference_rank,
    )


def _path(text: str) -> Path | None:
    return Path(text) if text else None


_METHODS = {
    "textual_inversion": _textual_inversion,
    "lora": _lora,
    "pivotal": _pivotal,
    "hypernetwork": _hypernetwork,
    "dreambooth": _dreambooth,
}
