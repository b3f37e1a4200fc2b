"""The models of a merge as their headers show them: family, parts, names and shapes of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from ..errors import MergeError
from ..formats.passengers import AVERAGED
from ..formats.recognise import Recognised, recognise
from ..formats.safetensors_io import TensorInfo
from ..formats.tensor_file import TensorFile
from ..models.family import SD1, SD2, SDXL
from ..models.ldm import modern_names
from ..models.prediction import known_prediction_type
from .blocks import BLOCK_MAPS

FAMILIES = {family.name: family for family in (SD1, SD2, SDXL)}
# What each part of a checkpoint begins with; the rest (schedules, markers) is no weight of the model.
PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "unet": ("model.diffusion_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner."),
    "vae": ("first_stage_model.",),
})  # fmt: skip
PART_TITLES = {"unet": "UNet", "text_encoder": "text encoder", "vae": "VAE"}
VAE_PREFIX = PARTS["vae"][0]
INPUT_WEIGHT = "model.diffusion_model.input_blocks.0.0.weight"


@dataclass(frozen=True)
class Model:
    """A checkpoint's header. `infos` are under present-day names; `renamed` maps those the file calls otherwise.

    `averaged` are the copies of the weights that a training averaged, under the file's own names (`model_ema.`).
    """

    path: Path
    infos: Mapping[str, TensorInfo]
    renamed: Mapping[str, str]
    metadata: Mapping[str, str]
    recognised: Recognised
    prediction_type: str | None = None
    averaged: Mapping[str, TensorInfo] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """'sd1', 'sd2' or 'sdxl'."""
        return self.recognised.family

    def names(self, part: str) -> list[str]:
        """The tensors of one part, in the file's order."""
        return [name for name in self.infos if name.startswith(PARTS[part])]

    def read(self, file: TensorFile, name: str) -> Tensor:
        """A tensor by its present-day name."""
        return file.read(self.renamed.get(name, name))


def read_model(path: Path) -> Model:
    """A checkpoint. Its tensors are not read, unless it is a pickle.

    Raises FormatError for damaged files and pickles with code, ModelError for a missing file; MergeError for anything
    but a single-file checkpoint of Stable Diffusion 1, 2 or XL.
    """
    if path.is_dir():
        raise MergeError(f"{path} is a folder; a single file is needed.", "Convert it to a single checkpoint first.")
    with TensorFile(path) as file:
        infos, metadata = dict(file.infos), dict(file.metadata)
    renamed = modern_names({name: info.shape for name, info in infos.items()})
    modern = {old: new for new, old in renamed.items()}
    averaged = {name: info for name, info in infos.items() if name.startswith(AVERAGED)}
    infos = {modern.get(name, name): info for name, info in infos.items() if name not in averaged}
    recognised = recognise(infos)
    is_checkpoint = recognised.kind in ("checkpoint", "unet") and INPUT_WEIGHT in infos
    if not is_checkpoint or recognised.family not in BLOCK_MAPS:
        what = f"{recognised.family} {recognised.kind}".strip()
        if not recognised.family and recognised.kind in ("checkpoint", "unet"):
            what += " of no known family"
        raise MergeError(
            f"{path.name} is no checkpoint that can be used here: it was recognised as '{what}'.",
            "Choose single-file checkpoints of Stable Diffusion 1, 2 or XL.",
        )
    prediction_type = known_prediction_type(path, infos, FAMILIES[recognised.family])
    return Model(path, infos, renamed, metadata, recognised, prediction_type, averaged)


@dataclass(frozen=True)
class VaeFile:
    """A file with a VAE; `names` maps names in a checkpoint to those in the file."""

    path: Path
    infos: Mapping[str, TensorInfo]
    names: Mapping[str, str]
    metadata: Mapping[str, str]

    def read(self, file: TensorFile, name: str) -> Tensor:
        """A tensor by its name in a checkpoint."""
        return file.read(self.names[name])


def read_vae(path: Path) -> VaeFile:
    """A VAE file (with or without `first_stage_model.`), or the VAE of a checkpoint. Raises as `read_model`."""
    with TensorFile(path) as file:
        found, metadata = dict(file.infos), dict(file.metadata)
    prefix = "" if "decoder.conv_in.weight" in found else VAE_PREFIX
    names = {VAE_PREFIX + name.removeprefix(prefix): name for name in found if name.startswith(prefix)}
    if VAE_PREFIX + "decoder.conv_in.weight" not in names:
        raise MergeError(f"{path.name} holds no VAE: no tensor decoder.conv_in.weight.", "Choose a VAE file.")
    return VaeFile(path, {name: found[own] for name, own in names.items()}, names, metadata)


def few(names: Iterable[str], limit: int = 3) -> str:
    """The first names of a list, for a message."""
    listed = list(names)
    return ", ".join(listed[:limit]) + (", ..." if len(listed) > limit else "")


def part_of(name: str) -> str | None:
    """'unet', 'text_encoder', 'vae', or None for what is no weight of the model."""
    return next((part for part, prefixes in PARTS.items() if name.startswith(prefixes)), None)
