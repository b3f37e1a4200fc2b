"""A partial job as a job file (TOML) for people: with what it still needs, and notes on top."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .field import settings_of
from .job import TrainJobConfig
from .methods import METHOD_CONFIGS

# What a job must name and a recipe may leave open.
_OPEN = {"name": "my-subject", "base_model": "model.safetensors", "dataset.folder": "pictures"}
_MAX_VALUE = 100


def job_toml(table: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """A job file that `codec.read_job_file` accepts: `notes` as comments, and a line to change for what is open."""
    lines = [f"# {line}" for note in notes for line in note.splitlines()]
    lines += _lines(TrainJobConfig, table, "")
    for setting in settings_of(TrainJobConfig):
        if dataclasses.is_dataclass(setting.type) or setting.name == "method":
            inner = table.get(setting.name, {})
            cls = METHOD_CONFIGS[inner["kind"]] if setting.name == "method" else setting.type
            found = list(_lines(cls, inner, f"{setting.name}."))
            lines += ["", f"[{setting.name}]", *found] if found else []
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A value of a remark in one line, shortened when it is long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."


def _lines(cls: type, table: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for setting in settings_of(cls):
        value = table.get(setting.name)
        if isinstance(value, Mapping) or dataclasses.is_dataclass(setting.type):
            continue
        if value is None and prefix + setting.name in _OPEN:
            yield f"{setting.name} = {_toml(_OPEN[prefix + setting.name])}   # change this: {setting.option.help}"
        elif value is not None:
            yield f"{setting.name} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)
