"""A checkpoint made smaller and sound: what no model needs is left out, numbers are cast, positions and NaN repaired.

Read, looked at and written tensor by tensor. What is found is always told; without leave to repair it is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..config.files import PruneConfig
from ..control import JobControl
from ..errors import MergeError
from ..events import Warned
from ..formats.metadata import HASH_KEYS
from ..formats.passengers import AVERAGED, belongs_to_model
from ..formats.safetensors_io import DTYPES, TensorInfo, in_file_order, num_bytes
from ..formats.tensor_file import TensorFile
from ..models.ldm import POSITION_IDS
from ..models.sibling import sibling_path
from .fit import POSITION_IDS as ANY_POSITIONS
from .models import FAMILIES, PARTS, Model, few, part_of, read_model
from .plan import check_output, result_info
from .progress import Emit, Progress
from .recipe import Recipe, checkpoint_facts, lineage_metadata, modelspec, own_key, recipe_of, without_recipe
from .work import is_finite, making_ahead, num_threads
from .writing import HashOf, Merged, Writing, write_made

_UNET = PARTS["unet"][0]
_TABLE = "text_model.embeddings.position_embedding.weight"
_MB = 1e6


@dataclass(frozen=True)
class PrunePlan:
    """`infos` of the result, the name that each of its tensors has in the file, and what is left out, by its kind.

    Positions that the file lacks have no name there.
    """

    config: PruneConfig
    model: Model
    output: Path
    infos: dict[str, TensorInfo]
    names: dict[str, str]
    left_out: dict[str, dict[str, TensorInfo]]


@dataclass(frozen=True)
class Damage:
    """Numbers of one tensor that are NaN or infinite, and finite ones too large for the result's format."""

    num_not_finite: int
    num_too_large: int
    count: int

    def __str__(self) -> str:
        texts = (
            (self.num_not_finite, "NaN or infinite"),
            (self.num_too_large, "too large for the number format"),
        )
        return ", ".join(f"{number} of {self.count} numbers {what}" for number, what in texts if number)


@dataclass
class Findings:
    """What was seen while the tensors were read, by name."""

    damages: dict[str, Damage] = field(default_factory=dict)
    positions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Pruned:
    """The written file, and what was done to it, for the user."""

    merged: Merged
    text: str


def plan_prune(config: PruneConfig) -> PrunePlan:
    """Look at the file's header and decide. Nothing is written.

    Raises MergeError when the file is no checkpoint, or averaged weights are asked for and missing; FormatError and
    ModelError for a file that cannot be used; OutputError and DiskFullError when the result could not be written.
    """
    model = read_model(Path(config.model))
    kept = {name: name for name in model.infos if not _why_left_out(name, config)}
    infos = {name: result_info(config, model.infos[name], name) for name in kept}
    names = {name: model.renamed.get(name, name) for name in kept}
    if config.ema == "use":
        names |= _averaged_names(model, kept)
    infos |= _positions(model, kept)
    output = Path(config.folder) / f"{config.name}.safetensors"
    check_output(output, [model.path], sum(map(num_bytes, infos.values())), overwrite=config.overwrite)
    return PrunePlan(config, model, output, infos, names, _left_out(model, config, set(names.values())))


def prune(
    plan: PrunePlan,
    control: JobControl,
    emit: Emit,
    *,
    hash_of: HashOf = lambda path: None,
    recipe: Recipe | None = None,
) -> Pruned:
    """Write the checkpoint; complete under its name, or nothing. Arguments and errors as `merge.execute.execute`.

    Raises MergeError, naming every tensor, for NaN that may not be repaired and for numbers too large for the format.
    """
    yaml = sibling_path(plan.model.path)
    findings = Findings()
    writing = Writing(
        output=plan.output,
        infos=plan.infos,
        sources=[plan.model.path],
        recipe_of=lambda parents: recipe_of(plan.config, parents),
        metadata_of=lambda made: _metadata(made, plan.model),
        yaml=yaml if yaml.is_file() else None,
        overwrite=plan.config.overwrite,
    )
    merged = write_made(
        writing,
        lambda files: _tensors(plan, files[0], findings, control, emit),
        control,
        emit,
        hash_of=hash_of,
        recipe=recipe,
    )
    if findings.damages:
        emit(Warned(text=f"NaN and infinite numbers became 0:{_listed(findings.damages)}"))
    return Pruned(merged, _report(plan, findings))


def _why_left_out(name: str, config: PruneConfig) -> str:
    """What a tensor is that the result does not get; '' for what stays."""
    if not belongs_to_model(name):
        return "leftovers of a training"
    part = part_of(name)
    if part == "vae" and config.leave_out_vae:
        return "the VAE"
    if part == "text_encoder" and config.leave_out_text_encoder:
        return "the text encoders"
    return ""


def _left_out(model: Model, config: PruneConfig, used: set[str]) -> dict[str, dict[str, TensorInfo]]:
    kinds: dict[str, dict[str, TensorInfo]] = {}
    for name, info in model.averaged.items():
        if name not in used:
            kinds.setdefault("averaged weights", {})[name] = info
    for name, info in model.infos.items():
        if kind := _why_left_out(name, config):
            kinds.setdefault(kind, {})[name] = info
    return kinds


def _averaged_names(model: Model, kept: Iterable[str]) -> dict[str, str]:
    """The averaged tensor for each of the UNet's. LDM names it without the dots of the original."""
    found = {name: AVERAGED + name.removeprefix("model.").replace(".", "") for name in kept}
    found = {name: averaged for name, averaged in found.items() if name.startswith(_UNET)}
    missing = [
        name
        for name, averaged in found.items()
        if averaged not in model.averaged or model.averaged[averaged].shape != model.infos[name].shape
    ]
    if missing:
        text = "holds none" if len(missing) == len(found) else f"lacks {len(missing)} of them ({few(missing)})"
        raise MergeError(
            f"{model.path.name} {text}: averaged weights (model_ema.) of the UNet were asked for.",
            "Set ema to 'drop', or choose the file with them.",
        )
    return found


def _positions(model: Model, kept: Mapping[str, str]) -> dict[str, TensorInfo]:
    """The positions of each text encoder that counts them in its file, as older programs need them."""
    found = {}
    for kind in FAMILIES[model.family].text_encoders:
        table = kind.prefix + _TABLE
        if kind.layout == "clip" and table in kept:
            found[kind.prefix + POSITION_IDS] = TensorInfo("I64", (1, model.infos[table].shape[0]))
    return found


def _tensors(
    plan: PrunePlan, file: TensorFile, findings: Findings, control: JobControl, emit: Emit
) -> Iterator[tuple[str, Tensor]]:
    """All tensors in order; from the first that is refused on, the rest is only looked at, so that all are named."""
    reading = threading.Lock()

    def read(name: str) -> Tensor:
        with reading:
            return file.read(name)

    def make(name: str) -> Tensor:
        if ANY_POSITIONS.search(name):
            stored = read(plan.names[name]) if name in plan.names else None
            return _whole_positions(name, stored, plan.infos[name], findings)
        return _cast(name, read(plan.names[name]), plan, findings)

    names = list(in_file_order(plan.infos))
    progress = Progress("prune", len(names), control, emit)
    with making_ahead(make, names, num_threads()) as take:
        for name in names:
            tensor = take(name)
            progress.advance()
            if not any(_is_refused(damage, plan.config) for damage in list(findings.damages.values())):
                yield name, tensor
    _check(plan, findings)


def _whole_positions(name: str, stored: Tensor | None, info: TensorInfo, findings: Findings) -> Tensor:
    positions = torch.arange(info.shape[-1]).expand(info.shape).contiguous()
    if stored is None or stored.dtype != positions.dtype or not torch.equal(stored, positions):
        findings.positions.append(name)
    return positions


def _cast(name: str, tensor: Tensor, plan: PrunePlan, findings: Findings) -> Tensor:
    result = tensor.to(DTYPES[plan.infos[name].dtype]).contiguous()
    is_small = result.is_floating_point() and result.element_size() == 1  # float8, which torch cannot look at
    if is_finite(result.half() if is_small else result):
        return result
    num_not_finite = _num_not_finite(tensor)
    damage = Damage(num_not_finite, _num_not_finite(result) - num_not_finite, tensor.numel())
    findings.damages[name] = damage
    return torch.where(torch.isfinite(result), result, torch.zeros_like(result))


def _num_not_finite(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor)).sum())


def _is_refused(damage: Damage, config: PruneConfig) -> bool:
    return damage.num_too_large > 0 or config.nan == "refuse"


def _check(plan: PrunePlan, findings: Findings) -> None:
    refused = {name: each for name, each in findings.damages.items() if _is_refused(each, plan.config)}
    if not refused:
        return
    hints = []
    if any(each.num_not_finite for each in refused.values()):
        hints.append("Use another copy of this model, or set nan to 'zero' to write 0 for what is NaN or infinite.")
    if any(each.num_too_large for each in refused.values()):
        hints.append("Choose bf16 or fp32 for what is too large.")
    raise MergeError(
        f"Nothing was written: {len(refused)} tensors of {plan.model.path.name} cannot be:{_listed(refused)}",
        " ".join(hints),
    )


def _listed(damages: Mapping[str, Damage]) -> str:
    return "".join(f"\n  {name}: {damages[name]}" for name in sorted(damages))


def _report(plan: PrunePlan, findings: Findings) -> str:
    before, after = plan.model.path.stat().st_size, plan.output.stat().st_size
    lines = [f"{before / _MB:.1f} MB became {after / _MB:.1f} MB."]
    for kind, infos in plan.left_out.items():
        size = sum(map(num_bytes, infos.values())) / _MB
        listed = f": {few(sorted(infos), 5)}" if kind.startswith("leftovers") else ""
        lines.append(f"Left out: {kind} ({len(infos)} tensors, {size:.1f} MB){listed}.")
    if plan.config.ema == "use":
        lines.append("The UNet is the averaged one.")
    if findings.positions:
        lines.append(f"Written anew as whole numbers from 0: {few(sorted(findings.positions))}.")
    if findings.damages:
        lines.append(f"Became 0:{_listed(findings.damages)}")
    return "\n".join(lines)


def _metadata(recipe: Recipe, model: Model) -> dict[str, str]:
    """What the file said of itself stays, but not its hashes and recipe: that stands among the models."""
    said = {key: text for key, text in without_recipe(model.metadata).items() if key not in HASH_KEYS}
    return {
        **modelspec(recipe, model),
        **said,
        "format": "pt",
        **lineage_metadata(recipe, [model.metadata], "Prune", "", checkpoint_facts(recipe, model)),
        own_key("prune"): recipe.to_json(),
    }
