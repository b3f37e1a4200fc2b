"""What a merge will do, tensor by tensor, decided from the files' headers: what does not fit is refused before work."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ..config.merge import FORMULAS, MODEL_LETTERS, MergeConfig
from ..errors import DiskFullError, MergeError, OutputError
from ..formats.safetensors_io import TensorInfo, num_bytes
from ..models.sibling import sibling_path
from .blocks import BLOCK_MAPS, BlockRatios, parse_ratios
from .catalogue import Ratios
from .fit import POSITION_IDS, check_families, check_part, label, merged_channels, plain_shape
from .models import PART_TITLES, PARTS, VAE_PREFIX, Model, VaeFile, few, part_of, read_model, read_vae

FILE_DTYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
_HEADER_ROOM = 4 << 20
_MB = 1e6


class Formats(Protocol):
    """Settings with the number formats of a result; `vae_dtype` may be 'keep'."""

    @property
    def dtype(self) -> str:
        """'fp16', 'bf16' or 'fp32'."""

    @property
    def vae_dtype(self) -> str:
        """The same for the VAE, or 'keep'."""


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the result, as it will be in the file.

    With `ratios` it is merged from all models (only the first `channels` of axis 1, if that is not None, the rest is
    A's); without it is taken from model number `source`; -1 is the VAE file.
    """

    info: TensorInfo
    ratios: Ratios | None = None
    source: int = 0
    channels: int | None = None


@dataclass(frozen=True)
class MergePlan:
    """A merge that fits: `tensors` by name, and what the user should know (`warnings`)."""

    config: MergeConfig
    models: tuple[Model, ...]
    vae: VaeFile | None
    output: Path
    tensors: dict[str, TensorPlan]
    warnings: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """The size of the result's tensors."""
        return sum(num_bytes(tensor.info) for tensor in self.tensors.values())

    @property
    def yaml(self) -> Path | None:
        """The description that the result needs beside it, because the model that gives the UNet has one."""
        path = sibling_path(self.models[unet_source(self.config)].path)
        return path if path.is_file() else None


def unet_source(config: MergeConfig) -> int:
    """The number of the model that the result's schedule, markers and description come from."""
    return 0 if config.unet == "merge" else MODEL_LETTERS.index(config.unet)


def plan_merge(config: MergeConfig, *, in_memory: bool = False) -> MergePlan:
    """Look at every file's header and decide. Nothing is written. `in_memory`: nor will it be, wherever it would go.

    Raises MergeError when the models do not fit each other or the settings, FormatError and ModelError for files that
    cannot be used, OutputError and DiskFullError when the result could not be written.
    """
    models = tuple(read_model(Path(model.path)) for model in config.models)
    check_families(models)
    vae = read_vae(Path(config.bake_vae)) if config.bake_vae else None
    tensors = {
        name: tensor
        for name, tensor in _tensor_plans(config, models, vae)
        if not (config.discard and re.search(config.discard, name))
    }
    if not tensors:
        raise MergeError(f"discard ({config.discard!r}) leaves nothing of the model.", "Discard less.")
    output = Path(config.folder) / f"{config.name}.safetensors"
    plan = MergePlan(config, models, vae, output, tensors, tuple(_warnings(config, models)))
    sources = [model.path for model in models] + ([vae.path] if vae else [])
    if not in_memory:
        check_output(output, sources, plan.num_bytes, overwrite=config.overwrite)
    return plan


def _tensor_plans(
    config: MergeConfig, models: Sequence[Model], vae: VaeFile | None
) -> Iterator[tuple[str, TensorPlan]]:
    ratios_of = _ratio_maker(config, models)
    for part in PARTS:
        chosen = getattr(config, part)
        if part == "vae" and vae is not None:
            yield from _baked(config, models, vae)
        elif chosen == "merge":
            names = set(check_part(models, part))
            for name in models[0].names(part):
                plan = TensorPlan(result_info(config, models[0].infos[name], name))
                if name in names:
                    plan = replace(plan, ratios=ratios_of(name), channels=merged_channels(name, models))
                yield name, plan
        else:
            yield from _taken(config, models, part, MODEL_LETTERS.index(chosen))
    lead = unet_source(config)
    for name, info in models[lead].infos.items():
        if part_of(name) is None:
            yield name, TensorPlan(info, source=lead)


def _taken(config: MergeConfig, models: Sequence[Model], part: str, source: int) -> Iterator[tuple[str, TensorPlan]]:
    model = models[source]
    if not model.names(part):
        raise MergeError(f"{label(source, model)} holds no {PART_TITLES[part]}.", f"Set {part} to another model.")
    for name in model.names(part):
        yield name, TensorPlan(result_info(config, model.infos[name], name), source=source)


def _baked(config: MergeConfig, models: Sequence[Model], vae: VaeFile) -> Iterator[tuple[str, TensorPlan]]:
    names = models[0].names("vae") or list(vae.infos)
    missing = [name for name in names if name not in vae.infos]
    if missing:
        raise MergeError(
            f"{vae.path.name} lacks {len(missing)} tensors of the VAE: {few(missing)}.", "Choose a complete VAE file."
        )
    known = models[0].infos
    wrong = [
        name for name in names if name in known and plain_shape(vae.infos[name].shape) != plain_shape(known[name].shape)
    ]
    if wrong:
        raise MergeError(
            f"{vae.path.name} does not fit: {len(wrong)} tensors have another shape ({few(wrong)}).",
            "Choose a VAE for this family of models.",
        )
    for name in names:
        info = result_info(config, vae.infos[name], name)
        yield name, TensorPlan(replace(info, shape=known[name].shape if name in known else info.shape), source=-1)


def result_info(formats: Formats, info: TensorInfo, name: str) -> TensorInfo:
    """The dtype in the result: whole numbers, schedules and markers stay, positions are int64, the VAE has a
    setting of its own.
    """
    if POSITION_IDS.search(name):
        return replace(info, dtype="I64")
    if part_of(name) is None:
        return info
    wanted = formats.vae_dtype if name.startswith(VAE_PREFIX) else formats.dtype
    if wanted == "keep" or not info.dtype.startswith(("F", "BF")):
        return info
    return replace(info, dtype=FILE_DTYPES[wanted])


class _ratio_maker:
    """The ratios of each tensor, from the texts of the settings."""

    def __init__(self, config: MergeConfig, models: Sequence[Model]) -> None:
        self._config = config
        formula = FORMULAS[config.formula]
        block_map = BLOCK_MAPS[models[0].family]

        def parsed(text: str, default: str) -> BlockRatios:
            return parse_ratios(text or default, block_map)

        self._alpha = parsed(config.alpha, formula.default_alpha)
        self._beta = parsed(config.beta, formula.default_beta)
        # Of two models, alpha is the weight of B.
        default = formula.default_alpha if formula.inputs == "weights" else "1"
        is_pair = config.formula == "weighted_sum" and not any(model.weight for model in config.models)
        self._weights = [parsed(config.alpha if is_pair else model.weight, default) for model in config.models[1:]]
        self._check_signs()

    def __call__(self, name: str) -> Ratios:
        config = self._config
        return Ratios(
            alpha=self._alpha.ratio(name),
            beta=self._beta.ratio(name),
            weights=tuple(weight.ratio(name) for weight in self._weights),
            density=config.density,
            epsilon=config.epsilon,
            top=config.top,
            seeds=tuple(key_seed(config.seed, name, index) for index in range(len(self._weights))),
        )

    def _check_signs(self) -> None:
        """TIES divides by the weights of those that agree."""
        for index, weight in enumerate(self._weights if self._config.formula == "ties" else ()):
            numbers = [*weight.by_block.values(), *(override.ratio for override in weight.overrides)]
            if min(numbers) <= 0:
                raise MergeError(
                    f"The weight of model {MODEL_LETTERS[index + 1].upper()} is {min(numbers):g} somewhere; "
                    "ties takes weights above 0.",
                    "Leave the model out, or use another formula.",
                )


def key_seed(seed: int, name: str, index: int) -> int:
    """The seed of one model's random numbers for one tensor: the same in whatever order tensors are merged."""
    digest = hashlib.sha256(f"{seed}\0{name}\0{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _warnings(config: MergeConfig, models: Sequence[Model]) -> Iterator[str]:
    told = {label(i, model): model.prediction_type for i, model in enumerate(models) if model.prediction_type}
    if len(set(told.values())) > 1:
        listed = ", ".join(f"{name}: {kind}" for name, kind in told.items())
        lead = MODEL_LETTERS[unet_source(config)].upper()
        yield f"The models predict different things ({listed}). The result is marked as {lead}, and may draw noise."
    if not models[0].names("vae") and config.vae == "merge" and not config.bake_vae:
        yield "The result has no VAE, as its models have none; choose one in the WebUI, or bake one in."
    if not models[0].names("text_encoder") and config.text_encoder == "merge":
        yield "The result has no text encoder, as its models have none."


def check_output(output: Path, sources: Sequence[Path], num_bytes: int, *, overwrite: bool) -> None:
    """Whether a result of this size can be written there, and replaces none of the files it is made from.

    Raises OutputError, DiskFullError.
    """
    if output.is_dir() or (os.path.lexists(output) and not overwrite):
        raise OutputError(f"{output} already exists and was not touched.", "Choose another name, or allow overwriting.")
    if any(output.exists() and output.samefile(source) for source in sources):
        raise OutputError(f"{output} is one of the files that it is made from.", "Choose another name for the result.")
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"{folder} cannot be written to.", "Choose another output folder.")
    needed, free = num_bytes + _HEADER_ROOM, shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(
            f"{output.name} needs {needed / _MB:.0f} MB, and {folder} has {free / _MB:.0f} MB of room.",
            "Free some space, or choose another folder.",
        )
