"""LoRA-family files as the tools take and give them: read with what belongs to them, written with a recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..config.networks import LoraToolConfig
from ..config.tools import TOOLS, kind_of
from ..control import JobControl
from ..errors import KeyMismatchError, MergeError
from ..formats.checkpoint import read_checkpoint
from ..formats.keys import canonical_layer, lora_layer_name
from ..formats.metadata import with_hash
from ..formats.network import LayerChange, changes_tensors, lora_change, network_of
from ..formats.recognise import recognise
from ..formats.safetensors_io import DTYPES, data_hash, describe_tensor, write_atomic
from ..formats.suffixes import BUNDLED_EMBEDDING
from .models import FAMILIES, few
from .plan import FILE_DTYPES
from .progress import Emit, hash_with_progress
from .recipe import Recipe, lineage_metadata, own_key, recipe_of, without_recipe
from .work import is_finite
from .writing import HashOf, parent_of

ERROR = "train_studio.error"
_ATTENTION = re.compile(r"_self_attn_(q|k|v|out)_proj$")


@dataclass(frozen=True)
class LoraFile:
    """What a file does to each layer, the `words` bundled with it (tensors by their names in the file), its header.

    `family` is '' where neither tensors nor header tell it.
    """

    path: Path
    family: str
    changes: Mapping[str, LayerChange]
    words: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def is_v(self) -> bool:
        """Made for a model that predicts v, as far as the header tells."""
        told = self.metadata
        return told.get("modelspec.prediction_type") == "v" or told.get("ss_base_model_version") == "sd_v2_v"

    @property
    def doras(self) -> list[str]:
        """The layers whose change depends on the base weight."""
        return [name for name, change in self.changes.items() if change.needs_base]


@dataclass(frozen=True)
class WrittenLora:
    """The written LoRA, the share of the difference that it leaves out (0 to 1; None: nothing by design), the ranks of
    its layers of factors, how many layers are no factors, and the files written beside it.
    """

    path: Path
    error: float | None
    ranks: tuple[int, ...]
    num_others: int = 0
    beside: tuple[Path, ...] = ()


@dataclass(frozen=True)
class LoraWriting:
    """What is written: the changes, the words beside them, and what the header tells (`told`, from the recipe).

    `sources` are the files it is made from, in the order of the settings, with their `headers`; `method` says in a few
    words how. `error` is the share of the difference that is left out, None where nothing is. `family` is that of the
    models the file is for, '' where it is not known.
    """

    config: LoraToolConfig
    changes: Sequence[LayerChange]
    sources: Sequence[Path]
    headers: Sequence[Mapping[str, str]]
    told: Callable[[Recipe], Mapping[str, str]]
    method: str
    error: float | None = None
    words: Mapping[str, Tensor] = field(default_factory=dict)
    family: str = ""


def read_lora_file(path: Path) -> LoraFile:
    """The file. Raises as `read_network`; MergeError for numbers that are not finite."""
    content = read_checkpoint(path)
    changes = network_of(path, content.tensors)
    check_finite(path, changes.values())
    header = {name: describe_tensor(tensor) for name, tensor in content.tensors.items()}
    words = {name: tensor for name, tensor in content.tensors.items() if name.startswith(BUNDLED_EMBEDDING)}
    return LoraFile(path, recognise(header, content.metadata).family, changes, words, content.metadata)


def canonical_changes(
    path: Path, changes: Mapping[str, LayerChange], family: str
) -> tuple[dict[str, LayerChange], list[str]]:
    """The changes under the names by which the WebUI finds layers of `family`, and the names that are none of it.

    The latter keep theirs. Raises MergeError for two names of one layer; `path` is for the message.
    """
    found: dict[str, LayerChange] = {}
    unknown: list[str] = []
    for name, change in changes.items():
        try:
            canonical = canonical_layer(name, family)
        except KeyMismatchError:
            canonical = name
            unknown.append(name)
        if canonical in found:
            raise MergeError(f"{path.name} holds the layer {canonical} twice, under two names.", "Use another file.")
        found[canonical] = replace(change, name=canonical)
    return found, unknown


def check_finite(path: Path, changes: Iterable[LayerChange]) -> None:
    """Raises MergeError when numbers of a file's changes are NaN or infinite."""
    broken = [change.name for change in changes if not change.is_finite]
    if broken:
        raise MergeError(f"{path.name} holds NaN or infinite values in {few(broken)}.", "Use another copy of it.")


def refuse_doras(file: LoraFile) -> None:
    """Raises MergeError for a file whose changes depend on the base weight."""
    if file.doras:
        raise MergeError(
            f"{file.path.name} is a DoRA in {len(file.doras)} layers ({few(file.doras)}): what they add depends on the "
            "checkpoint.",
            "Turn it into factors first: convert-lora with the checkpoint it was trained on as base.",
        )


def output_path(config: LoraToolConfig) -> Path:
    """Where the LoRA goes."""
    return Path(config.folder) / f"{config.name}.safetensors"


def write_lora(
    writing: LoraWriting,
    control: JobControl,
    emit: Emit,
    *,
    hash_of: HashOf = lambda path: None,
    recipe: Recipe | None = None,
) -> WrittenLora:
    """Write the file; complete under its name, or nothing.

    `hash_of` may know the sha256 of a file (64 digits) without reading it. `recipe` is written instead of an own one
    when a file is made again. Raises MergeError for numbers too large for the format; otherwise as `write_atomic`.
    """
    config, output = writing.config, output_path(writing.config)
    dtype = config.dtype
    changes = [*writing.changes, *missing_of_attentions(writing.changes, writing.family)]
    tensors = {**changes_tensors(changes, DTYPES[FILE_DTYPES[dtype]]), **writing.words}
    large = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if large:
        raise MergeError(
            f"Nothing was written: {len(large)} tensors became too large for {dtype}: {few(large)}.",
            "Choose smaller weights, or bf16 or fp32.",
        )
    if recipe is None:
        hashes = [hash_of(path) or hash_with_progress(path, control, emit) for path in writing.sources]
        recipe = recipe_of(config, [parent_of(*each) for each in zip(writing.sources, hashes, strict=True)])
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, tensors, _metadata(writing, recipe, data_hash(tensors)), overwrite=config.overwrite)
    ranks = tuple(change.rank for change in changes if change.algorithm == "LoRA")
    return WrittenLora(output, writing.error, ranks, len(changes) - len(ranks))


def missing_of_attentions(changes: Sequence[LayerChange], family: str) -> list[LayerChange]:
    """Factors of zero for the layers that an OpenCLIP attention lacks of query, key, value and output.

    The WebUI changes such an attention only where a file has all four, and says nothing of others.
    """
    names = {change.name: change for change in changes}
    found: dict[str, LayerChange] = {}
    for kind in FAMILIES[family].text_encoders if family in FAMILIES else ():
        for name, change in names.items() if kind.layout == "open_clip" else ():
            if not name.startswith(lora_layer_name("", kind.part, family)) or not _ATTENTION.search(name):
                continue
            for part in "q", "k", "v", "out":
                other = _ATTENTION.sub(f"_self_attn_{part}_proj", name)
                if other not in names:
                    up, down = torch.zeros(change.shape[0], 1), torch.zeros(1, change.shape[0])
                    found[other] = lora_change(other, up, down, change.shape)
    return list(found.values())


def _metadata(writing: LoraWriting, recipe: Recipe, data: str) -> dict[str, str]:
    error = {} if writing.error is None else {ERROR: f"{writing.error:.6f}"}
    return with_hash(
        {
            **without_recipe(writing.told(recipe)),
            **lineage_metadata(recipe, writing.headers, TOOLS[kind_of(writing.config)].title, writing.method),
            own_key(kind_of(writing.config)): recipe.to_json(),
            **error,
        },
        data,
    )
