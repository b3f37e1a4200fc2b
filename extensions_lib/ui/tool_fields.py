"""The fields of the tools' forms, made from their declarations, and which of them a tool reads as it is set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..config.field import Setting, settings_of
from ..config.merge import FORMULAS, PART_SOURCES
from ..config.tool import ToolConfig
from ..config.tools import KIND, TOOLS
from ..errors import ExtensionError
from .fields import Field, Shown, entry_tables, shown_value, typed_value
from .wording import FILE_WORDS, TOOL_LABELS, words_of

SHARED = ("name", "overwrite")  # one control for all tools
SHARED_SECTION = "tool"
SLOTS = "abcdefgh"  # a list of files has a control for each of so many
SLOTS_AT_FIRST = 3  # further ones appear as these are filled
NONE = "(none)"  # of a file that need not be given


@dataclass(frozen=True)
class Arrangement:
    """What a tool does not read as it is set, by name, and files after the `max_files`-th. `text` says what it does."""

    unread: frozenset[str] = frozenset()
    max_files: int = len(SLOTS)
    text: str = ""


@dataclass(frozen=True)
class ToolField(Field):
    """One control of a tool; `section` is the tool's kind. `slot`: the letter of the entry, in a list of files."""

    slot: str = ""

    @property
    def name(self) -> str:
        """The setting's name; 'models_b_weight' in an entry of a list."""
        return f"{self.path[0]}_{self.slot}_{self.setting.name}" if self.slot else self.setting.name

    @property
    def label(self) -> str:
        """'Number format', 'Checkpoint B', 'Weight of B'."""
        option = self.setting.option
        if self.slot:
            letter = self.slot.upper()
            return (
                f"{FILE_WORDS[option.file]} {letter}"
                if option.file
                else f"{words_of_tool(self.section, self.setting)} of {letter}"
            )
        return (
            f"{words_of_tool(self.section, self.setting)} [{option.unit}]"
            if option.unit
            else words_of_tool(self.section, self.setting)
        )

    @property
    def is_source(self) -> bool:
        """Whether it is, or belongs to, a file without which the tool has nothing to do."""
        return bool(self.slot) or (self.setting.required and self.kind == "file")

    @property
    def info(self) -> str:
        """The help text; '' in an entry of a list, above which it stands for all."""
        return "" if self.slot else super().info


FORMULA_TITLES = {name: formula.title for name, formula in FORMULAS.items()}
PART_SOURCE_WORDS = {source: "merged" if source == "merge" else f"{source.upper()}'s own" for source in PART_SOURCES}
# Texts that may hold a number for each block, by the names of their settings.
RATIOS = {
    "merge": ("alpha", "beta", "weight"),
    "grid": ("alpha", "beta", "weight"),
    "bake": ("strength",),
    "combine": ("weight",),
}


def ratio_fields(kind: str) -> dict[str, str]:
    """Labels and ids of the controls of a tool that may hold block weights, those of single files last."""
    fields = sorted(tool_fields(kind), key=lambda field: field.slot)
    return {field.label: field.elem_id for field in fields if field.setting.name in RATIOS.get(kind, ())}


@lru_cache(maxsize=1)
def shared_fields() -> tuple[ToolField, ...]:
    """The controls that all tools have."""
    return tuple(ToolField(SHARED_SECTION, (s.name,), s) for s in settings_of(ToolConfig) if s.name in SHARED)


@lru_cache(maxsize=len(TOOLS) + 1)
def tool_fields(kind: str) -> tuple[ToolField, ...]:
    """The controls that a tool has for itself, in the order of their declaration."""
    return tuple(_declared(kind))


def _declared(kind: str) -> Iterator[ToolField]:
    for setting in settings_of(TOOLS[kind].settings):
        if setting.name in SHARED or is_the_hosts(setting):
            continue
        if not is_list_of_files(setting):
            yield ToolField(kind, (setting.name,), setting)
            continue
        for index, letter in enumerate(SLOTS):
            for inner in settings_of(setting.option.item):
                if inner.option.file or index >= TOOLS[kind].values_from:
                    yield ToolField(kind, (setting.name, inner.name), inner, slot=letter)


def is_the_hosts(setting: Setting) -> bool:
    """Whether it is no user's choice in a host: where results go, and the version of the format."""
    return setting.name == "schema_version" or setting.option.file == "folder"


def is_list_of_files(setting: Setting) -> bool:
    """Whether it has controls for each entry: a file that the host lists, and what belongs to it."""
    item = setting.option.item
    return item is not None and any(inner.option.file not in ("", "folder") for inner in settings_of(item))


def names_folders(field: ToolField) -> bool:
    """Whether folders to look in are typed into it, one a line."""
    item = field.setting.option.item
    return item is not None and any(each.option.file == "folder" for each in settings_of(item))


def words_of_choices(field: ToolField) -> dict[str, str]:
    """What the choices of a field are called on the page."""
    known = FORMULA_TITLES if is_merge_formula(field.setting) else {}
    if field.setting.option.choices == PART_SOURCES:
        known = PART_SOURCE_WORDS
    return {value: known.get(value, value) or NONE for value in field.setting.option.choices}


def is_merge_formula(setting: Setting) -> bool:
    """Whether it is the choice of how checkpoints are combined, which stands first in a form."""
    return setting.option.choices == tuple(FORMULAS)


def arrangement(kind: str, shown: Mapping[str, Shown]) -> Arrangement:
    """What a tool reads with what its controls show."""
    values = {field.setting.name: shown[field.key] for field in tool_fields(kind) if not field.slot}
    title = values.get("formula")
    if title in FORMULA_TITLES.values():
        name = next(name for name, words in FORMULA_TITLES.items() if words == title)
        return _of_formula(kind, name, shown)
    unread = {"threshold"} if values.get("criterion") == "rank" else set()
    if title == "concat":
        unread = {"rank", "criterion", "threshold"}
    return Arrangement(frozenset(unread))


def _of_formula(kind: str, name: str, shown: Mapping[str, Shown]) -> Arrangement:
    formula = FORMULAS[name]
    read = set(formula.settings)
    if {"alpha", "weight"} <= read and formula.inputs == "weights":  # a ratio of two models, weights of more
        has_weights = any(shown[f"{kind}.models_{letter}_weight"] for letter in SLOTS[1:])
        read.discard("alpha" if has_weights or _num_filled(kind, shown) > 2 else "weight")
    axes = {str(shown.get(f"{kind}.{axis}")) for axis in "xy"}  # of a sheet: the cells say what these are
    if "formula" in axes:
        return Arrangement(frozenset(axes - {"formula"}), text=formula.help)
    read -= axes
    unread = {setting for each in FORMULAS.values() for setting in each.settings} - read
    defaults = {"alpha": formula.default_alpha, "beta": formula.default_beta}
    filled_in = [
        f"{setting.capitalize()}, if empty: {number}." for setting, number in defaults.items() if setting in read
    ]
    text = " ".join([formula.help, *filled_in])
    return Arrangement(frozenset(unread | axes), formula.max_models or len(SLOTS), text)


def visible_keys(kind: str, shown: Mapping[str, Shown]) -> frozenset[str]:
    """The keys of a tool's own controls that are read, and so are seen."""
    arranged = arrangement(kind, shown)
    num_slots = min(max(SLOTS_AT_FIRST, _num_filled(kind, shown) + 1), arranged.max_files)
    return frozenset(
        field.key
        for field in tool_fields(kind)
        if field.setting.name not in arranged.unread and (not field.slot or SLOTS.index(field.slot) < num_slots)
    )


def arranging_keys(kind: str) -> tuple[str, ...]:
    """The controls after whose change others may appear or go."""
    fields = tool_fields(kind)
    slots = [field.key for field in fields if field.slot and field.setting.option.file]
    choices = [field.key for field in fields if field.setting.name in ("formula", "criterion", "x", "y")]
    return (*slots, *choices)


def _num_filled(kind: str, shown: Mapping[str, Shown]) -> int:
    """How many slots there are up to the last one with a file."""
    filled = [
        SLOTS.index(f.slot) for f in tool_fields(kind) if f.slot and f.setting.option.file and _text(shown[f.key])
    ]
    return max(filled, default=-1) + 1


def _text(shown: Shown) -> str:
    text = str(shown or "").strip()
    return "" if text == NONE else text


def shown_tool(kind: str, table: Mapping[str, Any]) -> dict[str, Shown]:
    """What the controls of a tool show for a table of its settings; missing ones show their default.

    Raises ExtensionError when a list is longer than the page has controls for.
    """
    shown: dict[str, Shown] = {}
    for field in (*shared_fields(), *tool_fields(kind)):
        missing = "" if field.setting.required else field.setting.default
        if field.slot:
            entries = _entries(kind, field.path[0], table)
            index = SLOTS.index(field.slot)
            value = entries[index][field.setting.name] if index < len(entries) else missing
        else:
            value = table.get(field.setting.name, missing)
        shown[field.key] = _shown(field, value)
    return shown


def _shown(field: ToolField, value: Any) -> Shown:
    if field.kind == "choice":
        return words_of_choices(field).get(value, value)
    if field.kind == "file" and not value:
        return None if field.setting.required and not field.slot else NONE
    return shown_value(field, value)


def _entries(kind: str, name: str, table: Mapping[str, Any]) -> list[dict[str, Any]]:
    setting = next(each for each in settings_of(TOOLS[kind].settings) if each.name == name)
    entries = entry_tables(setting, table.get(name, ()))
    if len(entries) > len(SLOTS):
        raise ExtensionError(
            f"The job has {len(entries)} {words_of(name, '').lower()}; the page has room for {len(SLOTS)}.",
            "Use its job.json on the command line, or the API.",
        )
    return entries


def read_tool(kind: str, shown: Mapping[str, Shown]) -> dict[str, Any]:
    """The table of a tool from what its controls show: what differs from the defaults, and nothing that is not seen."""
    table: dict[str, Any] = {KIND: kind}
    visible = visible_keys(kind, shown)
    for field in (*shared_fields(), *tool_fields(kind)):
        if field.slot or (field.section == kind and field.key not in visible):
            continue
        value = _typed(field, shown[field.key])
        is_missing = field.kind == "file" and not value
        if not is_missing if field.setting.required else value != field.setting.default:
            table[field.setting.name] = value
    for name in dict.fromkeys(field.path[0] for field in tool_fields(kind) if field.slot):
        entries = [_entry(kind, name, letter, shown, visible) for letter in filled_slots(kind, shown)]
        if entries:
            table[name] = entries
    return table


def filled_slots(kind: str, shown: Mapping[str, Shown]) -> str:
    """The letters of the slots with a file, of those that are read: an entry of the table each."""
    visible = visible_keys(kind, shown)
    filled = [
        f.slot
        for f in tool_fields(kind)
        if f.slot and f.setting.option.file and f.key in visible and _text(shown[f.key])
    ]
    return "".join(filled)


def _entry(kind: str, name: str, letter: str, shown: Mapping[str, Shown], visible: frozenset[str]) -> dict[str, Any]:
    fields = [f for f in tool_fields(kind) if f.slot == letter and f.path[0] == name and f.key in visible]
    return {field.setting.name: _typed(field, shown[field.key]) for field in fields}


def _typed(field: ToolField, shown: Shown) -> Any:
    if field.kind == "choice":
        return {words: value for value, words in words_of_choices(field).items()}.get(shown, shown)
    return typed_value(field, "" if shown == NONE else shown)


def tool_label(kind: str, path: str, slots: Sequence[str]) -> str:
    """The label for a path that an error names, such as 'alpha' or 'models[1].weight'; '' when it has none.

    `slots` are the letters of the entries of its list of files.
    """
    name, _, rest = path.partition("[")
    known = {field.path[0]: field for field in (*shared_fields(), *tool_fields(kind))}
    if name not in known:
        return ""
    field = known[name]
    if not field.slot:
        return field.label
    index, _, inner = rest.partition("]")
    if not index.isdigit() or int(index) >= len(slots):
        return words_of_tool(kind, TOOLS[kind].files)
    own = [each for each in tool_fields(kind) if each.path[0] == name and each.slot == slots[int(index)]]
    return next((each.label for each in own if each.setting.name == inner.removeprefix(".")), own[0].label)


def words_of_tool(kind: str, setting: Setting) -> str:
    """What a setting of a tool is called, without its unit."""
    name = setting.name
    return TOOL_LABELS.get(f"{kind}.{name}") or TOOL_LABELS.get(name) or words_of(name, setting.option.unit)
