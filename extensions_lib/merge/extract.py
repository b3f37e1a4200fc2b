"""A LoRA from two checkpoints: in each linear layer and convolution the nearest factors to their difference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config.networks import ExtractConfig
from ..control import JobControl
from ..errors import MergeError
from ..formats.metadata import ArtefactInfo, lora_metadata
from ..formats.network import LayerChange, lora_change
from ..formats.safetensors_io import DTYPES
from ..formats.tensor_file import TensorFile
from .fit import check_families, check_part
from .layers import Place, layer_places
from .lora_files import LoraWriting, WrittenLora, output_path, write_lora
from .models import Model, read_model
from .plan import FILE_DTYPES, check_output
from .progress import Emit, Progress
from .ranks import Lengths, RankChoice, choice_of, factors_of, rank_text
from .recipe import Recipe, source_paths
from .work import is_finite
from .writing import HashOf

_PARTS = ("unet", "text_encoder")


def extract(
    config: ExtractConfig,
    control: JobControl,
    emit: Emit,
    *,
    hash_of: HashOf = lambda path: None,
    recipe: Recipe | None = None,
) -> WrittenLora:
    """Write the LoRA; complete under its name, or nothing. `hash_of` and `recipe` as in `write_lora`.

    Layers without any difference are left out. Biases, norm layers and token tables have no factors; what changed in
    them counts as left out. Raises MergeError for checkpoints that do not fit each other, are the same, or hold NaN;
    otherwise as `read_model`, `check_output` and `write_lora`.
    """
    models = [read_model(path) for path in source_paths(config)]
    check_families(models)
    names = [name for part in _PARTS if models[0].names(part) for name in check_part(models, part)]
    _check_shapes(names, models)
    check_output(output_path(config), [model.path for model in models], 0, overwrite=config.overwrite)
    layers, lengths = _layers(config, names, models, Progress("extract", len(names), control, emit))
    if not layers:
        raise MergeError(
            f"{models[1].path.name} differs in no layer from {models[0].path.name}; nothing was written.",
            "Choose another checkpoint.",
        )
    writing = LoraWriting(
        config,
        layers,
        sources=[model.path for model in models],
        headers=[model.metadata for model in models],
        told=lambda recipe: _told(recipe, models[0], max(layer.rank for layer in layers)),
        method=rank_text(config),
        error=lengths.error,
        family=models[0].family,
    )
    return write_lora(writing, control, emit, hash_of=hash_of, recipe=recipe)


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
) -> tuple[list[LayerChange], Lengths]:
    """The factors by layer, and what they leave out; tensors are read one at a time."""
    by_weight: dict[str, list[Place]] = {}
    for place in layer_places(models[0]).values():
        if place.has_factors:
            by_weight.setdefault(place.weight, []).append(place)
    choice = choice_of(config)
    dtype = DTYPES[FILE_DTYPES[config.dtype]]
    layers, lengths = [], Lengths()
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
                if (own := place.rows(change)).any():
                    layers.append(_layer(place.layer, own, choice, dtype, lengths))
            progress.advance()
    return layers, lengths


def _layer(name: str, change: Tensor, choice: RankChoice, dtype: torch.dtype, lengths: Lengths) -> LayerChange:
    layer = lora_change(name, *factors_of(change.flatten(1), choice), tuple(change.shape), dtype)
    lengths.count(change, change - layer.undecomposed())
    return layer


def _told(recipe: Recipe, base: Model, rank: int) -> dict[str, str]:
    """The header of a LoRA for `base`: no folders, no time."""
    info = ArtefactInfo(
        output_name=recipe.settings["name"],
        family=base.family,
        prediction_type=base.prediction_type or "epsilon",
        base_model_name=recipe.models[0].name,
        base_model_sha256=recipe.models[0].sha256,
        rank=rank,
        alpha=float(rank),
    )
    return lora_metadata(info, "")
