"""A LoRA from two checkpoints: in each linear layer and convolution the nearest factors to their difference."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..config.codec import dump
from ..config.networks import ExtractConfig
from ..control import JobControl
from ..errors import MergeError
from ..formats.lora import LoraLayer, lora_tensors
from ..formats.metadata import ArtefactInfo, lora_metadata
from ..formats.safetensors_io import DTYPES, data_hash, write_atomic
from ..formats.tensor_file import TensorFile
from .fit import check_families, check_part
from .layers import Place, layer_places
from .models import Model, read_model
from .plan import FILE_DTYPES, check_output
from .progress import Emit, Progress, hash_with_progress
from .ranks import Lengths, RankChoice, Reduced, factors_of, lora_layer
from .recipe import PLACES, Parent
from .work import is_finite
from .writing import HashOf, parent_of

OWN_EXTRACT = "train_studio.extract"
_PARTS = ("unet", "text_encoder")


def extract(config: ExtractConfig, control: JobControl, emit: Emit, *, hash_of: HashOf = lambda path: None) -> Reduced:
    """Write the LoRA; complete under its name, or nothing.

    Layers without any difference are left out. Biases, norm layers and token tables have no factors; what changed in
    them counts as left out. Raises MergeError for checkpoints that do not fit each other, are the same, or hold NaN;
    otherwise as `read_model`, `check_output` and `write_atomic`.
    """
    models = [read_model(Path(path)) for path in (config.base, config.tuned)]
    check_families(models)
    names = [name for part in _PARTS if models[0].names(part) for name in check_part(models, part)]
    _check_shapes(names, models)
    output = Path(config.folder) / f"{config.name}.safetensors"
    check_output(output, [model.path for model in models], 0, overwrite=config.overwrite)
    layers, lengths = _layers(config, names, models, Progress("extract", len(names), control, emit))
    if not layers:
        raise MergeError(
            f"{models[1].path.name} differs in no layer from {models[0].path.name}; nothing was written.",
            "Choose another checkpoint.",
        )
    parents = [
        parent_of(model.path, hash_of(model.path) or hash_with_progress(model.path, control, emit)) for model in models
    ]
    tensors = lora_tensors(layers, DTYPES[FILE_DTYPES[config.dtype]])
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, tensors, _metadata(config, models[0], parents, lengths, tensors), overwrite=config.overwrite)
    return Reduced(output, lengths.error, tuple(lengths.ranks))


def _check_shapes(names: Sequence[str], models: Sequence[Model]) -> None:
    base, tuned = models
    wrong = [name for name in names if base.infos[name].shape != tuned.infos[name].shape]
    if wrong:
        raise MergeError(
            f"{tuned.path.name} has other shapes than {base.path.name}: {wrong[0]} is "
            f"{list(tuned.infos[wrong[0]].shape)} instead of {list(base.infos[wrong[0]].shape)}.",
            "A LoRA cannot hold that; choose the checkpoint it was trained from.",
        )


def _layers(
    config: ExtractConfig, names: Sequence[str], models: Sequence[Model], progress: Progress
) -> tuple[dict[str, LoraLayer], Lengths]:
    """The factors by layer, and what they leave out; tensors are read one at a time."""
    by_weight: dict[str, list[Place]] = {}
    for place in _written_places(models[0]):
        by_weight.setdefault(place.weight, []).append(place)
    choice = RankChoice(config.rank, config.criterion, config.threshold)
    dtype = DTYPES[FILE_DTYPES[config.dtype]]
    layers, lengths = {}, Lengths()
    base, tuned = models
    with TensorFile(base.path) as base_file, TensorFile(tuned.path) as tuned_file:
        for name in names:
            change = tuned.read(tuned_file, name).float() - base.read(base_file, name).float()
            if not is_finite(change.contiguous()):
                raise MergeError(f"The tensor {name} holds NaN or infinite values.", "Use other copies of these files.")
            places = by_weight.get(name, [])
            if not places:
                lengths.count(change, change)
            for place in places:
                if (layer := _layer(place.rows(change), choice, dtype, lengths)) is not None:
                    layers[place.layer] = layer
            progress.advance()
    return layers, lengths


def _written_places(model: Model) -> Iterator[Place]:
    """Each layer that can have factors, under the name it is written with."""
    seen = set()
    for place in layer_places(model).values():
        where = (place.weight, place.third)
        if place.has_factors and where not in seen:
            seen.add(where)
            yield place


def _layer(change: Tensor, choice: RankChoice, dtype: torch.dtype, lengths: Lengths) -> LoraLayer | None:
    if not change.any():
        return None
    up, down = factors_of(change.flatten(1), choice)
    layer = lora_layer(up, down, tuple(change.shape), dtype)
    lengths.count(change, change - layer.delta(), layer.rank)
    return layer


def _metadata(
    config: ExtractConfig, base: Model, parents: Sequence[Parent], lengths: Lengths, tensors: dict[str, Tensor]
) -> dict[str, str]:
    """That of a LoRA, and how it was made: no folders, no time."""
    info = ArtefactInfo(
        output_name=config.name,
        family=base.family,
        prediction_type=base.prediction_type or "epsilon",
        base_model_name=parents[0].name,
        base_model_sha256=parents[0].sha256,
        rank=max(lengths.ranks),
        alpha=float(max(lengths.ranks)),
    )
    settings = {key: value for key, value in dump(config).items() if key not in PLACES}
    settings |= {"base": parents[0].name, "tuned": parents[1].name}
    made = {"settings": settings, "models": [asdict(parent) for parent in parents], "error": lengths.error}
    return {**lora_metadata(info, data_hash(tensors)), OWN_EXTRACT: json.dumps(made, sort_keys=True)}
