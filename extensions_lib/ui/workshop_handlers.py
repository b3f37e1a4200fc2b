"""What the buttons and choices of the workshop do. Plain functions of values; nothing here computes on weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..config.codec import dump
from ..config.tool import ToolConfig
from ..config.tools import TOOLS, kind_of
from ..errors import AccessError, ConfigError, ExtensionError, Problem
from ..jobs.access import LISTED_KINDS, check_file, listed_files, path_of
from ..jobs.manager import JobManager
from ..ports import Host
from .fields import Shown
from .file_view import file_html, size_words
from .handlers import submitted
from .messages import done_html, problems_html, warned_html
from .tool_fields import (
    NONE,
    ToolField,
    filled_slots,
    read_tool,
    shown_tool,
    tool_fields,
    tool_label,
    visible_keys,
)
from .tool_form import ToolForm, choices_of, note_html
from .wording import FILE_WORDS

if TYPE_CHECKING:
    from ..merge.tools import Outlook

TRAINING_TAB, WORKSHOP_TAB = "training", "workshop"


class HostFiles:
    """The files that a host offers, by what they are called on the page."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def paths(self, kind: str) -> dict[str, Path]:
        """Titles and paths of a kind of file (see `Option.file`); of 'model' those of all kinds, named before them."""
        if kind == "model":
            kinds = ("checkpoint", *LISTED_KINDS)
            return {f"{FILE_WORDS[each]}: {title}": path for each in kinds for title, path in self.paths(each).items()}
        return {model.title: model.path for model in listed_files(self._host, kind)}

    def of_tool(self, kind: str) -> dict[str, dict[str, Path]]:
        """`paths` of every kind of file that a tool takes: the folders are looked through once for all its controls."""
        return {each: self.paths(each) for each in {field.setting.option.file for field in _files(kind)}}


class WorkshopHandlers:
    """Bound to one tab. `form` tells in which order the values of the controls come."""

    def __init__(self, manager: JobManager, host: Host, form: ToolForm) -> None:
        self._manager = manager
        self._host = host
        self._files = HostFiles(host)
        self._form = form

    def choose(self, kind: str) -> list[Any]:
        """Updates of each tool's column and accordion, of the button, and of all controls: the lists of files."""
        return [*self._chosen(kind), *self.refresh(kind)]

    def refresh(self, kind: str) -> list[Any]:
        """Updates of all controls: the lists of files of the chosen tool, which may have changed."""
        listed = self._files.of_tool(kind)
        choices = {field.key: choices_of(field, listed[field.setting.option.file]) for field in _files(kind)}
        return [gr.update(choices=choices[key]) if key in choices else gr.update() for key in self._form.keys]

    def list_all(self) -> Any:
        """An update of the choice of a file of any kind."""
        return gr.update(choices=list(self._files.paths("model")))

    def arranger(self, kind: str) -> Callable[..., list[Any]]:
        """What is to be done after one of a tool's own controls changed, with the values of all of them.

        Updates of the note, if the tool has one, of these controls and of their rows: what it reads now is seen.
        """

        def arrange(*values: Shown) -> list[Any]:
            shown = dict(zip(self._form.keys_of(kind), values, strict=True))
            note = [note_html(kind, shown)] if kind in self._form.notes else []
            controls, rows = self._form.visibility(kind, shown)
            return [*note, *controls, *rows]

        return arrange

    def start(self, kind: str, *values: Shown) -> list[Any]:
        """Submit the job; updates of the message and of the report, which makes room for the job."""
        shown = self.named(values)
        try:
            config = self.job(kind, shown)
            return [done_html(submitted(self._manager, config, f"{TOOLS[kind].title}:")), gr.update(value="")]
        except ExtensionError as error:
            return [self.error(error, kind, shown), gr.update()]

    def check(self, kind: str, *values: Shown) -> str:
        """Look at the files without making anything; the message as HTML."""
        from ..jobs.check_tool import name_clashes
        from ..training.tools import foresee

        shown = self.named(values)
        try:
            config = self.job(kind, shown)
            outlook = foresee(config)
        except ExtensionError as error:
            return self.error(error, kind, shown)
        warnings = (*outlook.warnings, *name_clashes(config, outlook.path, self._host))
        return warned_html(self._foreseen(config, outlook), warnings)

    def _foreseen(self, config: ToolConfig, outlook: Outlook) -> str:
        path = outlook.path or Path(config.folder) / config.name
        size = f", {size_words(outlook.num_bytes)}" if outlook.num_bytes else ""
        where = "" if self._host.access().hide_paths else f" in {path.parent}"
        return f"Nothing is in the way. It makes {path.name}{size}{where}."

    def job(self, kind: str, shown: Mapping[str, Shown]) -> ToolConfig:
        """The job that the form describes. Raises ExtensionError."""
        from ..jobs.submission import prepare_tool

        return prepare_tool(self.table(kind, shown), self._host)

    def table(self, kind: str, shown: Mapping[str, Shown]) -> dict[str, Any]:
        """The settings that the form describes, with paths, not checked yet. Raises AccessError."""
        return read_tool(kind, self._with_paths(kind, shown))

    def describe(self, chosen: str | None, whole: bool) -> str:
        """What a file is, as HTML; `whole` reads all of it, for its hashes and to look for NaN."""
        from ..formats.inspect import describe_file

        try:
            path = self._file(str(chosen or "").strip())
            return file_html(path.name, describe_file(path, with_hashes=whole, with_numbers=whole))
        except ExtensionError as error:
            return problems_html(error, str)

    def load_source(self, source: str) -> list[Any]:
        """Fill the form with the settings of 'run:ID' when that is a tool's job, and show the tab that `source` is for.

        Updates of the message, the tabs, the tool, each tool's column and accordion, the button, all notes, rows
        and controls.
        """
        try:
            config = self._config(source)
            if config is None:
                return [gr.update(), gr.update(selected=TRAINING_TAB), *self._untouched()]
            kind = kind_of(config)
            shown = self._with_titles(kind, shown_tool(kind, dump(config)))
        except ExtensionError as error:
            return [problems_html(error, str), gr.update(), *self._untouched()]
        message = done_html(f"The settings of '{source.partition(':')[2]}' are in the form.")
        return [
            message,
            gr.update(selected=WORKSHOP_TAB),
            gr.update(value=kind),
            *self._chosen(kind),
            *self._filled(kind, shown),
        ]

    def _filled(self, kind: str, shown: Mapping[str, Shown]) -> list[Any]:
        """Updates of all notes, rows and controls."""
        form = self._form
        controls, rows = form.visibility(kind, shown)
        own = dict(zip(form.keys_of(kind), controls, strict=True))
        notes = [gr.update(value=note_html(kind, shown)) if each == kind else gr.update() for each in form.notes]
        values = [
            {**own.get(key, gr.update()), "value": shown[key]} if key in shown else gr.update() for key in form.keys
        ]
        all_rows = [rows if each == kind else [gr.update() for _ in form.rows_of(each)] for each in TOOLS]
        return [*notes, *(update for each in all_rows for update in each), *values]

    def _chosen(self, kind: str) -> list[Any]:
        """Updates of each tool's column and accordion, and of the button."""
        groups = (*self._form.columns, *self._form.accordions)
        return [*(gr.update(visible=each == kind) for each in groups), gr.update(value=verb(kind))]

    def _untouched(self) -> list[Any]:
        """For the tool, what `_chosen` changes, the notes, rows and controls."""
        form = self._form
        parts = (form.columns, form.accordions, form.notes, *map(form.rows_of, TOOLS), form.keys)
        return [gr.update() for _ in range(2 + sum(map(len, parts)))]

    def _file(self, chosen: str) -> Path:
        """The path of a file of the list, or of one that was typed and may be read. Raises ExtensionError."""
        if not chosen or chosen == NONE:
            raise ConfigError([Problem("file", "is missing")], "Choose a file.")
        listed = self._files.paths("model").get(chosen)
        return listed or check_file(chosen.strip('"'), self._host.access(), self._host)

    def named(self, values: Sequence[Shown]) -> dict[str, Shown]:
        """What all controls show, by the keys of their fields."""
        return dict(zip(self._form.keys, values, strict=True))

    def _config(self, source: str) -> ToolConfig | None:
        """The settings of a tool's job; None when `source` is no such job."""
        word, _, name = source.partition(":")
        config = self._manager.folder(name).config() if word == "run" else None
        return config if isinstance(config, ToolConfig) else None

    def _with_paths(self, kind: str, shown: Mapping[str, Shown]) -> dict[str, Shown]:
        """The files that are read by their paths instead of their titles.

        Raises AccessError for a typed one where paths are not accepted.
        """
        listed, seen = self._files.of_tool(kind), visible_keys(kind, shown)
        paths = dict(shown)
        for field in _files(kind):
            title, kind_of_file = str(shown[field.key]), field.setting.option.file
            if field.key in seen and shown[field.key] not in (None, "", NONE):
                known = listed[kind_of_file].get(title)
                paths[field.key] = str(known) if known else self._typed(title, kind_of_file, field.label)
        return paths

    def _typed(self, title: str, kind_of_file: str, label: str) -> str:
        """What is not in the list as it is called: a path, or a title from before the host knew the file's hash."""
        path = path_of(title, kind_of_file, self._host)
        if path == title and self._host.access().hide_paths:
            raise AccessError(f"{label}: paths are not accepted by this WebUI.", "Choose one of the list.")
        return path

    def _with_titles(self, kind: str, shown: Mapping[str, Shown]) -> dict[str, Shown]:
        """The inverse of `_with_paths`, for loaded settings: nothing in place of a path that may not be seen."""
        listed = self._files.of_tool(kind)
        titles = dict(shown)
        for field in _files(kind):
            known = {str(path): title for title, path in listed[field.setting.option.file].items()}
            other = None if self._host.access().hide_paths and shown[field.key] != NONE else shown[field.key]
            titles[field.key] = known.get(str(shown[field.key]), other)
        return titles

    def error(self, error: ExtensionError, kind: str, shown: Mapping[str, Shown]) -> str:
        """An error as HTML, in the words of the form."""
        slots = filled_slots(kind, shown)
        return problems_html(error, lambda path: tool_label(kind, path, slots))


def verb(kind: str) -> str:
    """What the button that starts a tool says: the first word of its title."""
    return TOOLS[kind].title.split()[0].strip(",")


def _files(kind: str) -> list[ToolField]:
    return [field for field in tool_fields(kind) if field.kind == "file"]
