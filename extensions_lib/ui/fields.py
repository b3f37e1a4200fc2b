"""The fields of the form, made from the declarations of the settings, and what they show. No gradio here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import UnionType
from typing import Any, Union, get_args, get_origin

from ..config.field import Setting, settings_of
from ..config.job import TrainJobConfig
from ..config.methods import METHOD_CONFIGS
from ..config.presets import AUTO, FAMILY_NAMES, default_preset, merge, preset_values
from ..config.preview import PreviewPrompt
from .wording import LABELS, PREVIEW_PROMPTS_TEXT, words_of

# Decided by the host, or by controls of their own.
NOT_SHOWN = {"job.schema_version", "job.preset", "output.folder", "output.runs_folder",
    "output.lora_folder", "output.embedding_folder", *(
    f"{kind}.kind" for kind in METHOD_CONFIGS)}  # fmt: skip
# On the upper part of the page, and not among the start values.
FAMILY = "job.family"  # follows from the base model; its control is hidden
ESSENTIAL = ("job.name", "job.base_model", FAMILY, "dataset.folder", "dataset.trigger_word")
PATHS = {"job.base_model", "job.vae", "dataset.folder", "dataset.validation_folder", "dataset.embeddings",
    "prior.folder", *(
    f"{kind}.start_from" for kind in METHOD_CONFIGS), "pivotal.embedding_start_from"}  # fmt: skip
PROMPTS = "preview.prompts"
PROMPT_SECTION = "prompt"
WITHOUT_TRIGGER_WORD = ("textual_inversion",)
# The page's own scripts, and the WebUI's, act on ids with these endings.
RESERVED_ENDINGS = ("_generate", "_interrupt", "_skip", "_results", "_gallery")
SMALL = 1e-3
LARGE = 10_000

Shown = str | float | bool | None


@dataclass(frozen=True)
class Field:
    """One control: a setting and where it stands in a job table.

    `methods` are the kinds it belongs to: several where one method has the settings of another; none: to all.
    `section` is 'job', 'dataset', ..., its first method kind, or 'prompt' for what all preview prompts share.
    """

    section: str
    path: tuple[str, ...]
    setting: Setting
    methods: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name in its section."""
        return self.setting.name

    @property
    def key(self) -> str:
        """'training.seed', 'lora.rank', 'prompt.seed': unique in the form."""
        return f"{self.section}.{self.name}"

    @property
    def label(self) -> str:
        """The control's label, with the unit."""
        unit = self.setting.option.unit
        words = LABELS.get(self.key) or words_of(self.setting.name, unit)
        if self.section == PROMPT_SECTION:
            words = f"Preview {words[:1].lower()}{words[1:]}"
        return f"{words} [{unit}]" if unit else words

    @property
    def info(self) -> str:
        """The help text, with the range where it tells something; '' when it would only repeat the label."""
        if self.key == PROMPTS:
            return PREVIEW_PROMPTS_TEXT
        option = self.setting.option
        if option.help.rstrip(".") == self.label.partition(" [")[0]:
            return ""
        if option.min is None or option.max is None or option.max > LARGE:
            return option.help
        return f"{option.help} {option.min:.10g} to {option.max:.10g}."

    @property
    def elem_id(self) -> str:
        """The id of the control on the page."""
        name = f"train_studio_{self.section}_{self.name}"
        return f"{name}_setting" if name.endswith(RESERVED_ENDINGS) else name

    @property
    def kind(self) -> str:
        """Which control it takes.

        'choice', 'file' (of those the host lists), 'switch', 'number', 'rate' (a number typed as text), 'lines' or
        'text'.
        """
        setting = self.setting
        types = _types(setting.type)
        if setting.option.file not in ("", "folder"):
            return "file"
        if setting.option.item is not None:
            return "lines"
        if setting.option.choices:
            return "choice"
        if bool in types:
            return "switch"
        if float in types and (str in types or (not setting.required and 0 < setting.default < SMALL)):
            return "rate"
        return "number" if float in types or int in types else "text"

    @property
    def is_path(self) -> bool:
        """Whether it names a file or folder of the machine."""
        return self.key in PATHS or bool(self.setting.option.file)

    @property
    def is_essential(self) -> bool:
        """Whether it stands on the upper part of the page and is no start value."""
        return self.key in ESSENTIAL

    def applies_to(self, kind: str) -> bool:
        """Whether a job of this method kind has the setting."""
        if self.key == "dataset.trigger_word":
            return kind not in WITHOUT_TRIGGER_WORD
        return not self.methods or kind in self.methods


def _types(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


@lru_cache(maxsize=1)
def all_fields() -> tuple[Field, ...]:
    """Every control of the form, in order."""
    return tuple(field for field in _declared() if field.key not in NOT_SHOWN)


def _declared() -> Iterator[Field]:
    for setting in settings_of(TrainJobConfig):
        if setting.name == "method":
            yield from _of_methods()
        elif dataclasses.is_dataclass(setting.type):
            for inner in settings_of(setting.type):
                yield Field(setting.name, (setting.name, inner.name), inner)
        else:
            yield Field("job", (setting.name,), setting)
    for setting in settings_of(PreviewPrompt):
        if not setting.required:
            yield Field(PROMPT_SECTION, ("preview", "prompts"), setting)


def _of_methods() -> Iterator[Field]:
    """A setting that a method has from another's declaration has one control for both."""
    kinds: dict[int, list[str]] = {}
    declared = [(kind, inner) for kind, cls in METHOD_CONFIGS.items() for inner in settings_of(cls)]
    for kind, setting in declared:
        kinds.setdefault(id(setting.option), []).append(kind)
    for kind, setting in declared:
        methods = tuple(kinds[id(setting.option)])
        if kind == methods[0]:
            yield Field(kind, ("method", setting.name), setting, methods)


def label_of(path: str, kind: str) -> str:
    """The label for a path that an error names, such as 'training.seed' or 'method.rank'; '' when it has none."""
    parts = tuple(path.partition("[")[0].split("."))
    for field in all_fields():
        if field.path == parts and field.applies_to(kind) and field.section != PROMPT_SECTION:
            return field.label
    return ""


def shown_values(table: Mapping[str, Any]) -> dict[str, Shown]:
    """What every control shows for a job table over the values of its preset; missing settings show their default.

    Settings of other methods show theirs too. The table must name a method.
    """
    kind = table["method"]["kind"]
    preset = table.get("preset") or default_preset(kind)
    full = merge(preset_values(preset, table.get("family", AUTO)), table)
    shared, lines = _prompt_lines(_prompts_setting(), full.get("preview", {}).get("prompts", ()))
    shown: dict[str, Shown] = {}
    for field in all_fields():
        if field.section == PROMPT_SECTION:
            shown[field.key] = shown_value(field, shared.get(field.setting.name, field.setting.default))
        elif field.key == PROMPTS:
            shown[field.key] = lines
        else:
            missing = "" if field.setting.required else field.setting.default
            known = full if field.applies_to(kind) or not field.methods else {}
            shown[field.key] = shown_value(field, _look_up(known, field.path, missing))
    return shown


def read_values(shown: Mapping[str, Shown], kind: str, preset: str) -> dict[str, Any]:
    """A job table from what the controls show: the method, the preset, and what differs from its values."""
    table: dict[str, Any] = {"preset": preset, "method": {"kind": kind}}
    if shown.get(FAMILY) in FAMILY_NAMES:
        table["family"] = shown[FAMILY]
    start = shown_values(table)
    for field in all_fields():
        if field.section == PROMPT_SECTION or field.key == PROMPTS or not field.applies_to(kind):
            continue
        value = typed_value(field, shown[field.key])
        if field.setting.required or value != typed_value(field, start[field.key]):
            _put(table, field.path, value)
    prompts = _prompts(shown)
    if prompts:
        _put(table, ("preview", "prompts"), prompts)
    return table


def _look_up(table: Mapping[str, Any], path: Sequence[str], missing: Any) -> Any:
    value: Any = table
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return missing
        value = value[name]
    return value


def _put(table: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        table = table.setdefault(name, {})
    table[path[-1]] = value


def shown_value(field: Field, value: Any) -> Shown:
    """What a field's control shows for a value of its setting."""
    if field.kind == "lines":
        return "\n".join(_line(field.setting, entry) for entry in entry_tables(field.setting, value))
    if field.kind == "rate" and not isinstance(value, str):
        return repr(float(value)).replace("e-0", "e-")
    return value


def typed_value(field: Field, shown: Shown) -> Any:
    """What a control shows, as the setting's value; what cannot be read stays as it is, for `codec.load` to name."""
    if field.kind == "lines":
        return _entries(field.setting, shown)
    types = _types(field.setting.type)
    if isinstance(shown, str):
        text = shown.strip()
        if field.is_path and len(text) > 1 and text[0] == text[-1] == '"':
            text = text[1:-1]
        return _number(text) if float in types else text
    if shown is None:
        return ""
    if int in types and isinstance(shown, float) and shown.is_integer():
        return int(shown)
    return shown


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _prompt_lines(setting: Setting, prompts: Sequence[Any]) -> tuple[dict[str, Any], str]:
    """What all prompts share, and a line for each: the prompt, or a JSON table where it has settings of its own."""
    full = entry_tables(setting, prompts)
    shared = {name: full[0][name] for name in _defaults(setting)} if full else {}
    return shared, "\n".join(_line(setting, entry, shared) for entry in full)


def _prompts(shown: Mapping[str, Shown]) -> list[dict[str, Any]]:
    """The preview prompts as tables; empty when nothing was typed and nothing shared was changed."""
    shared = {}
    for field in all_fields():
        if field.section == PROMPT_SECTION:
            value = typed_value(field, shown[field.key])
            if value != field.setting.default:
                shared[field.setting.name] = value
    entries = _entries(_prompts_setting(), shown[PROMPTS])
    if not entries and shared:
        entries = [{"prompt": "[name]"}]
    return [{**shared, **entry} for entry in entries]


def _prompts_setting() -> Setting:
    return next(field.setting for field in all_fields() if field.key == PROMPTS)


def _defaults(setting: Setting) -> dict[str, Any]:
    """What the entries of a list setting have when they do not say."""
    return {inner.name: inner.default for inner in settings_of(setting.option.item) if not inner.required}


def entry_tables(setting: Setting, entries: Sequence[Any]) -> list[dict[str, Any]]:
    """The entries of a list setting with everything filled in."""
    tables = [setting.option.of_line(entry) if isinstance(entry, str) else entry for entry in entries]
    return [{**_defaults(setting), **table} for table in tables]


def _line(setting: Setting, entry: Mapping[str, Any], shared: Mapping[str, Any] | None = None) -> str:
    """An entry as people type it; as a JSON table where a line of text would say something else.

    `shared` is what an entry has when it does not say, in place of the defaults.
    """
    common = _defaults(setting) if shared is None else shared
    line = setting.option.to_line(entry) if setting.option.to_line else str(next(iter(entry.values())))
    is_plain = line == line.strip() and len(line.splitlines()) == 1 and not line.startswith("{")
    if is_plain and {**common, **setting.option.of_line(line)} == entry:
        return line
    own = {name: value for name, value in entry.items() if name not in common or value != common[name]}
    return json.dumps(own, ensure_ascii=False)


def _entries(setting: Setting, shown: Shown) -> list[dict[str, Any]]:
    """The tables of what was typed into a list setting, one a line."""
    lines = [line.strip() for line in str(shown or "").splitlines()]
    return [_entry(setting, line) for line in lines if line]


def _entry(setting: Setting, line: str) -> dict[str, Any]:
    if line.startswith("{"):
        try:
            table = json.loads(line)
        except ValueError:
            return setting.option.of_line(line)
        if isinstance(table, dict):
            return table
    return setting.option.of_line(line)
