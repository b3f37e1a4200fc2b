"""The same tensors in another kind of file: .safetensors, .ckpt, or a folder for diffusers; no number is changed.

A .safetensors file and a folder are written tensor by tensor; a .ckpt has to be in memory. What a folder has no place
for stands in a folder of its own inside it, so that the single file comes back as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import __version__
from ..config.files import FORMATS, ConvertConfig
from ..control import JobControl
from ..errors import MergeError, OutputError, UnsupportedModelError
from ..events import Warned
from ..formats.atomic import write_folder_atomic
from ..formats.checkpoint import write_checkpoint
from ..formats.metadata import HASH_KEYS
from ..formats.recognise import recognise
from ..formats.safetensors_io import TensorInfo, describe_tensor, num_bytes
from ..formats.tensor_file import write_tensors_as_made
from ..models.bundle import ModelBundle
from ..models.folder import NETWORK_WEIGHTS, TEXT_WEIGHTS
from ..models.folder_texts import write_folder_texts
from ..models.ldm import POSITION_IDS, modern_names, names_in_folder, part_from_ldm
from ..models.load import load_bundle
from ..models.prediction import ALPHAS, known_prediction_type
from ..models.schedule import check_alphas_cumprod, ends_in_pure_noise
from ..models.sibling import read_sibling
from ..models.single_file import outline_single_file
from .description import check_description, write_description
from .models import PART_TITLES
from .plan import check_output
from .progress import Emit, Progress
from .sources import BESIDE, BESIDE_FACTS, BESIDE_TENSORS, BESIDE_YAML, Source, meta_tensor, open_file, open_folder

_FORMAT = {"format": "pt"}
_ALPHA_TOLERANCE = 2e-3  # what half precision does to a schedule


@dataclass(frozen=True)
class Converted:
    """The written file or folder, the description beside it, and what it is, as `recognise` says; '' of a folder."""

    path: Path
    kind: str
    yaml: Path | None = None


def convert(config: ConvertConfig, control: JobControl, emit: Emit) -> Converted:
    """Write the same model in the format `config.to`; complete under its name, or nothing.

    Raises MergeError when there is nothing to convert, or a folder is asked for and the file is no complete checkpoint
    of Stable Diffusion 1, 2 or XL; FormatError for damaged files and pickles with code; JobStopped when asked to stop;
    otherwise as `write_atomic`.
    """
    path, output = Path(config.model), Path(config.folder) / f"{config.name}{FORMATS[config.to]}"
    _refuse_same_format(path, config.to)
    with ExitStack() as stack:
        source = open_folder(path, stack) if path.is_dir() else open_file(path, stack)
        size = sum(map(num_bytes, source.infos.values()))
        if config.to == "diffusers":
            _check_folder(output, path, size, overwrite=config.overwrite)
            _warn_of_lists(output.parent, emit)
            return _to_folder(path, source, output, control, emit, overwrite=config.overwrite)
        check_output(output, source.paths, size, overwrite=config.overwrite)
        kind, description = recognise(source.infos).kind, source.yaml_for(output.parent)
        if description is not None or kind in ("checkpoint", "unet"):
            check_description(output, description, overwrite=config.overwrite)
        output.parent.mkdir(parents=True, exist_ok=True)
        progress = Progress("convert", len(source.infos), control, emit)
        _write_file(source, output, _counted(source.read, progress), emit, overwrite=config.overwrite)
        yaml = write_description(output, description, overwrite=config.overwrite)
        return Converted(output, kind, yaml)


def _refuse_same_format(path: Path, wanted: str) -> None:
    is_same = path.is_dir() if wanted == "diffusers" else path.suffix.lower() == FORMATS[wanted]
    if is_same:
        kind = "a folder" if path.is_dir() else f"a {path.suffix} file"
        raise MergeError(
            f"{path.name} is {kind} already; there is nothing to convert.",
            "Choose another format; prune gives the same format with other numbers.",
        )


def _counted(read: Callable[[str], Tensor], progress: Progress) -> Callable[[str], Tensor]:
    def counting(name: str) -> Tensor:
        progress.advance()
        return read(name)

    return counting


def _write_file(source: Source, output: Path, read: Callable[[str], Tensor], emit: Emit, *, overwrite: bool) -> None:
    if output.suffix == ".safetensors":
        metadata = {**source.metadata, **_FORMAT}
        write_tensors_as_made(output, source.infos, read, metadata, overwrite=overwrite)
        return
    if set(source.metadata) - set(_FORMAT):
        emit(Warned(text="A .ckpt has no place for metadata; the recipe and what else stood there is not in it."))
    write_checkpoint(output, {name: read(name) for name in source.infos}, {}, overwrite=overwrite)


def _check_folder(output: Path, source: Path, size: int, *, overwrite: bool) -> None:
    if output.exists() and source.absolute().is_relative_to(output.absolute()):
        raise OutputError(f"{output} holds the model to convert.", "Choose another name for the result.")
    if output.exists() and not overwrite:
        raise OutputError(f"{output} already exists and was not touched.", "Choose another name, or allow overwriting.")
    check_output(output / "model_index.json", [source], size, overwrite=overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)


def _warn_of_lists(folder: Path, emit: Emit) -> None:
    """A WebUI takes every file below its checkpoint folder for a checkpoint."""
    if any(path.suffix in (".safetensors", ".ckpt") for path in folder.iterdir()):
        emit(
            Warned(
                text=f"{folder} holds checkpoints. If it is a WebUI's, the networks in the new folder are listed there "
                "as checkpoints, too; move it elsewhere."
            )
        )


def _to_folder(
    path: Path, source: Source, output: Path, control: JobControl, emit: Emit, *, overwrite: bool
) -> Converted:
    outline = _outline(path, source)
    facts = read_sibling(path, outline.family)
    parts = [_part(part, module, outline, source) for part, module in outline.parts.items()]
    used = {name for part in parts for name in part.sources.values()}
    passengers = {name: info for name, info in source.infos.items() if name not in used}
    count = sum(len(part.infos) for part in parts) + len(passengers)
    progress = Progress("convert", count, control, emit)
    yaml = source.yaml_for(output)

    def write(folder: Path) -> None:
        write_folder_texts(outline, facts, folder)
        for part in parts:
            target = folder / part.file
            write_tensors_as_made(target, part.infos, _counted(part.reader(source), progress), _FORMAT)
        (folder / BESIDE).mkdir()
        if passengers:
            read = _counted(source.read, progress)
            write_tensors_as_made(folder / BESIDE_TENSORS, passengers, read, _FORMAT)
        said = {key: text for key, text in source.metadata.items() if key not in HASH_KEYS}
        facts_text = json.dumps({"version": __version__, "metadata": said}, ensure_ascii=False)
        (folder / BESIDE_FACTS).write_text(facts_text, encoding="utf-8")
        if yaml is not None:
            (folder / BESIDE_YAML).write_bytes(yaml)

    def is_model(folder: Path) -> bool:
        return (folder / "model_index.json").is_file()

    write_folder_atomic(output, write, overwrite=overwrite, may_replace=is_model)
    return Converted(output, "")


@dataclass(frozen=True)
class _Part:
    """One network as a file of the folder: `infos` by its names there, `sources` their names in the single file.

    `make` gives a tensor under its name there from the one in the single file.
    """

    file: str
    infos: Mapping[str, TensorInfo]
    sources: Mapping[str, str]
    make: Callable[[str, Tensor], Tensor]

    def reader(self, source: Source) -> Callable[[str], Tensor]:
        """Gives each of its tensors."""

        def read(name: str) -> Tensor:
            if name not in self.sources:
                return torch.arange(self.infos[name].shape[-1])[None]
            return self.make(name, source.read(self.sources[name]))

        return read


def _part(part: str, module: nn.Module, outline: ModelBundle, source: Source) -> _Part:
    family, is_text = outline.family, outline.family.text_encoder(part) is not None
    renamed = modern_names({name: info.shape for name, info in source.infos.items()})
    checkpoint_names = {
        name: single for single, names in names_in_folder(part, module, family).items() for name in names
    }  # fmt: skip

    def make(name: str, tensor: Tensor) -> Tensor:
        return part_from_ldm(part, {checkpoint_names[name]: tensor}, module, family)[name].contiguous()

    sources = {name: renamed.get(single, single) for name, single in checkpoint_names.items()}
    infos = {name: describe_tensor(make(name, meta_tensor(source.infos[own]))) for name, own in sources.items()}
    if is_text:
        infos[POSITION_IDS] = TensorInfo("I64", (1, module.config.max_position_embeddings))
    return _Part(f"{part}/{TEXT_WEIGHTS if is_text else NETWORK_WEIGHTS}.safetensors", infos, sources, make)


def _outline(path: Path, source: Source) -> ModelBundle:
    """The networks on the meta device, with what the model predicts and its noise schedule.

    Raises MergeError for a file without a VAE or text encoder, UnsupportedModelError for a schedule of its own.
    """
    found = recognise(source.infos)
    missing = [part for part in ("vae", "text_encoder") if part not in found.parts]
    if "unet" in found.parts and missing:
        titles = " and no ".join(PART_TITLES[part] for part in missing)
        raise MergeError(
            f"{path.name} holds no {titles}; a folder for diffusers needs all networks.",
            "Merge it with a model that has them, or bake a VAE in.",
        )
    outline = outline_single_file(path, None)
    family = outline.family
    if family.is_probed and known_prediction_type(path, source.infos, family) is None:
        family = load_bundle(path, dtype=torch.float32).family
    return replace(outline, family=family, alphas_cumprod=_schedule(path, source, outline))


def _schedule(path: Path, source: Source, outline: ModelBundle) -> Tensor:
    """The yaml's schedule, or that with zero terminal SNR; what the file itself holds must be one of these."""
    if ALPHAS not in source.infos or outline.family.has_size_conditioning:
        return outline.alphas_cumprod
    stored = check_alphas_cumprod(source.read(ALPHAS), path.name)
    if ends_in_pure_noise(stored) or torch.allclose(stored, outline.alphas_cumprod, atol=_ALPHA_TOLERANCE):
        return stored
    raise UnsupportedModelError(
        f"{path.name} has a noise schedule of its own, which a folder for diffusers cannot say.",
        "Use it as a single file.",
    )
