"""Texts made from the declarations: the reference tables of settings and start values, and a commented job file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from .field import Setting, settings_of
from .job import TrainJobConfig
from .methods import METHOD_CONFIGS
from .presets import (
    AUTO,
    FAMILY_NAMES,
    PRESETS,
    Because,
    default_preset,
    method_of,
    preset_reasons,
    preset_values,
)
from .tools import TOOLS


def reference_table() -> str:
    """All settings as Markdown tables, one a section."""
    parts = [f"## {title}\n\n{_table(cls, prefix)}" for title, cls, prefix in _sections()]
    return "\n\n".join(parts) + "\n"


def _sections() -> Iterator[tuple[str, type, str]]:
    yield "Job", TrainJobConfig, ""
    for kind, cls in METHOD_CONFIGS.items():
        yield f"Method {kind}", cls, "method."
    lists = {(inner.name, inner.option.item) for cls in METHOD_CONFIGS.values() for inner in settings_of(cls)}
    for name, item in sorted((entry for entry in lists if entry[1] is not None), key=lambda entry: entry[0]):
        yield f"Entries of method.{name}", item, ""
    for setting in settings_of(TrainJobConfig):
        if dataclasses.is_dataclass(setting.type):
            yield setting.name.capitalize(), setting.type, f"{setting.name}."
            for inner in settings_of(setting.type):
                if inner.option.item is not None:
                    yield f"Entries of {setting.name}.{inner.name}", inner.option.item, ""
    for kind, tool in TOOLS.items():
        yield f"Tool {kind}", tool.settings, ""
        if tool.files is not None:
            yield f"Entries of {tool.files.name} ({kind})", tool.files.option.item, ""


def _table(cls: type, prefix: str) -> str:
    rows = [
        f"| `{prefix}{setting.name}` | {_default(setting)} | {_accepted(setting)} | {setting.option.help} |"
        for setting in settings_of(cls)
        if not _is_section(setting)
    ]
    return "\n".join(["| Setting | Default | Accepted | Meaning |", "| --- | --- | --- | --- |", *rows])


def _is_section(setting: Setting) -> bool:
    return dataclasses.is_dataclass(setting.type) or setting.name == "method"


def _default(setting: Setting) -> str:
    if setting.required:
        return "required"
    return f"`{_toml(setting.default)}`"


def _accepted(setting: Setting) -> str:
    option = setting.option
    if option.choices:
        return ", ".join(option.choices)
    if setting.type is bool:
        return "true, false"
    if option.min is None and option.max is None:
        return "list of tables" if option.item else "text"
    high = "" if option.max is None else f" to {option.max:.10g}"
    return f"{option.min or 0:.10g}{high} {option.unit}".strip()


def presets_table() -> str:
    """All start values as Markdown: one table a preset, each value with its reason, then what other families need."""
    parts = []
    for name in PRESETS:
        rows = _reasons(preset_reasons(name))
        for family in FAMILY_NAMES:
            rows += _reasons(_differing(name, family), f"{family}: ")
        head = f"## {name}\n\nMethod `{method_of(name)}`; values without a family are those for Stable Diffusion 1.\n\n"
        parts.append(head + "\n".join(["| Setting | Value | Because |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def _reasons(reasons: Mapping[str, Because], before: str = "") -> list[str]:
    return [f"| {before}`{path}` | `{_toml(each.value)}` | {each.reason} |" for path, each in reasons.items()]


def _differing(name: str, family: str) -> dict[str, Because]:
    """What a family adds to the first, without what the one it is built on, 'sdxl' for 'sdxl_v', adds already."""
    built_on = family.removesuffix("_v") if family.endswith("_v") else "sd1"
    below = preset_reasons(name, built_on)
    return {path: each for path, each in preset_reasons(name, family).items() if below.get(path) != each}


def commented_job(kind: str, family: str = AUTO) -> str:
    """A job file (TOML) for a method: what must be given, then everything else, commented out, with its meaning.

    The values are those for base models of `family`.

    Raises KeyError for an unknown method.
    """
    preset = default_preset(kind)
    values = preset_values(preset, family)
    lines = [
        "# A Train Studio job. What is commented out has the value shown.",
        'name = "my-subject"',
        'base_model = "model.safetensors"',
        f'preset = "{preset}"   # {", ".join(name for name in PRESETS if PRESETS[name]["method"]["kind"] == kind)}',
        *_commented(TrainJobConfig, {"family": family}, skip=("name", "base_model", "preset")),
        "",
        "[dataset]",
        'folder = "pictures"',
        *_commented(_section_type("dataset"), values.get("dataset", {}), skip=("folder",)),
        "",
        "[method]",
        f'kind = "{kind}"',
        *_commented(METHOD_CONFIGS[kind], values["method"], skip=("kind",)),
    ]
    for section in ("training", "prior", "optimizer", "preview", "output"):
        lines += ["", f"[{section}]", *_commented(_section_type(section), values.get(section, {}))]
    return "\n".join(lines) + "\n"


def _section_type(name: str) -> type:
    return next(setting.type for setting in settings_of(TrainJobConfig) if setting.name == name)


def _commented(cls: type, preset: Mapping[str, Any], skip: tuple[str, ...] = ()) -> list[str]:
    lines = []
    for setting in settings_of(cls):
        if setting.name in skip or _is_section(setting):
            continue
        value = preset.get(setting.name, setting.default)
        accepted = f" ({_accepted(setting)})" if setting.option.choices else ""
        lines.append(f"# {setting.name} = {_toml(value)}   # {setting.option.help}{accepted}")
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value)
