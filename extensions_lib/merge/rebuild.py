"""Making a file again from its recipe and its models, found by content."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..config.field import settings_of
from ..config.tools import TOOLS, load_tool, source_files
from ..control import JobControl
from ..errors import FormatError, MergeError, ModelError
from ..events import Warned
from ..formats.safetensors_io import read_header
from .bake import bake, plan_bake
from .combine import combine
from .convert_lora import convert_lora
from .execute import execute
from .extract import extract
from .lora_files import WrittenLora
from .plan import plan_merge
from .progress import Emit, hash_with_progress
from .prune import plan_prune, prune
from .recipe import Parent, Recipe, own_key, recipe_from_json, with_files, without_places
from .resize import resize
from .writing import HashOf, Merged

_MODEL_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin")

# The tools whose results can be made again: settings, control, listener, the recipe that is written -> the result.
MAKERS: dict[str, Callable[..., Merged | WrittenLora]] = {
    "merge": lambda config, control, emit, recipe: execute(plan_merge(config), control, emit, recipe=recipe),
    "bake": lambda config, control, emit, recipe: bake(
        plan_bake(replace(config, embeddings="drop")), control, emit, recipe=recipe
    ),
    "extract": lambda config, control, emit, recipe: extract(config, control, emit, recipe=recipe),
    "combine": lambda config, control, emit, recipe: combine(config, control, emit, recipe=recipe),
    "resize": lambda config, control, emit, recipe: resize(config, control, emit, recipe=recipe),
    "convert-lora": lambda config, control, emit, recipe: convert_lora(config, control, emit, recipe=recipe),
    "prune": lambda config, control, emit, recipe: prune(plan_prune(config), control, emit, recipe=recipe).merged,
}


@dataclass(frozen=True)
class Rebuilt:
    """What was made again, by which tool, and whether its bytes are those of the file the recipe was read from; None:
    it was not compared, because only the recipe was given.
    """

    made: Merged | WrittenLora
    tool: str
    is_same: bool | None


def read_recipe(path: Path) -> tuple[str, Recipe]:
    """The tool and the recipe of a .safetensors file made here, or of a .json file that holds a recipe.

    Raises FormatError for files without one, ModelError for a missing file.
    """
    if path.suffix.lower() == ".json":
        try:
            recipe = recipe_from_json(path.read_text(encoding="utf-8"), path.name)
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} cannot be read: {error}.", "Check the name.") from error
        return _tool_of(recipe, path), recipe
    metadata = read_header(path)[1] if path.suffix.lower() == ".safetensors" else {}
    tool = next((kind for kind in MAKERS if own_key(kind) in metadata), None)
    if tool is None:
        raise FormatError(
            f"{path.name} holds no recipe.", f"Choose a .safetensors file made by one of {', '.join(MAKERS)}."
        )
    return tool, recipe_from_json(metadata[own_key(tool)], path.name)


def _tool_of(recipe: Recipe, path: Path) -> str:
    """The tool that has all of a recipe's settings."""
    for kind in MAKERS:
        if recipe.settings.keys() <= {setting.name for setting in settings_of(TOOLS[kind].settings)}:
            return kind
    raise FormatError(f"{path.name}: the recipe is of no tool that is known here.", "Choose a file made here.")


def rebuild(
    source: Path,
    folders: Sequence[Path],
    output: Path,
    control: JobControl,
    emit: Emit,
    *,
    overwrite: bool = False,
    hash_of: HashOf = lambda path: None,
) -> Rebuilt:
    """Make the file that `source` describes again, as `output`, from models somewhere below `folders`.

    The models are known by size and sha256, whatever they are called now. Raises MergeError when one is not found;
    otherwise as `read_recipe` and the tool.
    """
    tool, recipe = read_recipe(source)
    if recipe.version != __version__:
        emit(Warned(text=f"Made with version {recipe.version}, this is {__version__}: the bytes may differ."))
    settings = without_places(TOOLS[tool].settings, recipe.settings)
    _check_recipe(source, tool, settings, recipe)
    _check_folders(folders)
    wanted = {parent.sha256: parent for parent in recipe.parents}
    found = find_models(wanted, folders, control, emit, hash_of)
    missing = [f"{parent.name} ({sha256[:10]})" for sha256, parent in wanted.items() if sha256 not in found]
    if missing:
        searched = ", ".join(str(folder) for folder in folders)
        raise MergeError(
            f"{len(missing)} of {len(wanted)} models were not found below {searched}: {', '.join(missing)}.",
            "Name the folder that holds them; they may have another name, not other content.",
        )
    place = {"name": output.name.removesuffix(".safetensors"), "folder": str(output.parent), "overwrite": overwrite}
    paths = [str(found[parent.sha256]) for parent in recipe.parents]
    config = load_tool(tool, {**with_files(TOOLS[tool].settings, settings, paths), **place})
    made = MAKERS[tool](config, control, emit, recipe)
    if source.suffix.lower() == ".json":
        return Rebuilt(made, tool, None)
    hashes = {hash_with_progress(path, control, emit) for path in (source, made.path)}
    return Rebuilt(made, tool, len(hashes) == 1)


def _check_recipe(source: Path, tool: str, settings: Mapping[str, Any], recipe: Recipe) -> None:
    """A recipe may have been edited. Raises ConfigError for its settings, FormatError for models it lacks."""
    num_named = len(source_files(load_tool(tool, settings)))
    if num_named != len(recipe.parents):
        raise FormatError(
            f"{source.name}: the recipe's settings name {num_named} files, it lists {len(recipe.parents)} models.",
            "Choose a file whose recipe was not changed.",
        )


def _check_folders(folders: Sequence[Path]) -> None:
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise MergeError(f"There is no folder {', '.join(missing)}.", "Name folders that hold the models.")


def find_models(
    wanted: Mapping[str, Parent], folders: Sequence[Path], control: JobControl, emit: Emit, hash_of: HashOf
) -> dict[str, Path]:
    """{sha256: path} of the models found below the folders. Only files of a size that is wanted are read."""
    found: dict[str, Path] = {}
    candidates = sorted({path for folder in folders for path in folder.rglob("*") if path.suffix in _MODEL_SUFFIXES})
    for path in candidates:
        sizes = {parent.size_bytes for sha256, parent in wanted.items() if sha256 not in found}
        if path.is_file() and path.stat().st_size in sizes:
            sha256 = hash_of(path) or hash_with_progress(path, control, emit)
            if sha256 in wanted:
                found.setdefault(sha256, path)
    return found
