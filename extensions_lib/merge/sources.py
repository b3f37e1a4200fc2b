"""Where a conversion takes its tensors from: one file, or a diffusers folder read as the single file it would be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import KeyMismatchError
from ..formats.recognise import recognise
from ..formats.safetensors_io import DTYPES, TensorInfo, describe_tensor
from ..formats.tensor_file import TensorFile
from ..models.bundle import ModelBundle
from ..models.description import yaml_beside_folder
from ..models.folder import new_attention_name, outline_folder, weights_files
from ..models.ldm import POSITION_IDS, names_in_folder, part_prefix, state_to_ldm, unloaded_layers
from ..models.prediction import marker_tensors
from ..models.sibling import sibling_for_copy, sibling_path
from ..models.sizes import read_json
from .models import FAMILIES, few

# What a single file has and a diffusers folder has no place for; our own, other programs do not look at it.
BESIDE = "single_file"
BESIDE_TENSORS = f"{BESIDE}/tensors.safetensors"
BESIDE_FACTS = f"{BESIDE}/facts.json"
BESIDE_YAML = f"{BESIDE}/model.yaml"

MakeTensor = Callable[[], Tensor]


@dataclass(frozen=True)
class Source:
    """The tensors of a single file by its names, each with a function that reads it, and what stands beside them.

    `yaml_for` gives the description that a copy in a folder needs, or None.
    """

    infos: Mapping[str, TensorInfo]
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str]
    yaml_for: Callable[[Path], bytes | None]
    paths: tuple[Path, ...]


def open_file(path: Path, stack: ExitStack) -> Source:
    """A single file, open until `stack` is closed. Raises as `TensorFile`."""
    file = stack.enter_context(TensorFile(path))
    family = recognise(file.infos).family

    def yaml_for(folder: Path) -> bytes | None:
        if family in FAMILIES:
            return sibling_for_copy(path, FAMILIES[family], folder)
        return sibling_path(path).read_bytes() if sibling_path(path).is_file() else None

    return Source(file.infos, file.read, file.metadata, yaml_for, (path,))


def open_folder(folder: Path, stack: ExitStack) -> Source:
    """A diffusers folder as a single file. Raises as `outline_folder`; KeyMismatchError for tensors that do not fit."""
    bundle = outline_folder(folder, None)
    tensors = _Tensors()
    paths = []
    for part, module in bundle.parts.items():
        files = [stack.enter_context(TensorFile(path)) for path in weights_files(folder / part, part)]
        paths += [file.path for file in files]
        _add_part(tensors, _Part(part, module, bundle, files))
    metadata: dict[str, str] = {}
    if (folder / BESIDE_FACTS).is_file():
        said = read_json(folder / BESIDE_FACTS).get("metadata")
        metadata = {str(key): str(text) for key, text in said.items()} if isinstance(said, dict) else {}
        if (folder / BESIDE_TENSORS).is_file():
            beside = stack.enter_context(TensorFile(folder / BESIDE_TENSORS))
            for name, info in beside.infos.items():
                tensors.add(name, info, lambda name=name: beside.read(name))
    else:
        _add_what_folders_lack(tensors, bundle)
    yaml = folder / BESIDE_YAML

    def yaml_for(target: Path) -> bytes | None:
        return yaml.read_bytes() if yaml.is_file() else yaml_beside_folder(bundle)

    return Source(tensors.infos, lambda name: tensors.makers[name](), metadata, yaml_for, tuple(paths))


@dataclass
class _Tensors:
    infos: dict[str, TensorInfo] = field(default_factory=dict)
    makers: dict[str, MakeTensor] = field(default_factory=dict)

    def add(self, name: str, info: TensorInfo, make: MakeTensor) -> None:
        self.infos[name], self.makers[name] = info, make


@dataclass(frozen=True)
class _Part:
    """One network of a folder, and its open files."""

    part: str
    module: nn.Module
    bundle: ModelBundle
    files: Sequence[TensorFile]

    def tensors(self) -> dict[str, tuple[TensorInfo, MakeTensor]]:
        """Each tensor by today's name."""
        rename = new_attention_name if self.part == "vae" else str
        return {
            rename(name): (info, partial(file.read, name)) for file in self.files for name, info in file.infos.items()
        }


def _add_part(tensors: _Tensors, part: _Part) -> None:
    """The part's tensors under their checkpoint names, and its positions where a single file has them."""
    found, family = part.tensors(), part.bundle.family
    positions = found.pop(POSITION_IDS, None)
    _check_fit(part, {name: info.shape for name, (info, _) in found.items()})
    for name, inputs in names_in_folder(part.part, part.module, family).items():

        def make(name: str = name, inputs: tuple[str, ...] = inputs) -> Tensor:
            given = {each: found[each][1]() for each in inputs}
            return state_to_ldm(part.part, given, part.module, family)[name].contiguous()

        outline = {each: meta_tensor(found[each][0]) for each in inputs}
        made = state_to_ldm(part.part, outline, part.module, family)[name]
        tensors.add(name, describe_tensor(made), make)
    kind = family.text_encoder(part.part)
    has_beside = (part.bundle.source.path / BESIDE_FACTS).is_file()
    if positions is not None and kind is not None and kind.layout == "clip" and not has_beside:
        tensors.add(part_prefix(part.part, family) + POSITION_IDS, *positions)


def _check_fit(part: _Part, found: Mapping[str, tuple[int, ...]]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in part.module.state_dict().items() if name != POSITION_IDS}
    missing = [name for name in shapes if name not in found]
    unknown = [name for name in found if name not in shapes]
    wrong = [name for name in shapes if name in found and found[name] != shapes[name]]
    lists = ((missing, "missing"), (unknown, "unexpected"), (wrong, "of another shape than config.json says"))
    texts = [f"{len(names)} tensors are {what} ({few(names)})" for names, what in lists if names]
    if texts:
        where = part.bundle.source.path / part.part
        raise KeyMismatchError(f"{where}: {'; '.join(texts)}.", "Copy or download the folder again.")


def _add_what_folders_lack(tensors: _Tensors, bundle: ModelBundle) -> None:
    """SD 2's last layer, which no folder has and nothing reads, and the markers of a model that predicts v."""
    layers = bundle.text_encoder.config.num_hidden_layers
    for name, tensor in unloaded_layers(bundle).items():
        if tensor.is_meta:
            before = name.replace(f"resblocks.{layers}.", f"resblocks.{layers - 1}.")
            tensors.add(name, tensors.infos[before], tensors.makers[before])
        else:
            tensors.add(name, describe_tensor(tensor), lambda tensor=tensor: tensor)
    for name, tensor in marker_tensors(bundle).items():
        tensors.add(name, describe_tensor(tensor), lambda tensor=tensor: tensor)


def meta_tensor(info: TensorInfo) -> Tensor:
    """A tensor of this shape and format without numbers."""
    return torch.empty(info.shape, dtype=DTYPES[info.dtype], device="meta")
