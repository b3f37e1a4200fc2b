"""Controls made from the fields, in the order in which their values are handed to the handlers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import gradio as gr

from .fields import PROMPT_SECTION, Field, Shown, all_fields
from .wording import EXAMPLES, SECTIONS

FIELDS_PER_ROW = 2
MORE = "more"


class Form:
    """The controls of all settings; made inside a gr.Blocks context, `add` and `accordion` at the wanted place.

    `shown` holds what the controls show at first, `kind` is the method chosen at first.
    """

    def __init__(self, shown: Mapping[str, Shown], kind: str, *, hide_paths: bool) -> None:
        self._shown = shown
        self._kind = kind
        self._hide_paths = hide_paths
        self._components: dict[str, Any] = {}
        self.groups: dict[tuple[str, ...], Any] = {}  # a word, and the methods for which it is visible

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the fields, in the order of `components`."""
        return tuple(self._components)

    @property
    def components(self) -> list[Any]:
        """The controls, for the inputs and outputs of an event."""
        return list(self._components.values())

    def component(self, key: str) -> Any:
        """The control of one field."""
        return self._components[key]

    def put(self, field: Field, component: Any) -> Any:
        """Take a control that was made elsewhere."""
        self._components[field.key] = component
        return component

    def add(self, field: Field, **more: Any) -> Any:
        """Make a field's control here."""
        visible = field.applies_to(self._kind) if not field.methods else True
        visible = visible and not (field.is_path and self._hide_paths)
        common = {"label": field.label, "info": field.info, "elem_id": field.elem_id, "visible": visible, **more}
        return self.put(field, control_of(field, self._shown[field.key], common))

    def accordion(self, section: str) -> None:
        """One section's fields, the advanced ones in an accordion of their own."""
        with gr.Accordion(SECTIONS[section], open=False, elem_id=f"train_studio_{section}"):
            if section == "method":
                self._method_fields()
            else:
                self._fields(section, [field for field in _rest() if field.section in _sections_of(section)])

    def _method_fields(self) -> None:
        """A group of fields for each set of methods that have them, then the advanced ones of all in one accordion."""
        fields = [field for field in _rest() if field.methods]
        self._groups([field for field in fields if not _is_advanced(field)], "group")
        advanced = [field for field in fields if _is_advanced(field)]
        kinds = (MORE, *dict.fromkeys(kind for field in advanced for kind in field.methods))
        more = gr.Accordion("More", open=False, visible=self._kind in kinds, elem_id="train_studio_more_method")
        self.groups[kinds] = more
        with more:
            self._groups(advanced, MORE)

    def _groups(self, fields: Sequence[Field], word: str) -> None:
        for kinds in dict.fromkeys(field.methods for field in fields):
            group = gr.Column(visible=self._kind in kinds, elem_id=f"train_studio_{word}_{'_'.join(kinds)}")
            self.groups[(word, *kinds)] = group
            with group:
                self._rows(field for field in fields if field.methods == kinds)

    def _fields(self, section: str, fields: Sequence[Field]) -> None:
        self._rows(field for field in fields if not _is_advanced(field))
        advanced = [field for field in fields if _is_advanced(field)]
        if advanced:
            with gr.Accordion("More", open=False, elem_id=f"train_studio_more_{section}"):
                self._rows(advanced)

    def _rows(self, fields: Iterable[Field]) -> None:
        row: list[Field] = []
        for field in fields:
            if field.kind == "lines":
                self.add(field)
            else:
                row.append(field)
        for pair in zip_longest(*[iter(row)] * FIELDS_PER_ROW):
            with gr.Row(elem_id=f"train_studio_{pair[0].section}_{pair[0].setting.name}_row"):
                for field in pair:
                    if field is not None:
                        self.add(field)

    def updates(self, shown: Mapping[str, Shown], kind: str, *, keep: Sequence[str] = ()) -> list[Any]:
        """An update for every control: the values of a method's fields, others untouched, `keep` too."""
        found = []
        for field in _in_order(self.keys):
            change: dict[str, Any] = {}
            if field.applies_to(kind) and field.key not in keep:
                change["value"] = shown[field.key]
            if field.key == "dataset.trigger_word":
                change["visible"] = field.applies_to(kind)
            found.append(gr.update(**change))
        return found

    def group_updates(self, kind: str) -> list[Any]:
        """An update for every group of methods: only those of the chosen one are visible."""
        return [gr.update(visible=kind in kinds) for kinds in self.groups]


def field_of(key: str) -> Field:
    """The field with this key."""
    return next(field for field in all_fields() if field.key == key)


def _in_order(keys: Sequence[str]) -> list[Field]:
    by_key = {field.key: field for field in all_fields()}
    return [by_key[key] for key in keys]


def _rest() -> list[Field]:
    return [field for field in all_fields() if not field.is_essential]


def _sections_of(section: str) -> tuple[str, ...]:
    """The sections of fields that stand in an accordion; the few of the job itself are with the training."""
    return {"preview": ("preview", PROMPT_SECTION), "training": ("training", "job")}.get(section, (section,))


def _is_advanced(field: Field) -> bool:
    return field.setting.option.advanced or field.section == PROMPT_SECTION


def control_of(field: Field, value: Shown, common: Mapping[str, Any]) -> Any:
    """The control that a field takes, with what it shows; `common` are arguments that all controls have.

    One of files needs its choices, too.
    """
    if field.kind == "file":
        return gr.Dropdown(value=value, **common)
    if field.kind == "choice":
        return gr.Dropdown(value=value, **{"choices": list(field.setting.option.choices), **common})
    if field.kind == "switch":
        return gr.Checkbox(value=bool(value), **common)
    if field.kind == "number":
        return gr.Number(value=value, **common)
    if field.kind == "lines":
        return gr.Textbox(value=value, lines=2, max_lines=8, placeholder=EXAMPLES.get(field.setting.name), **common)
    return gr.Textbox(value=value, **{"max_lines": 1, **common})
