"""A start value with its reason, and tables of them laid over each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Because:
    """A value and why it is this one, in one line."""

    value: Any
    reason: str


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`under` with the values of `over` put on top, table by table."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = merge(below, value)
        else:
            result[key] = value
    return result


def plain(table: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a table, without their reasons."""
    found = {}
    for key, value in table.items():
        found[key] = plain(value) if isinstance(value, Mapping) else getattr(value, "value", value)
    return found


def with_paths(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Because]]:
    """('training.num_samples', value and reason) of every value that has one."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from with_paths(value, f"{before}{key}.")
        elif isinstance(value, Because):
            yield f"{before}{key}", value
