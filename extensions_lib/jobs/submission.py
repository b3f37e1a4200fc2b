"""From what a user fills in to a job that may be done in this host."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.codec import load
from ..config.field import Setting, settings_of
from ..config.files import ConvertConfig
from ..config.job import FOLDERS_BESIDE, TrainJobConfig
from ..config.methods import METHOD_CONFIGS, artefact_kind
from ..config.presets import PRESETS, merge
from ..config.tool import ToolConfig
from ..config.tools import KIND, TOOLS, kind_of, load_any_tool, source_files
from ..errors import ConfigError, ExtensionError, Problem
from ..ports import Host
from .access import check_access, path_of
from .families import with_family

# Settings of tools that name the folder for further files, with the kind of these.
BESIDE = {"embeddings_folder": "embedding"}


def prepare_job(table: Mapping[str, Any], host: Host) -> TrainJobConfig:
    """The settings of `table` with the host's own where it says nothing: base model, folders for result and runs.

    A base model may be named by the host's title of it. Raises ConfigError with every mistake, or AccessError.
    """
    filled = with_host_values(table, host)
    config = load(filled)
    if not config.dataset.folder.strip():  # would be the folder the server was started in
        raise ConfigError([Problem("dataset.folder", "is empty")], "Give the pictures, or the folder that holds them.")
    reason = host.unusable_methods().get(config.method.kind)
    if reason:
        raise ConfigError([Problem("method.kind", f"is {config.method.kind!r}, which is of no use here: {reason}")])
    check_access(config, host.access(), host)
    return load(with_family(filled))  # reads the base model's file, so not before it may be read


def prepare_tool(table: Mapping[str, Any], host: Host) -> ToolConfig:
    """The settings of a tool, named by the key 'tool', with the host's own folder where `table` gives none.

    Files may be named as the host lists them; models are looked for in its own folders unless others are given. Raises
    ConfigError with every mistake, or AccessError.
    """
    given = table.get("folder", "")
    given = given.strip() if isinstance(given, str) else given
    known = {KIND: str(table.get(KIND, "")), "folder": given or str(host.folders().work)}
    kind = known[KIND]
    files = _with_paths(TOOLS[kind].settings, table, host) if kind in TOOLS else table
    config = _with_folders_beside(load_any_tool({**files, **known}), host)
    check_access(config, host.access(), host)
    if not given:
        config = dataclasses.replace(config, folder=str(own_folder(config, host)))
        check_access(config, host.access(), host)
    return config


def _with_folders_beside(config: ToolConfig, host: Host) -> ToolConfig:
    """With the host's own folders for the further files of a result, where none are given."""
    results = host.folders().results
    empty = {name: str(results[kind]) for name, kind in BESIDE.items() if getattr(config, name, None) == ""}
    return dataclasses.replace(config, **empty)


def own_folder(config: ToolConfig, host: Host) -> Path:
    """Where the host looks for what a tool makes; beside the file it is made from when that is of no kind it knows."""
    if TOOLS[kind_of(config)].draws:
        return host.folders().grids
    if isinstance(config, ConvertConfig) and config.to == "diffusers":
        return host.folders().work / "diffusers"  # among checkpoints, the networks in it would be listed as such
    kind, results = TOOLS[kind_of(config)].makes, host.folders().results
    sources = source_files(config)
    if not kind and sources:
        kind = _kind_of_file(Path(sources[0].path))
    return results[kind] if kind in results else Path(sources[0].path).parent


def _kind_of_file(path: Path) -> str:
    """What a file holds, or a recipe makes; '' when that cannot be told."""
    from ..formats.inspect import describe_file
    from ..merge.rebuild import read_recipe

    try:
        if path.suffix.lower() == ".json":
            return TOOLS[read_recipe(path)[0]].makes
        return str(describe_file(path, with_hashes=False)["kind"])
    except (ExtensionError, OSError):
        return ""


def _with_paths(cls: type, table: Mapping[str, Any], host: Host) -> dict[str, Any]:
    """`table` with paths in place of titles; what is of the wrong type stays, for the strict reader to refuse."""
    filled = dict(table)
    for setting in settings_of(cls):
        value, option = table.get(setting.name), setting.option
        if not value and _lists_folders(setting):
            value = [str(host.folders().results[kind]) for kind in ("checkpoint", "lora")]
        if option.file and isinstance(value, str):
            filled[setting.name] = path_of(value, option.file, host)
        elif option.item is not None and isinstance(value, (list, tuple)):
            entries = [option.of_line(each) if isinstance(each, str) and option.of_line else each for each in value]
            filled[setting.name] = [
                _with_paths(option.item, each, host) if isinstance(each, Mapping) else each for each in entries
            ]
    return filled


def _lists_folders(setting: Setting) -> bool:
    """Whether a setting is a list of folders to look for models in."""
    item = setting.option.item
    return item is not None and any(each.option.file == "folder" for each in settings_of(item))


def with_host_values(table: Mapping[str, Any], host: Host) -> dict[str, Any]:
    """`table` with the host's base model and folders; what is not a table stays, for the strict reader to refuse."""
    filled = {**table, "base_model": _base_model(table.get("base_model", ""), host)}
    output = table.get("output", {})
    if not isinstance(output, Mapping):
        return filled
    folders = host.folders()
    kinds = {"folder": artefact_kind(method_kind(table)), **FOLDERS_BESIDE}
    own = {key: str(folders.results[kind]) for key, kind in kinds.items() if kind in folders.results}
    given = {key: value for key, value in output.items() if not (key in kinds and value == "")}
    filled["output"] = merge(own, {**given, "runs_folder": str(folders.runs)})
    return filled


def method_kind(table: Mapping[str, Any]) -> str:
    """The method a table asks for, by itself or through its preset; '' when it does not say."""
    method = table.get("method") or PRESETS.get(str(table.get("preset", "")), {}).get("method", "")
    kind = method.get("kind", "") if isinstance(method, Mapping) else method
    return kind if isinstance(kind, str) and kind in METHOD_CONFIGS else ""


def _base_model(given: Any, host: Host) -> Any:
    if given == "":
        selected = host.selected_base_model()
        if selected is None:
            raise ConfigError(
                [Problem("base_model", "is missing, and the WebUI has no checkpoint selected")], "Choose a checkpoint."
            )
        return str(selected)
    return path_of(given, "checkpoint", host) if isinstance(given, str) else given
