"""Start values by purpose and by model family. A preset is a partial job; what the user gives wins over it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .because import Because, merge, plain, with_paths
from .families import ALL, FAMILY_NAMES, OVERLAYS, PARTS
from .purposes import PURPOSES

AUTO = "auto"  # the base model's family, which whoever has the file finds out

__all__ = [
    "AUTO", "FAMILY_NAMES", "PRESETS", "Because", "default_preset", "merge", "method_of", "preset_reasons",
    "preset_values",
]  # fmt: skip


def preset_values(name: str, family: str = AUTO) -> dict[str, Any]:
    """The partial job of a preset for a family of FAMILY_NAMES, AUTO is 'sd1'. Raises KeyError for an unknown one."""
    return plain(_laid(name, family))


def preset_reasons(name: str, family: str = AUTO) -> dict[str, Because]:
    """Value and reason of each setting of a preset by path. Raises KeyError for an unknown one."""
    return dict(with_paths(_laid(name, family)))


def method_of(name: str) -> str:
    """The method a preset is for. Raises KeyError for an unknown one."""
    return _base(name)["method"]["kind"]


def default_preset(method_kind: str) -> str:
    """The first preset of a method. Raises KeyError when there is none."""
    for name, values in PRESETS.items():
        if values["method"]["kind"] == method_kind:
            return name
    raise KeyError(method_kind)


def _base(name: str) -> dict[str, Any]:
    purpose = PURPOSES[name]
    return merge(_base(purpose.like), purpose.values) if purpose.like else dict(purpose.values)


def _laid(name: str, family: str) -> dict[str, Any]:
    """The preset with the overlays of its family, the reasons still in it."""
    table = _base(name)
    for overlay in _overlays(name, table["method"]["kind"], family):
        table = merge(table, overlay)
    return table


def _overlays(name: str, kind: str, family: str) -> Iterator[Mapping[str, Any]]:
    for part in PARTS["sd1" if family == AUTO else family]:
        overlay = OVERLAYS[part]
        yield from (overlay[scope] for scope in (ALL, kind, name) if scope in overlay)


PRESETS: dict[str, dict[str, Any]] = {name: preset_values(name) for name in PURPOSES}
