"""From what a user fills in to a job that may be trained in this host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.codec import load
from ..config.job import FOLDERS_BESIDE, TrainJobConfig
from ..config.methods import METHOD_CONFIGS, artefact_kind
from ..config.presets import PRESETS, merge
from ..errors import ConfigError, Problem
from ..ports import Host
from .access import check_access
from .families import with_family


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
    paths = {model.title: str(model.path) for model in host.base_models()}
    return paths.get(given, given) if isinstance(given, str) else given
