"""The family of a job's base model, which decides the start values of its preset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.codec import load, read_table
from ..config.job import AUTO, TrainJobConfig
from ..errors import ExtensionError


def family_of(base_model: Any) -> str:
    """One of `presets.FAMILY_NAMES` for a checkpoint's path, 'auto' when that cannot be told.

    Why not is no matter here: the Check and the start say what is wrong with a base model.
    """
    if not isinstance(base_model, (str, Path)) or not str(base_model).strip():
        return AUTO
    from ..models.family_name import family_name

    try:
        return family_name(Path(base_model))
    except (ExtensionError, OSError, ValueError):
        return AUTO


def with_family(table: Mapping[str, Any]) -> dict[str, Any]:
    """`table` with the family of its base model, unless it names one."""
    if table.get("family", AUTO) != AUTO:
        return dict(table)
    found = family_of(table.get("base_model"))
    return dict(table) if found == AUTO else {**table, "family": found}


def read_job(path: Path) -> TrainJobConfig:
    """The job in a .toml or .json file, its preset that of its base model's family. Raises ConfigError."""
    return load(with_family(read_table(path)))
