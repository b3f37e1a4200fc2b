"""Baking LoRA-family files into a checkpoint: what the WebUI adds when it applies them, added for good.

Files are applied one after the other, as the WebUI does; only a DoRA depends on that order. The checkpoint is read,
changed in float32 and written tensor by tensor; the files themselves are in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..config.networks import BakeConfig
from ..config.tools import kind_of
from ..control import JobControl
from ..errors import MergeError
from ..events import Warned
from ..formats.network import LayerChange
from ..formats.safetensors_io import DTYPES, TensorInfo, in_file_order, num_bytes
from ..formats.tensor_file import TensorFile
from ..models.sibling import sibling_path
from .blocks import BLOCK_MAPS, BlockRatios, parse_ratios
from .fit import POSITION_IDS
from .layers import Place, layer_places
from .lora_files import LoraFile, canonical_changes, read_lora_file
from .models import Model, few, read_model
from .plan import check_output, result_info
from .progress import Emit, Progress
from .recipe import Recipe, checkpoint_facts, lineage_metadata, modelspec, own_key, recipe_of
from .words_beside import word_files, write_words
from .work import is_finite, making_ahead, num_threads
from .writing import HashOf, Merged, Writing, write_made


@dataclass(frozen=True)
class Network:
    """One file: the `changes` that are baked in, its header, its strength by tensor name."""

    path: Path
    changes: Mapping[str, LayerChange]
    metadata: Mapping[str, str]
    strength: BlockRatios


@dataclass(frozen=True)
class Addition:
    """What one layer of a file adds to a tensor of the checkpoint; to the bias where `is_bias`."""

    place: Place
    change: LayerChange
    strength: float
    is_bias: bool = False

    def apply(self, tensor: Tensor) -> None:
        """Add it in place to the whole tensor of the checkpoint, float32."""
        own = self.place.rows(tensor)
        added = self.change.bias_delta(self.strength) if self.is_bias else self.change.delta(own, self.strength)
        own += added.reshape(own.shape)


@dataclass(frozen=True)
class BakePlan:
    """Files that fit: `infos` of the result, and the additions to each of its tensors, in order.

    `words` are the tensors of the embeddings that are written beside it, by path.
    """

    config: BakeConfig
    model: Model
    networks: tuple[Network, ...]
    output: Path
    infos: dict[str, TensorInfo]
    additions: dict[str, list[Addition]]
    words: dict[Path, dict[str, Tensor]]
    warnings: tuple[str, ...] = ()

    @property
    def sources(self) -> list[Path]:
        """The checkpoint, then the files."""
        return [self.model.path, *(network.path for network in self.networks)]


def plan_bake(config: BakeConfig, *, in_memory: bool = False) -> BakePlan:
    """Read the files and the checkpoint's header, and decide. Nothing is written. `in_memory`: nor will it be.

    Raises MergeError when a file does not fit the checkpoint, naming the layers, FormatError and ModelError for files
    that cannot be used, OutputError and DiskFullError when the result could not be written.
    """
    model = read_model(Path(config.base))
    places, warnings = layer_places(model), []
    networks, additions, files = [], {}, []
    for entry in config.networks:
        path = Path(entry.path)
        given = read_lora_file(path)
        if given.family not in ("", model.family):
            raise MergeError(
                f"{path.name} is for {given.family}, {model.path.name} is {model.family}.",
                "Choose a file for these models.",
            )
        files.append(given)
        changes = canonical_changes(path, given.changes, model.family)[0]
        unknown = _check_fit(path, changes, places, model, ignore_unknown=config.ignore_unknown)
        if unknown:
            warnings.append(f"{path.name}: left out {len(unknown)} layers: {', '.join(unknown)}.")
        strength = parse_ratios(entry.strength, BLOCK_MAPS[model.family], for_lora=True)
        kept = {name: change for name, change in changes.items() if name not in unknown}
        networks.append(Network(path, kept, given.metadata, strength))
        _add(additions, networks[-1], places)
    infos = {name: result_info(config, info, name) for name, info in model.infos.items()}
    output = Path(config.folder) / f"{config.name}.safetensors"
    words = _words(config, files) if config.embeddings == "beside" and not in_memory else {}
    plan = BakePlan(config, model, tuple(networks), output, infos, additions, words, tuple(warnings))
    if not in_memory:
        check_output(output, plan.sources, sum(map(num_bytes, infos.values())), overwrite=config.overwrite)
    for path in words:
        check_output(path, plan.sources, 0, overwrite=config.overwrite)
    return plan


def _words(config: BakeConfig, files: Sequence[LoraFile]) -> dict[Path, dict[str, Tensor]]:
    """The embeddings of all files by path. Raises MergeError for a word that two files bring."""
    found: dict[Path, dict[str, Tensor]] = {}
    for given in files:
        words = word_files(given, config.embeddings_folder or config.folder)
        if both := [path.stem for path in words if path in found]:
            raise MergeError(
                f"{given.path.name} and a file before it both bring the word {both[0]!r}.",
                "Drop the words, or bake these files one after the other.",
            )
        found |= words
    return found


def bake(
    plan: BakePlan,
    control: JobControl,
    emit: Emit,
    *,
    hash_of: HashOf = lambda path: None,
    recipe: Recipe | None = None,
) -> Merged:
    """Write the checkpoint; complete under its name, or nothing. Arguments and errors as `merge.execute.execute`."""
    yaml = sibling_path(plan.model.path)
    writing = Writing(
        output=plan.output,
        infos=plan.infos,
        sources=plan.sources,
        recipe_of=lambda parents: recipe_of(plan.config, parents),
        metadata_of=lambda made: _metadata(made, plan),
        yaml=yaml if yaml.is_file() else None,
        overwrite=plan.config.overwrite,
    )
    merged = write_made(
        writing, lambda files: _tensors(plan, files[0], control, emit), control, emit, hash_of=hash_of, recipe=recipe
    )
    words = plan.words if recipe is None else {}
    return replace(merged, words=write_words(words, plan.model.family, overwrite=plan.config.overwrite))


def baked_tensors(plan: BakePlan, control: JobControl, emit: Emit) -> Generator[tuple[str, Tensor], None, None]:
    """Name and value of every tensor of the result, in the order of a file; nothing is written.

    To be closed when not all are taken. Raises as `bake`.
    """
    with TensorFile(plan.model.path) as file:
        yield from _tensors(plan, file, control, emit)


def _check_fit(
    path: Path, changes: Mapping[str, LayerChange], places: Mapping[str, Place], model: Model, *, ignore_unknown: bool
) -> list[str]:
    """The layers that the checkpoint does not have. Raises MergeError for them, unless they are to be ignored, and for
    layers of another shape or with numbers that are not finite.
    """
    unknown = [name for name in changes if name not in places]
    if len(unknown) == len(changes) or (unknown and not ignore_unknown):
        raise MergeError(
            f"{path.name} has {len(unknown)} of {len(changes)} layers that {model.path.name} ({model.family}) "
            f"does not have: {', '.join(unknown)}.",
            "Choose a file made for this family of models"
            + ("." if len(unknown) == len(changes) else ", or allow unknown layers to be left out."),
        )
    known = [name for name in changes if name in places]
    outer = [name for name in known if changes[name].needs_base and not changes[name].fits(changes[name].shape)]
    if outer:
        raise MergeError(
            f"{path.name} has {len(outer)} layers with a length for each output ({few(outer)}), which the WebUI takes "
            "for lengths of inputs.",
            "Turn it into factors or differences first: convert-lora with the checkpoint it was trained on as base.",
        )
    wrong = [name for name in known if not _fits(changes[name], places[name])]
    if wrong:
        raise MergeError(
            f"{path.name} does not fit {model.path.name}: {len(wrong)} layers have another shape ({few(wrong)}).",
            "Choose a file made for this family of models.",
        )
    return unknown


def _fits(change: LayerChange, place: Place) -> bool:
    bias = change.bias_delta()
    return change.fits(place.shape) and (bias is None or (place.bias is not None and bias.numel() == place.shape[0]))


def _add(additions: dict[str, list[Addition]], network: Network, places: Mapping[str, Place]) -> None:
    for name, change in network.changes.items():
        place = places[name]
        strength = network.strength.ratio(place.weight)
        if not strength:
            continue
        additions.setdefault(place.weight, []).append(Addition(place, change, strength))
        if change.bias_delta() is not None:
            bias_strength = network.strength.ratio(place.bias)
            additions.setdefault(place.bias, []).append(Addition(place, change, bias_strength, is_bias=True))


def _tensors(plan: BakePlan, file: TensorFile, control: JobControl, emit: Emit) -> Iterator[tuple[str, Tensor]]:
    for warning in plan.warnings:
        emit(Warned(text=warning))
    reading = threading.Lock()

    def make(name: str) -> Tensor:
        with reading:
            tensor = plan.model.read(file, name)
        return _baked(plan, name, tensor)

    names = list(in_file_order(plan.infos))
    progress = Progress("bake", len(names), control, emit)
    with making_ahead(make, names, num_threads()) as take:
        for name in names:
            tensor = take(name)
            progress.advance()
            yield name, tensor


def _baked(plan: BakePlan, name: str, tensor: Tensor) -> Tensor:
    info = plan.infos[name]
    if POSITION_IDS.search(name):
        return torch.arange(info.shape[-1]).expand(info.shape).contiguous()
    result = tensor
    if additions := plan.additions.get(name):
        result = tensor.to(torch.float32, copy=True)
        for addition in additions:
            addition.apply(result)
    result = result.to(DTYPES[info.dtype]).contiguous()
    if not is_finite(result):
        raise _not_finite(plan, name, is_too_large=is_finite(tensor.contiguous()))
    return result


def _not_finite(plan: BakePlan, name: str, *, is_too_large: bool) -> MergeError:
    if is_too_large:
        return MergeError(
            f"Nothing was written: the tensor {name} became too large for {plan.config.dtype}.",
            "Choose smaller strengths, or bf16 or fp32.",
        )
    return MergeError(
        f"Nothing was written: the tensor {name} of {plan.model.path.name} holds NaN or infinite values.",
        "Use another copy of this model.",
    )


def _metadata(recipe: Recipe, plan: BakePlan) -> dict[str, str]:
    headers = [plan.model.metadata, *(network.metadata for network in plan.networks)]
    strengths = " | ".join(entry["strength"] for entry in recipe.settings["networks"])
    return {
        "format": "pt",
        **lineage_metadata(recipe, headers, "Bake LoRA", strengths, checkpoint_facts(recipe, plan.model)),
        own_key(kind_of(plan.config)): recipe.to_json(),
        **modelspec(recipe, plan.model),
    }
