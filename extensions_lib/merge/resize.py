"""A LoRA made smaller: in each layer the nearest factors with fewer directions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from ..config.codec import dump
from ..config.networks import ResizeConfig
from ..control import JobControl
from ..errors import MergeError
from ..formats.checkpoint import read_checkpoint
from ..formats.lora import LoraLayer, lora_tensors, read_lora
from ..formats.metadata import with_hash
from ..formats.safetensors_io import DTYPES, data_hash, write_atomic
from ..formats.suffixes import BUNDLED_EMBEDDING
from ..formats.tensor_file import TensorFile
from .models import few
from .plan import FILE_DTYPES, check_output
from .progress import Emit, Progress, hash_with_progress
from .ranks import Lengths, RankChoice, Reduced, factors_of_product, lora_layer
from .recipe import PLACES, Parent
from .work import is_finite
from .writing import HashOf, parent_of

OWN_RESIZE = "train_studio.resize"


def resize(config: ResizeConfig, control: JobControl, emit: Emit, *, hash_of: HashOf = lambda path: None) -> Reduced:
    """Write the smaller LoRA; complete under its name, or nothing.

    Raises FormatError for what is no plain LoRA or LoCon, MergeError for numbers that are not finite; otherwise as
    `check_output` and `write_atomic`.
    """
    path, output = Path(config.network), Path(config.folder) / f"{config.name}.safetensors"
    given = read_lora(path)
    check_output(output, [path], 0, overwrite=config.overwrite)
    broken = [name for name, layer in given.items() if not _is_finite(layer)]
    if broken:
        raise MergeError(f"{path.name} holds NaN or infinite values in {few(broken)}.", "Use another copy of it.")
    choice = RankChoice(config.rank, config.criterion, config.threshold)
    progress, lengths, layers = Progress("resize", len(given), control, emit), Lengths(), {}
    for name, layer in given.items():
        layers[name] = _resized(layer, choice, config.dtype)
        delta = layer.delta()
        lengths.count(delta, delta - layers[name].delta(), layers[name].rank)
        progress.advance()
    tensors = lora_tensors(layers, DTYPES[FILE_DTYPES[config.dtype]])
    words = {name: each for name, each in read_checkpoint(path).tensors.items() if name.startswith(BUNDLED_EMBEDDING)}
    tensors |= words
    parent = parent_of(path, hash_of(path) or hash_with_progress(path, control, emit))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, tensors, _metadata(config, parent, lengths, tensors), overwrite=config.overwrite)
    return Reduced(output, lengths.error, tuple(lengths.ranks))


def _is_finite(layer: LoraLayer) -> bool:
    return is_finite(layer.up.contiguous()) and is_finite(layer.down.contiguous())


def _resized(layer: LoraLayer, choice: RankChoice, dtype: str) -> LoraLayer:
    scale = layer.alpha / layer.rank
    up, down = factors_of_product(layer.up.flatten(1) * scale, layer.down.flatten(1), choice)
    return lora_layer(up, down, layer.weight_shape, DTYPES[FILE_DTYPES[dtype]])


def _metadata(config: ResizeConfig, parent: Parent, lengths: Lengths, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """That of the file, with the new size, and how it was made."""
    with TensorFile(Path(config.network)) as file:
        kept = dict(file.metadata)
    settings = {key: value for key, value in dump(config).items() if key not in PLACES}
    made = {"settings": {**settings, "network": parent.name}, "models": [asdict(parent)], "error": lengths.error}
    largest = str(max(lengths.ranks))
    told = {**kept, "ss_network_dim": largest, "ss_network_alpha": f"{largest}.0", "ss_output_name": config.name}
    return with_hash({**told, OWN_RESIZE: json.dumps(made, sort_keys=True)}, data_hash(tensors))
