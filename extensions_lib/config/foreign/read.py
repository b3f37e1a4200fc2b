"""Which program a table of settings comes from, and its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PureWindowsPath
from typing import Any

from ...errors import ConfigError, Problem
from ..codec import check_partial, dump, load
from ..field import settings_of
from ..job import TrainJobConfig
from ..json_text import parse_json
from ..presets import merge
from .kohya import from_kohya_config, from_kohya_metadata, is_kohya_config, is_kohya_metadata
from .onetrainer import from_onetrainer, is_onetrainer
from .plain import number, numbers, text, whole
from .recipe import NOTHING, Facts, Recipe, Rule, Said, rule, set_to, silent, translate

OWN_JOB = "a job of Train Studio"
OWN_FILE = "a file trained with Train Studio"
WEBUI = "an embedding of the WebUI's own Train tab"
WEBUI_HYPERNETWORK = "a hypernetwork of the WebUI's own Train tab"
TENSORS = "a file that says nothing of its training but what its tensors show"
_ACCEPTED = (
    "accepted are LoRA and embedding files, job files of Train Studio, config files of kohya's sd-scripts and configs "
    "of OneTrainer"
)
_SECTIONS = {setting.name for setting in settings_of(TrainJobConfig)}
# Of a job, what belongs to that run and not to the way it was trained.
_OF_THE_RUN = (("name",), ("output", "folder"), ("output", "runs_folder"), ("output", "overwrite"))


def recipe_of_table(table: Mapping[str, Any], num_pictures: int | None = None) -> Recipe:
    """The recipe in a TOML or JSON table. Raises ConfigError when no known program wrote it."""
    if {"method", "dataset"} & set(table) and set(table) <= _SECTIONS:
        check_partial(table)
        return Recipe(OWN_JOB, dict(table), base_model=str(table.get("base_model", "")))
    if is_onetrainer(table):
        return from_onetrainer(table, num_pictures)
    if is_kohya_config(table):
        return from_kohya_config(table, num_pictures)
    raise ConfigError([Problem("file", f"holds the settings of no program that we know; {_ACCEPTED}")])


def recipe_of_metadata(metadata: Mapping[str, str], seen: Facts, kind: str, num_pictures: int | None = None) -> Recipe:
    """The recipe in a model file of that `kind`, from its metadata and from `seen`, what its tensors show.

    `seen` has kohya's names for a LoRA, 'vectors', 'step', 'base' for an embedding, and the WebUI's names for a
    hypernetwork. Raises ConfigError for another file that says nothing of its training.
    """
    if "train_studio.job" in metadata:
        return _own(_parsed(metadata["train_studio.job"], "train_studio.job"))
    if "ot_config" in metadata:
        return from_onetrainer(_parsed(metadata["ot_config"], "ot_config"), num_pictures)
    if is_kohya_metadata(metadata):
        recipe = from_kohya_metadata(metadata, seen, num_pictures)
        ours = {"source": OWN_FILE} if "train_studio.version" in metadata else {}
        return _with_modelspec(replace(recipe, **ours), metadata)
    if kind == "lora":
        return _with_modelspec(replace(from_kohya_metadata({}, seen), source=TENSORS), metadata)
    if kind == "embedding":
        recipe = translate(WEBUI if seen.get("step") else TENSORS, seen, _EMBEDDING_RULES, "textual_inversion")
        return _with_modelspec(replace(recipe, base_model=str(seen.get("base") or "")), metadata)
    if kind == "hypernetwork":
        recipe = translate(WEBUI_HYPERNETWORK, seen, _HYPERNETWORK_RULES, kind)
        return replace(recipe, base_model=str(seen.get("sd_checkpoint_name") or ""))
    raise ConfigError([Problem("file", f"is a {kind} that says nothing of its training; {_ACCEPTED}")])


def _own(job: Mapping[str, Any]) -> Recipe:
    """Our own job: as it is, without what belongs to that one run."""
    config = load(job)
    table = dump(config)
    for *sections, name in _OF_THE_RUN:
        inner = table[sections[0]] if sections else table
        inner.pop(name, None)
    return Recipe(OWN_FILE, table, base_model=PureWindowsPath(config.base_model).name)


def _with_modelspec(recipe: Recipe, metadata: Mapping[str, str]) -> Recipe:
    """The recipe, and where it says nothing what the file's ModelSpec says."""
    facts = {name: metadata[name] for rule in _MODELSPEC_RULES for name in rule.names if metadata.get(name)}
    kind = recipe.table["method"]["kind"]
    spec = translate(recipe.source, facts, _MODELSPEC_RULES, kind)
    return replace(recipe, table=merge(spec.table, recipe.table), unmapped=(*recipe.unmapped, *spec.unmapped))


def _parsed(content: str, name: str) -> Mapping[str, Any]:
    try:
        table = parse_json(content)
    except ValueError as error:
        raise ConfigError([Problem(name, f"is damaged: {error}")]) from error
    if not isinstance(table, Mapping):
        raise ConfigError([Problem(name, f"must hold a table of settings, holds {type(table).__name__}")])
    return table


def _steps(value: Any, facts: Facts) -> Said:
    """The WebUI's step count; its batch is not in the file and is 1 unless the user changed it."""
    if not value:
        return NOTHING
    steps = whole(value)
    return Said({"training.num_samples": steps, "training.max_train_steps": 0}, f"{steps} steps as so many samples")


def _side(value: Any, facts: Facts) -> Said:
    """'512x768' as the side of a square of that area."""
    sides = numbers(value)
    return Said({"dataset.resolution_px": round((sides[0] * sides[-1]) ** 0.5 / 8) * 8})


_MODELSPEC_RULES: tuple[Rule, ...] = (
    rule("modelspec.resolution", _side),
    rule("modelspec.encoder_layer", set_to("training.clip_skip", whole)),
    rule("modelspec.description", set_to("output.description", text)),
)
_EMBEDDING_RULES: tuple[Rule, ...] = (
    rule("vectors", set_to("method.vectors_per_token", whole)),
    rule("step", _steps),
    *silent("base", "name"),
)


def _layers(value: Any, facts: Facts) -> Said:
    return Said({"method.layer_structure": ", ".join(f"{number(each):g}" for each in value)})


_HYPERNETWORK_RULES: tuple[Rule, ...] = (
    rule("layer_structure", _layers),
    rule("activation_func", set_to("method.activation", text)),
    rule("step", _steps),
    *silent("name", "widths", "sd_checkpoint_name", "sd_checkpoint"),
)
