"""What a file made here says of its making: in the WebUI's form, for its page and other programs, and in ours, from
which the file can be made again.

Neither holds a folder or a time: the same models and settings give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..config.codec import dump
from ..config.field import Setting, settings_of
from ..config.json_text import parse_json
from ..config.merge import FORMULAS
from ..config.tool import ToolConfig
from ..config.tools import kind_of, source_files
from ..errors import FormatError
from ..formats.lineage import HOST_MODELS, HOST_RECIPE
from ..formats.metadata import architecture
from .models import Model
from .plan import MergePlan, unet_source

_FOLDER = "folder"
_NO_RECIPE = ("train_studio.job", "train_studio.version")


@dataclass(frozen=True)
class Parent:
    """A model file by content: sha256 of the whole file (64 digits), AutoV1 (8 digits), and its name at the time."""

    name: str
    sha256: str
    autov1: str
    size_bytes: int


@dataclass(frozen=True)
class Recipe:
    """The settings of a tool without places, and its models in order; `vae` is the VAE file baked in by a merge."""

    settings: Mapping[str, Any]
    models: tuple[Parent, ...]
    vae: Parent | None = None
    version: str = __version__

    @property
    def parents(self) -> tuple[Parent, ...]:
        """All files it takes: the models, then the VAE."""
        return (*self.models, *((self.vae,) if self.vae else ()))

    def to_json(self) -> str:
        """As text; `recipe_from_json` reads it."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)


def own_key(kind: str) -> str:
    """What the recipe of a tool is called in a file's metadata."""
    return f"train_studio.{kind}"


def source_paths(config: ToolConfig) -> list[Path]:
    """The files that the settings name, in the order in which these are declared."""
    return [Path(named.path) for named in source_files(config)]


def recipe_of(config: ToolConfig, parents: Sequence[Parent]) -> Recipe:
    """The recipe of a file made so; `parents` are the files of `source_paths`, in that order."""
    told = {setting.name for setting in settings_of(type(config)) if not _is_place(setting)}
    settings = {key: value for key, value in dump(config).items() if key in told}
    settings = with_files(type(config), settings, [parent.name for parent in parents])
    has_vae = bool(settings.get("bake_vae"))
    models, vae = (parents[:-1], parents[-1]) if has_vae else (parents, None)
    return Recipe(settings, tuple(models), vae)


def with_files(cls: type, settings: Mapping[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """Settings of the dataclass `cls` with other names of their files, which are in the order of `source_paths`."""
    waiting, changed = iter(files), dict(settings)
    for setting in settings_of(cls):
        value = settings.get(setting.name)
        if _lists_files(setting):
            changed[setting.name] = [{**entry, "path": next(waiting)} for entry in value]
        elif _names_a_file(setting) and value:
            changed[setting.name] = next(waiting)
    return changed


def _lists_files(setting: Setting) -> bool:
    item = setting.option.item
    return item is not None and any(each.name == "path" and _names_a_file(each) for each in settings_of(item))


def _names_a_file(setting: Setting) -> bool:
    return setting.option.file not in ("", _FOLDER)


def _is_place(setting: Setting) -> bool:
    """It does not change the bytes of a result."""
    return setting.option.file == _FOLDER or setting.name == "overwrite"


def recipe_from_json(text: str, where: str) -> Recipe:
    """The inverse of `Recipe.to_json`; `where` begins the message. Raises FormatError for anything else."""
    try:
        content = parse_json(text)
        models = tuple(_parent(model) for model in content["models"])
        vae = _parent(content["vae"]) if content["vae"] else None
        if not isinstance(content["settings"], dict):
            raise ValueError("its settings are no table")
        return Recipe(content["settings"], models, vae, str(content["version"]))
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{where}: the recipe cannot be read ({error}).", "Choose a file made here.") from error


def _parent(told: Mapping[str, Any]) -> Parent:
    parent = Parent(**told)
    if not all(isinstance(text, str) for text in (parent.name, parent.sha256, parent.autov1)):
        raise ValueError("the name or a hash of a model is no text")
    return parent


def without_places(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the dataclass `cls` without folders, which no recipe has a say in."""
    places = {setting.name for setting in settings_of(cls) if _is_place(setting)}
    return {key: value for key, value in settings.items() if key not in places}


def recipe_metadata(recipe: Recipe, plan: MergePlan) -> dict[str, str]:
    """The metadata of the merged file."""
    headers = [model.metadata for model in plan.models] + ([plan.vae.metadata] if plan.vae else [])
    model = plan.models[unet_source(plan.config)]
    settings = recipe.settings
    facts = checkpoint_facts(recipe, model) | {
        "bake_in_vae": settings["bake_vae"] or "None",
        "discard_weights": settings["discard"],
    }
    return {
        "format": "pt",
        **lineage_metadata(recipe, headers, FORMULAS[settings["formula"]].title, _multiplier(settings), facts),
        own_key(kind_of(plan.config)): recipe.to_json(),
        **modelspec(recipe, model),
    }


def lineage_metadata(
    recipe: Recipe,
    headers: Sequence[Mapping[str, str]],
    method: str,
    multiplier: float | str,
    facts: Mapping[str, object] | None = None,
) -> dict[str, str]:
    """The recipe in the keys of the WebUI's own merger, and where the models come from, by their `headers`.

    `model_hashes` names all models, of which the WebUI knows three; `facts` are further keys of it.
    """
    hashes = [parent.sha256 for parent in recipe.models]
    first, second, third = [*hashes, None, None][:3]
    host = {
        "type": "train_studio",
        "primary_model_hash": first,
        "secondary_model_hash": second,
        "tertiary_model_hash": third,
        "interp_method": method,
        "multiplier": multiplier,
        "custom_name": recipe.settings["name"],
        **(facts or {}),
        "model_hashes": hashes,
    }
    return {
        HOST_RECIPE: json.dumps(host, ensure_ascii=False),
        HOST_MODELS: json.dumps(host_models(recipe.parents, headers), ensure_ascii=False),
    }


def without_recipe(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a header says besides how its file was made: for a file made from it, whose lineage holds that."""
    return {key: text for key, text in metadata.items() if not _is_recipe(key)}


def _is_recipe(key: str) -> bool:
    return key in (HOST_RECIPE, HOST_MODELS) or (key.startswith(own_key("")) and key not in _NO_RECIPE)


def checkpoint_facts(recipe: Recipe, model: Model) -> dict[str, object]:
    """What the WebUI's merger tells of a checkpoint besides."""
    return {
        "save_as_half": recipe.settings["dtype"] == "fp16",
        "config_source": 0,
        "bake_in_vae": "None",
        "discard_weights": "",
        "is_inpainting": "inpainting" in model.recognised.variant,
        "is_instruct_pix2pix": "instruct-pix2pix" in model.recognised.variant,
    }


def host_models(parents: Sequence[Parent], headers: Sequence[Mapping[str, str]]) -> dict[str, object]:
    """The models by hash, each with its own recipe, and their models too."""
    found: dict[str, object] = {}
    for parent, header in zip(parents, headers, strict=True):
        found[parent.sha256] = {
            "name": Path(parent.name).stem,
            "legacy_hash": parent.autov1,
            "sd_merge_recipe": _json_or_none(header.get(HOST_RECIPE)),
        }
        older = _json_or_none(header.get(HOST_MODELS))
        found |= {key: value for key, value in (older or {}).items() if key not in found}
    return found


def modelspec(recipe: Recipe, model: Model) -> dict[str, str]:
    """What ModelSpec tells of a checkpoint made from others, the UNet of `model` among them."""
    prediction_type = model.prediction_type or ""
    facts = {
        "sai_model_spec": "1.0.0",
        "architecture": architecture(model.family, prediction_type),
        "title": recipe.settings["name"],
        "merged_from": ", ".join(Path(parent.name).stem for parent in recipe.models),
        "prediction_type": {"v_prediction": "v", "epsilon": "epsilon"}.get(prediction_type, ""),
    }
    return {f"modelspec.{key}": value for key, value in facts.items() if value}


def _multiplier(settings: Mapping[str, Any]) -> float | str:
    """Alpha, or the weights of the models after A where they have some; a number where it is one."""
    weights = [model["weight"] for model in settings["models"][1:]]
    text = settings["alpha"] or FORMULAS[settings["formula"]].default_alpha
    if any(weights):
        text = " | ".join(weight or "1" for weight in weights)
    try:
        return float(text)
    except ValueError:
        return text


def _json_or_none(text: str | None) -> dict[str, Any] | None:
    try:
        found = parse_json(text) if text else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
