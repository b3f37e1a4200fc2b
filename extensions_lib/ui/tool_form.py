"""The controls of every tool: what most need in a column, the rest in an accordion; those of one tool are seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import zip_longest
from typing import Any

import gradio as gr

from ..config.field import settings_of
from ..config.tools import TOOLS
from .block_editor import block_editor_html
from .fields import Shown
from .forms import FIELDS_PER_ROW, control_of
from .layout import html_block
from .tool_fields import (
    NONE,
    ToolField,
    arrangement,
    is_merge_formula,
    names_folders,
    ratio_fields,
    shared_fields,
    shown_tool,
    tool_fields,
    visible_keys,
    words_of_choices,
    words_of_tool,
)
from .wording import FOLDERS_TEXT

# Narrow enough to stand beside another.
NARROW = ("choice", "number", "switch", "rate")
# Texts of several lines.
LONG_TEXTS = ("metadata.description", "metadata.pairs", "grid.x_values", "grid.y_values", "grid.prompts")


class ToolForm:
    """Made inside a gr.Blocks context, each part at the wanted place.

    `kind` is the tool that is seen at first. No file is listed yet: that is done when the page is opened.
    """

    def __init__(self, kind: str, *, hide_paths: bool) -> None:
        self._kind = kind
        self._hide_paths = hide_paths
        self._shown = {key: value for each in TOOLS for key, value in shown_tool(each, {}).items()}
        self._components: dict[str, Any] = {}
        self._rows: dict[tuple[str, ...], Any] = {}  # by the keys of their fields
        self.columns: dict[str, Any] = {}
        self.accordions: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}  # above a list of files

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the fields, in the order of `components`."""
        return tuple(self._components)

    @property
    def components(self) -> list[Any]:
        """The controls of all tools, for the inputs and outputs of an event."""
        return list(self._components.values())

    def component(self, key: str) -> Any:
        """The control of one field."""
        return self._components[key]

    def keys_of(self, kind: str) -> tuple[str, ...]:
        """The keys of a tool's own fields, in the order of the form."""
        return tuple(key for key in self._components if key.partition(".")[0] == kind)

    def column(self, kind: str) -> None:
        """What most users of a tool need: how checkpoints are combined and the files it takes first."""
        fields = [field for field in tool_fields(kind) if not field.setting.option.advanced]
        fields.sort(key=lambda field: (not is_merge_formula(field.setting), not field.is_source))
        self.columns[kind] = gr.Column(visible=kind == self._kind, elem_id=f"train_studio_tool_{kind}")
        with self.columns[kind]:
            gr.HTML(f'<p class="ts-tool-note">{escape(TOOLS[kind].help)}</p>')
            self._add_all(kind, fields)

    def accordion(self, kind: str) -> None:
        """The advanced settings of a tool and sliders for the numbers of its blocks, if it has any."""
        fields = [field for field in tool_fields(kind) if field.setting.option.advanced]
        ratios = ratio_fields(kind)
        if fields or ratios:
            head: dict[str, Any] = {"visible": kind == self._kind, "elem_id": f"train_studio_more_{kind}"}
            self.accordions[kind] = gr.Accordion("More", open=False, **head)
            with self.accordions[kind]:
                if ratios:
                    gr.HTML(block_editor_html(ratios))
                self._add_all(kind, fields)

    def shared(self) -> None:
        """What all tools have: the name of the result, and whether it may replace another."""
        self._row(shared_fields())

    def _add_all(self, kind: str, fields: Sequence[ToolField]) -> None:
        """Narrow controls in pairs, others by themselves, the entries of a list in rows."""
        narrow: list[ToolField] = []
        for field in fields:
            if field.kind in NARROW and not field.slot and not is_merge_formula(field.setting):
                narrow.append(field)
                continue
            self._pairs(narrow)
            narrow = []
            if not field.slot:
                self._add(field)
            elif field.key not in self._components:
                self._list(kind, field.path[0])
        self._pairs(narrow)

    def _pairs(self, fields: Sequence[ToolField]) -> None:
        for pair in zip_longest(*[iter(fields)] * FIELDS_PER_ROW):
            self._row([field for field in pair if field is not None])

    def _row(self, fields: Sequence[ToolField]) -> None:
        keys = tuple(field.key for field in fields)
        visible = any(map(self._is_seen_at_first, fields))
        row = gr.Row(visible=visible, elem_id=f"{fields[0].elem_id}_row", equal_height=False)
        self._rows[keys] = row
        with row:
            for field in fields:
                self._add(field)

    def _list(self, kind: str, name: str) -> None:
        fields = [field for field in tool_fields(kind) if field.path[0] == name]
        self.notes[kind] = html_block(note_html(kind, self._shown), f"train_studio_note_{kind}")
        with gr.Column(elem_id=f"train_studio_{kind}_{name}_list"):
            for letter in dict.fromkeys(field.slot for field in fields):
                self._row([field for field in fields if field.slot == letter])

    def _add(self, field: ToolField) -> None:
        common: dict[str, Any] = {"label": field.label, "info": field.info, "elem_id": field.elem_id}
        common["visible"] = self._is_seen_at_first(field)
        if field.kind == "choice":
            common["choices"] = list(words_of_choices(field).values())
        elif field.kind == "file":
            common |= {"choices": choices_of(field, ()), "allow_custom_value": not self._hide_paths}
        elif names_folders(field):
            common["info"] = FOLDERS_TEXT
        elif field.key in LONG_TEXTS:
            common |= {"lines": 2, "max_lines": 8}
        if field.slot:
            common |= {"scale": 3, "min_width": 240} if field.setting.option.file else {"scale": 1, "min_width": 110}
        self._components[field.key] = control_of(field, self._shown[field.key], common)

    def rows_of(self, kind: str) -> list[Any]:
        """The rows with a tool's own controls."""
        return [row for keys, row in self._rows.items() if keys[0].partition(".")[0] == kind]

    def visibility(self, kind: str, shown: Mapping[str, Shown]) -> tuple[list[Any], list[Any]]:
        """Updates of a tool's own controls and of its rows: those that it reads with what is shown are seen."""
        seen = self._seen(kind, shown)
        rows = [keys for keys in self._rows if keys[0].partition(".")[0] == kind]
        return (
            [gr.update(visible=key in seen) for key in self.keys_of(kind)],
            [gr.update(visible=not seen.isdisjoint(keys)) for keys in rows],
        )

    def _seen(self, kind: str, shown: Mapping[str, Shown]) -> frozenset[str]:
        hidden = {field.key for field in tool_fields(kind) if self._hide_paths and names_folders(field)}
        return visible_keys(kind, shown) - hidden

    def _is_seen_at_first(self, field: ToolField) -> bool:
        return field in shared_fields() or field.key in self._seen(field.section, self._shown)


def choices_of(field: ToolField, titles: Iterable[str]) -> list[str]:
    """What can be chosen for a field, of the files that the host lists; none where one need not be given."""
    is_needed = field.setting.required and not field.slot
    return [*([] if is_needed else [NONE]), *titles]


def note_html(kind: str, shown: Mapping[str, Shown]) -> str:
    """What a tool does as it is set, and what its list of files and the values beside them are."""
    arranged, setting = arrangement(kind, shown), TOOLS[kind].files
    texts = [escape(arranged.text)] if arranged.text else []
    texts.append(f"<b>{escape(words_of_tool(kind, setting))}:</b> {escape(setting.option.help)}")
    for inner in settings_of(setting.option.item):
        if not inner.option.file and inner.name not in arranged.unread:
            texts.append(f"<b>{escape(words_of_tool(kind, inner))}:</b> {escape(inner.option.help)}")
    return f'<p class="ts-tool-note">{"<br>".join(texts)}</p>'
