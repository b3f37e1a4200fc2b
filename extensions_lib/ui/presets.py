"""Start values to choose from: the built-in presets of a method and the user's own, by the words the page uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config.methods import METHOD_CONFIGS
from ..config.presets import PRESETS, default_preset, merge
from ..errors import ConfigError, ExtensionError, Problem
from ..jobs.user_presets import UserPresets
from .wording import METHOD_TEXTS, METHOD_WORDS, PURPOSES

MINE = "Mine: "


@dataclass(frozen=True)
class StartValues:
    """One entry of 'For': a built-in preset, and what the user's own preset puts over it."""

    label: str
    preset: str
    table: Mapping[str, Any] = field(default_factory=dict)

    def job_table(self) -> dict[str, Any]:
        """A partial job with the preset and method named."""
        return merge({"preset": self.preset, "method": {"kind": PRESETS[self.preset]["method"]["kind"]}}, self.table)


def start_values(kind: str, mine: UserPresets) -> tuple[StartValues, ...]:
    """What a method can start from: built-in ones in their order, then the user's own by name."""
    built_in = [
        StartValues(PURPOSES.get(name, name), name)
        for name, table in PRESETS.items()
        if table["method"]["kind"] == kind
    ]
    return (*built_in, *_own(kind, mine))


def _own(kind: str, mine: UserPresets) -> list[StartValues]:
    """The user's own for a method; a file that is damaged or older than its settings is left out."""
    found = []
    for name in mine.names():
        try:
            table = mine.load(name)
        except ExtensionError:
            continue
        if isinstance(table.get("method"), Mapping) and table["method"].get("kind") == kind:
            preset = table.get("preset")
            known = preset in PRESETS and PRESETS[preset]["method"]["kind"] == kind
            found.append(StartValues(MINE + name, preset if known else default_preset(kind), table))
    return found


def chosen(label: str | None, kind: str, mine: UserPresets) -> StartValues:
    """The entry with this label, or the method's first. Raises ConfigError when a user's own is gone."""
    entries = start_values(kind, mine)
    for entry in entries:
        if entry.label == label:
            return entry
    if label and label.startswith(MINE):
        text = f"'{label.removeprefix(MINE)}' is not there any more"
        raise ConfigError([Problem("preset", text)], "Choose other start values.")
    return entries[0]


def label_of_preset(preset: str, kind: str) -> str:
    """What 'For' shows for a built-in preset of a job; '' or another method's: the method's first."""
    known = preset in PRESETS and PRESETS[preset]["method"]["kind"] == kind
    name = preset if known else default_preset(kind)
    return PURPOSES.get(name, name)


def method_text(unusable: Mapping[str, str]) -> str:
    """What each of the methods is good for, and why the others are not there."""
    kinds = [kind for _, kind in method_choices(unusable)]
    return " ".join([*(METHOD_TEXTS[kind] for kind in kinds if kind in METHOD_TEXTS), *unusable.values()])


def method_choices(unusable: Mapping[str, str]) -> list[tuple[str, str]]:
    """Label and kind of the methods whose results work in this host."""
    kinds = sorted(METHOD_CONFIGS, key=lambda kind: kind not in METHOD_WORDS or [*METHOD_WORDS].index(kind))
    return [(METHOD_WORDS.get(kind, kind), kind) for kind in kinds if kind not in unusable]
