"""What each tool of `config.tools` does: settings to a file, complete under its name, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..config.artefacts import ARTEFACTS
from ..config.files import FORMATS, ConvertConfig, MetadataConfig, PruneConfig
from ..config.merge import MergeConfig
from ..config.networks import BakeConfig, CombineConfig, ConvertLoraConfig, ExtractConfig, ResizeConfig
from ..config.rebuild import RebuildConfig
from ..config.tool import ToolConfig
from ..config.tools import kind_of, source_files
from ..control import JobControl
from ..errors import ConfigError, Problem
from ..formats.safetensors_io import num_bytes
from .bake import bake, plan_bake
from .combine import combine
from .convert import convert
from .convert_lora import convert_lora
from .edit_metadata import edit_metadata
from .execute import execute
from .extract import extract
from .lora_files import WrittenLora
from .plan import check_output, plan_merge
from .progress import Emit
from .prune import plan_prune, prune
from .rebuild import rebuild
from .resize import resize
from .writing import HashOf, Merged


@dataclass(frozen=True)
class ToolResult:
    """The written file, those beside it, and what the user should know of it.

    `kind` is one of `config.artefacts.ARTEFACTS`, '' for what is none of them (a folder for diffusers, a VAE);
    `num_modules` is how many modules of a model a LoRA has.
    `is_as_asked` False: it was made, but is not what was wanted (the bytes of a rebuilt file differ).
    """

    path: Path
    kind: str
    text: str = ""
    beside: tuple[Path, ...] = ()
    num_modules: int = 0
    is_as_asked: bool = True


@dataclass(frozen=True)
class Outlook:
    """What is known of a result before any work; None where only the work itself shows it."""

    path: Path | None = None
    num_bytes: int | None = None
    warnings: tuple[str, ...] = ()


def foresee(config: ToolConfig) -> Outlook:
    """What can be told of a result from the headers of its files. Nothing is written.

    Raises ConfigError for files that are not there, and what the tool's plan raises, if it has one.
    """
    missing = [named for named in source_files(config) if not Path(named.path).exists()]
    if missing:
        problems = [Problem(named.setting, f"is {named.path}, which is not there") for named in missing]
        raise ConfigError(problems, "Choose a file that exists.")
    plan = PLANS.get(kind_of(config))
    return plan(config) if plan else Outlook()


def run_tool(config: ToolConfig, control: JobControl, emit: Emit, *, hash_of: HashOf = lambda path: None) -> ToolResult:
    """Do what the settings say. `hash_of` may know the sha256 of a file (64 digits) without reading it, None if not.

    Raises ExtensionError; there is then no file under the result's name, or the old one.
    """
    return RUNNERS[kind_of(config)](config, control, emit, hash_of)


def _plan_merge(config: MergeConfig) -> Outlook:
    plan = plan_merge(config)
    return Outlook(plan.output, plan.num_bytes, plan.warnings)


def _plan_bake(config: BakeConfig) -> Outlook:
    plan = plan_bake(config)
    return Outlook(plan.output, sum(map(num_bytes, plan.infos.values())), plan.warnings)


def _plan_prune(config: PruneConfig) -> Outlook:
    plan = plan_prune(config)
    return Outlook(plan.output, sum(map(num_bytes, plan.infos.values())))


def _plan_convert(config: ConvertConfig) -> Outlook:
    output = Path(config.folder) / f"{config.name}{FORMATS[config.to]}"
    if not (output.is_dir() and config.overwrite):
        check_output(output, [Path(config.model)], 0, overwrite=config.overwrite)
    return Outlook(output)


def _plan_metadata(config: MetadataConfig) -> Outlook:
    """The result may take the place of the file itself."""
    output = Path(config.folder) / f"{config.name}.safetensors"
    check_output(output, [], Path(config.file).stat().st_size, overwrite=config.overwrite)
    return Outlook(output)


def _plan_file(config: ToolConfig) -> Outlook:
    output = Path(config.folder) / f"{config.name}.safetensors"
    check_output(output, [Path(named.path) for named in source_files(config)], 0, overwrite=config.overwrite)
    return Outlook(output)


def _merge(config: MergeConfig, control: JobControl, emit: Emit, hash_of: HashOf) -> ToolResult:
    return _checkpoint(execute(plan_merge(config), control, emit, hash_of=hash_of))


def _bake(config: BakeConfig, control: JobControl, emit: Emit, hash_of: HashOf) -> ToolResult:
    return _checkpoint(bake(plan_bake(config), control, emit, hash_of=hash_of))


def _extract(config: ExtractConfig, control: JobControl, emit: Emit, hash_of: HashOf) -> ToolResult:
    return _lora(extract(config, control, emit, hash_of=hash_of))


def _combine(config: CombineConfig, control: JobControl, emit: Emit, hash_of: HashOf) -> ToolResult:
    return _lora(combine(config, control, emit, hash_of=hash_of))


def _convert_lora(config: ConvertLoraConfig, control: JobControl, emit: Emit, hash_of: HashOf) -> ToolResult:
    return _lora(convert_lora(config, control, emit, hash_of=hash_of))


def _resize(config: ResizeConfig, control: JobControl, emit: Emit, hash_of: HashOf) -> ToolResult:
    return _lora(resize(config, control, emit, hash_of=hash_of))


def _prune(config: PruneConfig, control: JobControl, emit: Emit, hash_of: HashOf) -> ToolResult:
    pruned = prune(plan_prune(config), control, emit, hash_of=hash_of)
    return replace(_checkpoint(pruned.merged), text=pruned.text)


def _convert(config: ConvertConfig, control: JobControl, emit: Emit, hash_of: HashOf) -> ToolResult:
    converted = convert(config, control, emit)
    return ToolResult(converted.path, _listed(converted.kind), beside=(converted.yaml,) if converted.yaml else ())


def _metadata(config: MetadataConfig, control: JobControl, emit: Emit, hash_of: HashOf) -> ToolResult:
    edited = edit_metadata(config, control, emit)
    beside = (edited.yaml,) if edited.yaml else ()
    return ToolResult(edited.path, _listed(edited.kind), edited.text, beside=beside)


def _listed(kind: str) -> str:
    """The kind of a file, as far as the WebUI lists it: UNets alone count as checkpoints."""
    return "checkpoint" if kind == "unet" else kind if kind in ARTEFACTS else ""


def _rebuild(config: RebuildConfig, control: JobControl, emit: Emit, hash_of: HashOf) -> ToolResult:
    output = Path(config.folder) / f"{config.name}.safetensors"
    folders = [Path(each.path) for each in config.models]
    source = Path(config.file)
    result = rebuild(source, folders, output, control, emit, overwrite=config.overwrite, hash_of=hash_of)
    made = _lora(result.made) if isinstance(result.made, WrittenLora) else _checkpoint(result.made)
    if result.is_same is None:
        return made
    text = f"The bytes are {'' if result.is_same else 'not '}those of {source}."
    return replace(made, text=text, is_as_asked=result.is_same)


def _checkpoint(merged: Merged) -> ToolResult:
    return ToolResult(merged.path, "checkpoint", beside=merged.beside)


def _lora(written: WrittenLora) -> ToolResult:
    num_modules = len(written.ranks) + written.num_others
    return ToolResult(written.path, "lora", _lora_text(written), written.beside, num_modules)


def _lora_text(written: WrittenLora) -> str:
    """'20 layers of rank 4 to 8, 2 of other kinds; left out: 3.10 % of the difference's length.'"""
    ranks = written.ranks
    spread = "" if not ranks else str(max(ranks)) if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
    kinds = [f"{len(ranks)} layers of rank {spread}"] if ranks else []
    kinds += [f"{written.num_others} of other kinds"] if written.num_others else []
    left_out = "" if written.error is None else f"; left out: {100 * written.error:.2f} % of the difference's length"
    return ", ".join(kinds) + left_out + "."


PLANS: dict[str, Callable[..., Outlook]] = {
    "merge": _plan_merge,
    "bake": _plan_bake,
    "extract": _plan_file,
    "combine": _plan_file,
    "resize": _plan_file,
    "convert-lora": _plan_file,
    "prune": _plan_prune,
    "convert": _plan_convert,
    "metadata": _plan_metadata,
    "rebuild": _plan_file,
}
RUNNERS: dict[str, Callable[..., ToolResult]] = {
    "merge": _merge,
    "bake": _bake,
    "extract": _extract,
    "combine": _combine,
    "resize": _resize,
    "convert-lora": _convert_lora,
    "prune": _prune,
    "convert": _convert,
    "metadata": _metadata,
    "rebuild": _rebuild,
}
