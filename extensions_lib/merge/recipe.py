"""What a merged file says of its making: in the WebUI's form, for its page and other programs, and in ours, from which
the file can be made again.

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
from ..config.merge import FORMULAS
from ..errors import FormatError
from ..formats.lineage import HOST_MODELS, HOST_RECIPE
from ..formats.metadata import architecture
from .models import Model
from .plan import MergePlan, unet_source

OWN_RECIPE = "train_studio.merge"
PLACES = ("folder", "overwrite")  # settings that do not change the bytes


@dataclass(frozen=True)
class Parent:
    """A model file by content: sha256 of the whole file (64 digits), AutoV1 (8 digits), and its name at the time."""

    name: str
    sha256: str
    autov1: str
    size_bytes: int


@dataclass(frozen=True)
class Recipe:
    """The settings of a merge without places, and its models in order; `vae` is the VAE file baked in."""

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


def recipe_of(plan: MergePlan, parents: Sequence[Parent]) -> Recipe:
    """The recipe of a plan; `parents` are its models, then the VAE file if there is one."""
    models = tuple(parents[: len(plan.models)])
    vae = parents[len(models)] if plan.vae else None
    settings = {key: value for key, value in dump(plan.config).items() if key not in PLACES}
    settings["models"] = [
        {**model, "path": parent.name} for model, parent in zip(settings["models"], models, strict=True)
    ]
    settings["bake_vae"] = vae.name if vae else ""
    return Recipe(settings, models, vae)


def recipe_from_json(text: str, where: str) -> Recipe:
    """The inverse of `Recipe.to_json`; `where` begins the message. Raises FormatError for anything else."""
    try:
        content = json.loads(text)
        models = tuple(Parent(**model) for model in content["models"])
        vae = Parent(**content["vae"]) if content["vae"] else None
        return Recipe(dict(content["settings"]), models, vae, str(content["version"]))
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{where}: the recipe cannot be read ({error}).", "Choose a file merged here.") from error


def recipe_metadata(recipe: Recipe, plan: MergePlan) -> dict[str, str]:
    """The metadata of the merged file."""
    headers = [model.metadata for model in plan.models] + ([plan.vae.metadata] if plan.vae else [])
    model = plan.models[unet_source(plan.config)]
    return {
        "format": "pt",
        HOST_RECIPE: json.dumps(_host_recipe(recipe, model), ensure_ascii=False),
        HOST_MODELS: json.dumps(host_models(recipe.parents, headers), ensure_ascii=False),
        OWN_RECIPE: recipe.to_json(),
        **modelspec(recipe, model),
    }


def _host_recipe(recipe: Recipe, model: Model) -> dict[str, object]:
    """The keys of the WebUI's own merger; `model_hashes` names all models, of which it knows three."""
    settings = recipe.settings
    hashes = [parent.sha256 for parent in recipe.models]
    first, second, third = [*hashes, None, None][:3]
    return {
        "type": "train_studio",
        "primary_model_hash": first,
        "secondary_model_hash": second,
        "tertiary_model_hash": third,
        "interp_method": FORMULAS[settings["formula"]].title,
        "multiplier": _multiplier(settings),
        "save_as_half": settings["dtype"] == "fp16",
        "custom_name": settings["name"],
        "config_source": 0,
        "bake_in_vae": settings["bake_vae"] or "None",
        "discard_weights": settings["discard"],
        "is_inpainting": "inpainting" in model.recognised.variant,
        "is_instruct_pix2pix": "instruct-pix2pix" in model.recognised.variant,
        "model_hashes": hashes,
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
        found = json.loads(text) if text else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
