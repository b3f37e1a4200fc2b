"""A LoRA-family file of any program as the WebUI reads it: names, number formats, strengths, lengths of a DoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..config.json_text import parse_json
from ..config.networks import ConvertLoraConfig
from ..control import JobControl
from ..errors import MergeError
from ..events import Warned
from ..formats.metadata import ArtefactInfo, lora_metadata
from ..formats.network import ALPHA, DORA_SCALE, SCALE, LayerChange, lora_change
from ..formats.safetensors_io import DTYPES
from ..formats.tensor_file import TensorFile
from .blocks import BLOCK_MAPS
from .layers import Place, layer_places
from .lora_files import (
    LoraFile,
    LoraWriting,
    WrittenLora,
    canonical_changes,
    output_path,
    read_lora_file,
    write_lora,
)
from .models import Model, few, read_model
from .plan import FILE_DTYPES, check_output
from .progress import Emit, Progress
from .ranks import Lengths, RankChoice, factors_of
from .recipe import Recipe, source_paths
from .words_beside import word_files, write_words
from .writing import HashOf

_PEFTS = "lora_adapter_metadata"  # diffusers' key for peft's settings, those of one network after its name and a dot
_PEFT_NETWORKS = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
# What the WebUI sorts and calls a file by, and what is no longer so in the converted one.
_OWN_FACTS = (
    *("ss_output_name", "ss_base_model_version", "ss_v2", "ss_network_module", "ss_network_dim", "ss_network_alpha"),
    _PEFTS,
)


@dataclass
class _Base:
    """The checkpoint that a DoRA was trained on, open; `lengths` counts what factors of its layers leave out."""

    model: Model
    file: TensorFile
    places: Mapping[str, Place]
    lengths: Lengths = field(default_factory=Lengths)

    def weight(self, change: LayerChange) -> Tensor:
        """The layer's weight, float32. Raises MergeError when the checkpoint has none of that shape."""
        place = self.places.get(change.name)
        outputs, *inputs = place.shape if place else (0,)
        if (outputs, math.prod(inputs)) != change.flat_shape:
            raise MergeError(
                f"{self.model.path.name} has no layer {change.name} of the shape {list(change.shape)}.",
                "Choose the checkpoint that the file was trained on.",
            )
        return place.rows(self.model.read(self.file, place.weight)).float()


def convert_lora(
    config: ConvertLoraConfig,
    control: JobControl,
    emit: Emit,
    *,
    hash_of: HashOf = lambda path: None,
    recipe: Recipe | None = None,
) -> WrittenLora:
    """Write the converted file; complete under its name, or nothing. `hash_of` and `recipe` as in `write_lora`.

    Raises MergeError for layers that the family does not have, for a DoRA that needs its base and has none, and for
    strengths that the file does not tell; otherwise as `read_network`, `read_model`, `check_output` and `write_lora`.
    """
    paths = source_paths(config)
    given = read_lora_file(paths[0])
    model = read_model(paths[1]) if config.base else None
    family = _family(config, given, model)
    is_beside = config.embeddings == "beside" and recipe is None
    words = word_files(given, config.embeddings_folder or config.folder) if is_beside else {}
    for path in (output_path(config), *words):
        check_output(path, paths, 0, overwrite=config.overwrite)
    named = _named(config, given, family, emit)
    changes, error = _converted(config, _with_alphas(config, given, named), model, control, emit)
    writing = LoraWriting(
        config,
        changes,
        sources=paths,
        headers=[given.metadata, *([model.metadata] if model else [])],
        told=lambda recipe: _told(recipe, family, given, changes),
        method="" if config.scale == 1 else f"strength {config.scale:g}",
        error=error,
        words=given.words if config.embeddings == "keep" else {},
        family=family,
    )
    written = write_lora(writing, control, emit, hash_of=hash_of, recipe=recipe)
    return replace(written, beside=write_words(words, family, overwrite=config.overwrite))


def _family(config: ConvertLoraConfig, given: LoraFile, model: Model | None) -> str:
    family = config.family if config.family != "auto" else model.family if model else given.family
    if family not in BLOCK_MAPS:
        what = f"is for {family}" if family else "does not tell for which models it is"
        raise MergeError(
            f"{given.path.name} {what}; accepted are {', '.join(BLOCK_MAPS)}.",
            "Say it with family, or choose another file.",
        )
    if model is not None and model.family != family:
        raise MergeError(
            f"{given.path.name} is for {family}, {model.path.name} is {model.family}.", "Choose its own base."
        )
    return family


def _named(config: ConvertLoraConfig, given: LoraFile, family: str, emit: Emit) -> dict[str, LayerChange]:
    changes, unknown = canonical_changes(given.path, given.changes, family)
    if unknown and (not config.ignore_unknown or len(unknown) == len(changes)):
        raise MergeError(
            f"{given.path.name} has {len(unknown)} of {len(changes)} layers that models of {family} do not have: "
            f"{few(unknown)}.",
            "Choose another family, or let unknown layers be left out.",
        )
    if unknown:
        emit(Warned(text=f"Left out {len(unknown)} layers: {', '.join(unknown)}."))
    return {name: change for name, change in changes.items() if name not in unknown}


def _with_alphas(config: ConvertLoraConfig, given: LoraFile, changes: Mapping[str, LayerChange]) -> list[LayerChange]:
    """The changes with the strengths that peft keeps beside the tensors, where the file has none."""
    silent = [c for c in changes.values() if c.rank and not {ALPHA, SCALE} & c.tensors.keys()]
    told = _peft_settings(given)
    if silent and not told and not config.alpha:
        _check_adapter_config(given.path)
    strengths = {change.name: _strength(config, told, change) for change in silent}
    return [
        _with_scale(change, strengths[change.name]) if change.name in strengths else change
        for change in changes.values()
    ]


def _strength(config: ConvertLoraConfig, told: Mapping[str, object], change: LayerChange) -> float:
    """What a layer without alpha is multiplied by: alpha / R, of peft's 'rslora' alpha / root of R; 1 by default."""
    if config.alpha:
        return config.alpha / change.rank
    network = next(name for prefix, name in _PEFT_NETWORKS.items() if change.name.startswith(prefix))
    alpha = told.get(f"{network}.lora_alpha")
    if not isinstance(alpha, (int, float)):
        return 1.0
    return alpha / (change.rank**0.5 if told.get(f"{network}.use_rslora") else change.rank)


def _peft_settings(given: LoraFile) -> dict[str, object]:
    try:
        told = parse_json(given.metadata.get(_PEFTS, "{}"))
    except ValueError:
        return {}
    if not isinstance(told, dict):
        return {}
    if any(told.get(f"{network}.alpha_pattern") for network in _PEFT_NETWORKS.values()):
        raise MergeError(
            f"{given.path.name} has alphas of its own for some layers (alpha_pattern), which are not read.",
            "Save it with one alpha.",
        )
    return told


def _check_adapter_config(path: Path) -> None:
    """peft writes the strength into a file beside the tensors, which would be lost. Raises MergeError for one."""
    beside = path.with_name("adapter_config.json")
    try:
        told = parse_json(beside.read_text(encoding="utf-8"))
        alpha, rank, is_rslora = float(told["lora_alpha"]), float(told["r"]), bool(told.get("use_rslora"))
    except (OSError, ValueError, KeyError, TypeError):
        return
    alpha = alpha * rank**0.5 if is_rslora else alpha
    if alpha != rank:
        raise MergeError(
            f"{path.name} does not hold its strength; {beside.name} beside it says alpha {alpha:g} at rank {rank:g}.",
            f"Give alpha {alpha:g}.",
        )


def _converted(
    config: ConvertLoraConfig,
    changes: Sequence[LayerChange],
    model: Model | None,
    control: JobControl,
    emit: Emit,
) -> tuple[list[LayerChange], float | None]:
    """The changes as they are written, and what factors of a DoRA leave out."""
    doras = [change for change in changes if change.needs_base]
    _check_doras(config, doras)
    progress = Progress("convert", len(changes), control, emit)
    with ExitStack() as stack:
        base = _Base(model, stack.enter_context(TensorFile(model.path)), layer_places(model)) if model else None
        found = []
        for change in changes:
            plain = change if base is None or not change.needs_base else _without_lengths(change, base, config)
            found.append(_with_scale(plain, plain.scale * config.scale, config.scale))
            progress.advance()
    return found, base.lengths.error if base and config.rank else None


def _check_doras(config: ConvertLoraConfig, doras: Sequence[LayerChange]) -> None:
    if config.base:
        if not doras:
            raise MergeError("No layer of the file is a DoRA, so it needs no base.", "Leave the base out.")
        return
    others = [change.name for change in doras if not change.fits(change.shape)]
    if others:
        raise MergeError(
            f"{len(others)} layers have a length for each output ({few(others)}); the WebUI takes them for lengths of "
            "inputs, and the result would be wrong.",
            "Give base, the checkpoint it was trained on: what it adds there is written as differences or factors.",
        )
    if doras and config.scale != 1:
        raise MergeError(
            f"{len(doras)} layers are a DoRA ({few(change.name for change in doras)}), whose strength no number holds.",
            "Give base, the checkpoint it was trained on, or leave scale at 1.",
        )


def _without_lengths(change: LayerChange, base: _Base, config: ConvertLoraConfig) -> LayerChange:
    """What a DoRA adds to the base, as a whole difference or as factors."""
    weight = base.weight(change)
    delta = change.delta(weight) if change.fits(tuple(weight.shape)) else _of_outputs(change, weight)
    if not config.rank:
        return LayerChange(change.name, "full difference", {"diff": delta})
    dtype, choice = DTYPES[FILE_DTYPES[config.dtype]], RankChoice(config.rank)
    layer = lora_change(change.name, *factors_of(delta.flatten(1), choice), tuple(delta.shape), dtype)
    base.lengths.count(delta, delta - layer.undecomposed())
    return layer


def _of_outputs(change: LayerChange, weight: Tensor) -> Tensor:
    """The difference of a DoRA with a length for each output: `weight` (O, ...), lengths (O, 1) or (O, 1, 1, 1)."""
    lengths = change.tensors[DORA_SCALE].flatten()
    if len(lengths) != len(weight):
        raise MergeError(
            f"The layer {change.name} has {len(lengths)} lengths for {len(weight)} outputs.", "The file is damaged."
        )
    changed = weight + change.undecomposed().reshape(weight.shape)
    factors = lengths / changed.flatten(1).norm(dim=1)
    return changed * factors.reshape(-1, *(1 for _ in weight.shape[1:])) - weight


def _with_scale(change: LayerChange, scale: float, bias_scale: float = 1.0) -> LayerChange:
    """The change with `scale` instead of its own, in alpha where that has an effect, else in its numbers."""
    tensors = {suffix: tensor for suffix, tensor in change.tensors.items() if suffix not in (ALPHA, SCALE)}
    if change.rank:
        return replace(change, tensors={**tensors, ALPHA: torch.tensor(scale * change.rank)})
    weight = next(suffix for suffix in ("diff", "w_norm", "lokr_w1") if suffix in tensors)
    scaled = {weight: tensors[weight] * scale}
    for bias in ("diff_b", "b_norm"):
        if bias in tensors:
            scaled[bias] = tensors[bias] * bias_scale
    return replace(change, tensors={**tensors, **scaled})


def _told(recipe: Recipe, family: str, given: LoraFile, changes: Sequence[LayerChange]) -> dict[str, str]:
    """The file's own header, with what the WebUI sorts it by."""
    ranks = [change.rank for change in changes if change.rank]
    is_lora = all(change.algorithm == "LoRA" and not change.needs_base for change in changes)
    info = ArtefactInfo(
        output_name=recipe.settings["name"],
        family=family,
        prediction_type="v_prediction" if given.is_v else "epsilon",
        network_module="networks.lora" if is_lora else "lycoris.kohya",
        rank=max(ranks, default=None),
        alpha=max((float(c.tensors[ALPHA]) for c in changes if c.rank), default=None),
    )
    own = lora_metadata(info, "")
    kept = {key: value for key, value in given.metadata.items() if key not in _OWN_FACTS}
    return {**own, **kept}
