"""Making a merged file again from its recipe and its models, found by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..config.tools import load_tool
from ..control import JobControl
from ..errors import FormatError, MergeError, ModelError
from ..events import Warned
from ..formats.safetensors_io import read_header
from .bake import OWN_BAKE, bake, plan_bake
from .execute import execute
from .plan import plan_merge
from .progress import Emit, hash_with_progress
from .prune import OWN_PRUNE, plan_prune, prune, prune_settings
from .recipe import OWN_RECIPE, Parent, Recipe, recipe_from_json
from .writing import HashOf, Merged

_MODEL_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin")


@dataclass(frozen=True)
class Rebuilt:
    """The file made again, and whether its bytes are those of the file the recipe was read from; None: it was not
    compared, because only the recipe was given.
    """

    merged: Merged
    is_same: bool | None


def read_recipe(path: Path) -> Recipe:
    """The recipe in a merged .safetensors file, or in a .json file that holds it.

    Raises FormatError for files without one, ModelError for a missing file.
    """
    if path.suffix.lower() == ".json":
        try:
            return recipe_from_json(path.read_text(encoding="utf-8"), path.name)
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror or error}.", "Check the name.") from error
    metadata = read_header(path)[1] if path.suffix.lower() == ".safetensors" else {}
    text = metadata.get(OWN_RECIPE) or metadata.get(OWN_BAKE) or metadata.get(OWN_PRUNE)
    if text is None:
        raise FormatError(f"{path.name} holds no recipe of a merge made here.", "Choose a file merged by Train Studio.")
    return recipe_from_json(text, path.name)


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
    otherwise as `read_recipe`, `plan_merge` and `execute`.
    """
    recipe = read_recipe(source)
    if recipe.version != __version__:
        emit(Warned(text=f"Made with version {recipe.version}, this is {__version__}: the bytes may differ."))
    wanted = {parent.sha256: parent for parent in recipe.parents}
    found = find_models(wanted, folders, control, emit, hash_of)
    missing = [f"{parent.name} ({sha256[:10]})" for sha256, parent in wanted.items() if sha256 not in found]
    if missing:
        searched = ", ".join(str(folder) for folder in folders)
        raise MergeError(
            f"{len(missing)} of {len(wanted)} models were not found below {searched}: {', '.join(missing)}.",
            "Name the folder that holds them; they may have another name, not other content.",
        )
    place = {"name": output.stem, "folder": str(output.parent), "overwrite": overwrite}
    if "networks" in recipe.settings:
        merged = bake(
            plan_bake(load_tool("bake", {**_bake_settings(recipe, found), **place})), control, emit, recipe=recipe
        )
    elif "ema" in recipe.settings:
        config = load_tool("prune", {**prune_settings(recipe, found), **place})
        merged = prune(plan_prune(config), control, emit, recipe=recipe).merged
    else:
        merged = execute(
            plan_merge(load_tool("merge", {**_settings(recipe, found), **place})), control, emit, recipe=recipe
        )
    if source.suffix.lower() == ".json":
        return Rebuilt(merged, None)
    hashes = {hash_with_progress(path, control, emit) for path in (source, merged.path)}
    return Rebuilt(merged, len(hashes) == 1)


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


def _settings(recipe: Recipe, found: Mapping[str, Path]) -> dict[str, object]:
    vae = str(found[recipe.vae.sha256]) if recipe.vae else ""
    return {**recipe.settings, "models": _entries(recipe.settings["models"], recipe.models, found), "bake_vae": vae}


def _bake_settings(recipe: Recipe, found: Mapping[str, Path]) -> dict[str, object]:
    base, *files = recipe.models
    networks = _entries(recipe.settings["networks"], files, found)
    return {**recipe.settings, "base": str(found[base.sha256]), "networks": networks}


def _entries(
    entries: Sequence[Mapping[str, object]], parents: Sequence[Parent], found: Mapping[str, Path]
) -> list[dict[str, object]]:
    """Entries of a list with the paths where their files are now."""
    return [
        {**entry, "path": str(found[parent.sha256])} for entry, parent in zip(entries, parents, strict=True)
    ]  # fmt: skip
