"""Several LoRA-family files made into one: the sum of what they add, each with its weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config.networks import CombineConfig
from ..control import JobControl
from ..errors import MergeError
from ..events import Warned
from ..formats.metadata import ArtefactInfo, lora_metadata
from ..formats.network import LayerChange, lora_change
from ..formats.safetensors_io import DTYPES
from .blocks import BLOCK_MAPS, parse_ratios
from .layer_sums import Part, common_shape, nearest_change, whole_change
from .layers import tensor_of_layer
from .lora_files import (
    LoraFile,
    LoraWriting,
    WrittenLora,
    canonical_changes,
    output_path,
    read_lora_file,
    refuse_doras,
    write_lora,
)
from .models import few
from .plan import FILE_DTYPES, check_output
from .progress import Emit, Progress
from .ranks import Lengths, rank_text
from .recipe import Recipe, source_paths
from .writing import HashOf

_STACKED = ("LoRA", "norm difference")


def combine(
    config: CombineConfig,
    control: JobControl,
    emit: Emit,
    *,
    hash_of: HashOf = lambda path: None,
    recipe: Recipe | None = None,
) -> WrittenLora:
    """Write the combined file; complete under its name, or nothing. `hash_of` and `recipe` as in `write_lora`.

    Raises MergeError for files of different families or shapes, layers that the family has not, a DoRA, two files with
    the same word, and for 'concat' what has no factors; otherwise as `read_network`, `check_output` and `write_lora`.
    """
    paths = source_paths(config)
    check_output(output_path(config), paths, 0, overwrite=config.overwrite)
    files = [read_lora_file(path) for path in paths]
    for file in files:
        refuse_doras(file)
    family = _family(files, emit)
    words = _words(files)
    layers = _parts(config, files, family)
    if config.formula == "concat":
        _check_stackable(files)
    progress, lengths, changes = Progress("combine", len(layers), control, emit), Lengths(), []
    for parts in layers.values():
        changes.append(
            _stacked(parts, config) if config.formula == "concat" else nearest_change(parts, config, lengths)
        )
        progress.advance()
    writing = LoraWriting(
        config,
        changes,
        sources=paths,
        headers=[file.metadata for file in files],
        told=lambda recipe: _told(recipe, family, files, changes),
        method=_method_text(config),
        error=None if config.formula == "concat" else lengths.error,
        words=words,
        family=family,
    )
    return write_lora(writing, control, emit, hash_of=hash_of, recipe=recipe)


def _family(files: Sequence[LoraFile], emit: Emit) -> str:
    """That of all files; those that do not tell are taken for what the others are."""
    told = {file.path.name: file.family for file in files if file.family}
    if len(set(told.values())) > 1:
        listed = ", ".join(f"{name} is {family}" for name, family in told.items())
        raise MergeError(f"The files are for different families of models: {listed}.", "Combine files of one family.")
    family = next(iter(told.values()), "")
    if family and family not in BLOCK_MAPS:
        raise MergeError(
            f"The files are for {family}; accepted are {', '.join(BLOCK_MAPS)}.", "Choose files for these models."
        )
    silent = [file.path.name for file in files if not file.family]
    if silent:
        family = family or "sd1"
        emit(Warned(text=f"{', '.join(silent)} does not tell for which models it is; taken for {family}."))
    return family


def _words(files: Sequence[LoraFile]) -> dict[str, Tensor]:
    """The bundled words of all files. Raises MergeError when two bring the same."""
    owners: dict[str, Path] = {}
    for file in files:
        for word in sorted({name.split(".")[1] for name in file.words}):
            if word in owners:
                raise MergeError(
                    f"{owners[word].name} and {file.path.name} both bring the word {word!r}.",
                    "Take it out of one of them: convert-lora with embeddings 'drop'.",
                )
            owners[word] = file.path
    return {name: tensor for file in files for name, tensor in file.words.items()}


def _parts(config: CombineConfig, files: Sequence[LoraFile], family: str) -> dict[str, list[Part]]:
    """By layer what each file does to it, without those whose weight there is 0."""
    layers: dict[str, list[Part]] = {}
    for entry, file in zip(config.networks, files, strict=True):
        changes, unknown = canonical_changes(file.path, file.changes, family)
        if unknown:
            raise MergeError(
                f"{file.path.name} has {len(unknown)} layers that models of {family} do not have: {few(unknown)}.",
                "Choose a file for these models, or leave them out: convert-lora with ignore_unknown.",
            )
        weights = parse_ratios(entry.weight, BLOCK_MAPS[family], for_lora=True)
        for name, change in changes.items():
            tensor = tensor_of_layer(name, family)
            part = Part(change, weights.ratio(tensor), weights.ratio(tensor.removesuffix("weight") + "bias"))
            if part.weight or (part.bias_weight and change.bias_delta() is not None):
                layers.setdefault(name, []).append(part)
    if not layers:
        raise MergeError("The weights are 0 everywhere; there is nothing to combine.", "Give other weights.")
    return layers


def _check_stackable(files: Sequence[LoraFile]) -> None:
    for file in files:
        others = sorted({change.algorithm for change in file.changes.values()} - set(_STACKED))
        if others:
            raise MergeError(
                f"{file.path.name} holds {', '.join(others)}, which has no factors to put together.",
                "Combine with formula 'svd', or make factors of it first: resize.",
            )


def _stacked(parts: Sequence[Part], config: CombineConfig) -> LayerChange:
    """The sum as factors side by side. The strongest file's keep their numbers, its strength goes into alpha, and those
    of the others are scaled against it.
    """
    shape, name = common_shape(parts), parts[0].change.name
    if len(shape) == 1:
        return whole_change(parts)
    strengths = [part.weight * part.change.scale for part in parts]
    largest = max(abs(strength) for strength in strengths) or 1.0
    shares = [_shares(strength / largest) for strength in strengths]
    factors = [part.change.factors() for part in parts]
    up = torch.cat([up * own for (up, _), (own, _) in zip(factors, shares, strict=True)], dim=1)
    down = torch.cat([down * own for (_, down), (_, own) in zip(factors, shares, strict=True)])
    return lora_change(name, up, down, shape, DTYPES[FILE_DTYPES[config.dtype]], largest)


def _shares(ratio: float) -> tuple[float, float]:
    """What up and down are multiplied by for a ratio; of small ones each gets about the root, so that half precision
    holds both. The second is a power of two, which rounds nothing.
    """
    second = 2.0 ** (math.frexp(ratio)[1] // 2)
    return ratio / second, second


def _method_text(config: CombineConfig) -> str:
    how = "concat" if config.formula == "concat" else rank_text(config)
    return f"{' | '.join(entry.weight for entry in config.networks)}, {how}"


def _told(recipe: Recipe, family: str, files: Sequence[LoraFile], changes: Sequence[LayerChange]) -> Mapping[str, str]:
    """The header of a LoRA; it calls for the words of all files."""
    ranks = [change.rank for change in changes if change.algorithm == "LoRA"]
    triggers = dict.fromkeys(file.metadata.get("modelspec.trigger_phrase", "") for file in files)
    is_v = any(file.is_v for file in files)
    info = ArtefactInfo(
        output_name=recipe.settings["name"],
        family=family,
        prediction_type="v_prediction" if is_v else "epsilon",
        trigger_word=", ".join(filter(None, triggers)),
        network_module="networks.lora" if len(ranks) == len(changes) else "lycoris.kohya",
        rank=max(ranks, default=None),
        alpha=float(max(ranks)) if ranks else None,
    )
    merged_from = ", ".join(Path(parent.name).stem for parent in recipe.models)
    return {**lora_metadata(info, ""), "modelspec.merged_from": merged_from}
