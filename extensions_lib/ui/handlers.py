"""What the page's buttons and choices do. Plain functions of values; nothing here trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import gradio as gr

from ..config.codec import dump
from ..config.foreign.recipe import Recipe
from ..config.job import TrainJobConfig
from ..config.presets import AUTO
from ..config.presets.families import PARTS
from ..config.tool import ToolConfig
from ..errors import AccessError, ConfigError, ExtensionError, Problem
from ..jobs.manager import JobManager
from ..jobs.submission import prepare_job
from ..jobs.user_presets import UserPresets
from ..ports import Host
from .compat import path_of
from .fields import ESSENTIAL, FAMILY, Shown, all_fields, read_values, shown_values
from .forms import Form
from .messages import done_html, error_html, reasons_html, recipe_html
from .presets import MINE, chosen, label_of_preset, start_values
from .uploads import keep_uploads
from .wording import FAMILY_WORDS

THE_LOADED_ONE = "The loaded checkpoint"
NO_FILES = "Give either a folder or dropped files; empty the other."


class Handlers:
    """Bound to one tab. `form` tells in which order the values of the controls come."""

    def __init__(self, manager: JobManager, host: Host, form: Form) -> None:
        self._manager = manager
        self._host = host
        self._form = form

    def train(self, kind: str, start: str, files: Sequence[Any] | None, *values: Shown) -> list[Any]:
        """Submit the job; updates of the message and of the report, which makes room for the job."""
        try:
            config = self.job(kind, start, files, values)
            return [done_html(submitted(self._manager, config, "Training of")), gr.update(value="")]
        except ExtensionError as error:
            return [error_html(error, kind), gr.update()]

    def check(self, kind: str, start: str, files: Sequence[Any] | None, *values: Shown) -> list[Any]:
        """Look at everything without training; the message and the report as HTML."""
        from ..jobs.check import check_job
        from .check_view import check_html

        try:
            config = self.job(kind, start, files, values)
            return ["", check_html(check_job(config, self._host))]
        except ExtensionError as error:
            return [error_html(error, kind), ""]

    def job(self, kind: str, start: str, files: Sequence[Any] | None, values: Sequence[Shown]) -> TrainJobConfig:
        """The job that the form describes. Raises ExtensionError."""
        table = self._table(kind, start, values)
        if self._host.access().hide_paths:
            _refuse_paths(table, kind)
        if files:
            if table["dataset"]["folder"]:
                raise ConfigError([Problem("dataset.folder", f"is {table['dataset']['folder']!r}, and files were "
                                                             "dropped as well")], NO_FILES)  # fmt: skip
            place = self._host.folders().work / "uploads"
            paths = [Path(path_of(file)) for file in files]
            table["dataset"]["folder"] = str(keep_uploads(paths, place, str(table["name"])))
        return prepare_job(table, self._host)

    def choose_method(self, kind: str, shown_kind: str, family: str = AUTO) -> list[Any]:
        """Updates of the method shown, 'For', the methods' groups and all controls.

        None of them changes when that method is shown already: gradio 4 calls this too when `load_source` chose it.
        """
        if kind == shown_kind:
            return [gr.update() for _ in range(2 + len(self._form.groups) + len(self._form.keys))]
        entries = start_values(kind, self._mine())
        return [
            kind,
            gr.update(choices=[entry.label for entry in entries], value=entries[0].label),
            *self._form.group_updates(kind),
            *self._fill(entries[0].job_table(), kind, family),
        ]

    def choose_base(self, kind: str, start: str, *values: Shown) -> list[Any]:
        """After the base checkpoint may have changed: updates of the message and all controls.

        Another family has other start values; what the user changed stays.
        """
        untouched = [gr.update() for _ in range(1 + len(self._form.keys))]
        shown = dict(zip(self._form.keys, values, strict=True))
        family = self._family_of(str(shown["job.base_model"] or ""))
        if family in (AUTO, shown[FAMILY]):
            return untouched
        try:
            preset = chosen(start, kind, self._mine()).preset
        except ExtensionError:
            return untouched
        table = {**read_values(shown, kind, preset), "family": family}
        keep = [key for key in ESSENTIAL if key != FAMILY]
        updates = self._form.updates(shown_values(table), kind, keep=keep)
        if PARTS[family] == PARTS.get(str(shown[FAMILY]), ()):
            return [gr.update(), *updates]
        return [done_html(f"The start values are now those for {FAMILY_WORDS[family]}."), *updates]

    def settle_base(self, kind: str, start: str, *values: Shown) -> list[Any]:
        """When the page opens: updates of all controls for the checkpoint that is chosen at first, without a word.

        Nothing is looked at when its family is known: that would load torch for a page that may only be read.
        """
        shown = dict(zip(self._form.keys, values, strict=True))
        if shown[FAMILY] != AUTO:
            return [gr.update() for _ in self._form.keys]
        return self.choose_base(kind, start, *values)[1:]

    def reasons(self, kind: str, start: str, family: str) -> str:
        """Why the start values that are chosen are what they are, as HTML."""
        try:
            return reasons_html(chosen(start, kind, self._mine()).preset, family, kind)
        except ExtensionError:
            return ""

    def choose_start(self, kind: str, start: str, family: str = AUTO) -> list[Any]:
        """Updates of the message and all controls."""
        try:
            table = chosen(start, kind, self._mine()).job_table()
        except ExtensionError as error:
            return [error_html(error, kind), *(gr.update() for _ in self._form.keys)]
        return ["", *self._fill(table, kind, family)]

    def save_mine(self, kind: str, start: str, name: str, *values: Shown) -> list[Any]:
        """Keep the start values under a name of the user's; updates of the message and 'For'."""
        try:
            table = self._table(kind, start, values)
            for key in ("name", "base_model", "family"):
                table.pop(key, None)
            for key in ("folder", "trigger_word"):
                table["dataset"].pop(key, None)
            self._mine().save(name.strip(), table)
        except ExtensionError as error:
            return [error_html(error, kind), gr.update()]
        return [done_html(f"Saved as '{MINE}{name.strip()}' under 'For'."), self._choices(kind, MINE + name.strip())]

    def delete_mine(self, kind: str, start: str) -> list[Any]:
        """Delete the chosen start values when they are the user's own; updates of the message and 'For'."""
        if not start or not start.startswith(MINE):
            return [done_html(f"Choose one of your own ('{MINE}...') under 'For' first."), gr.update()]
        try:
            self._mine().delete(start.removeprefix(MINE))
        except ExtensionError as error:
            return [error_html(error, kind), gr.update()]
        return [done_html(f"'{start}' is deleted."), self._choices(kind, None)]

    def load_source(self, kind: str, source: str, family: str = AUTO) -> list[Any]:
        """Fill the form with 'run:ID' or 'preset:NAME', over the start values for `family` where it names none.

        Updates of the message, the method, the method shown, 'For', the methods' groups and all controls.
        """
        try:
            if self._is_of_a_tool(source):  # for the workshop
                return self._untouched(gr.update())
            text, start, table, keep = self._source(source)
        except ExtensionError as error:
            return self._untouched(error_html(error, kind))
        return self._filled(done_html(text), start, {"family": family, **table}, keep)

    def _is_of_a_tool(self, source: str) -> bool:
        word, _, name = source.partition(":")
        return word == "run" and isinstance(self._manager.folder(name).config(), ToolConfig)

    def _untouched(self, message: Any) -> list[Any]:
        untouched = 3 + len(self._form.groups) + len(self._form.keys)
        return [message, *(gr.update() for _ in range(untouched))]

    def _filled(self, message: str, start: str, table: Mapping[str, Any], keep: Sequence[str]) -> list[Any]:
        kind = table["method"]["kind"]
        return [
            message,
            gr.update(value=kind),
            kind,
            self._choices(kind, start),
            *self._form.group_updates(kind),
            *self._form.updates(self._shown(table), kind, keep=keep),
        ]

    def like(
        self, kind: str, file: Any, path: str, pictures: Sequence[Any] | None, folder: str, family: str = AUTO
    ) -> list[Any]:
        """Fill the form with the settings of an uploaded file or of the one at `path`; updates as of `load_source`.

        The user's own pictures, dropped or in `folder`, are counted for settings that the file counts in epochs.
        """
        try:
            recipe = self._recipe(file, path.strip(), pictures, folder.strip())
            kind_there = recipe.table["method"]["kind"]
            if kind_there in self._host.unusable_methods():
                raise AccessError(self._host.unusable_methods()[kind_there], "Choose another file.")
        except ExtensionError as error:
            return self._untouched(error_html(error, kind))
        start = label_of_preset(recipe.table.get("preset", ""), kind_there)
        table, keep, base = self._with_base_model(recipe, family)
        text = f"The form is filled in from {recipe.source}. What it does not say is as for '{start}'. {base}"
        return self._filled(recipe_html(recipe, text.strip()), start, table, keep)

    def refresh(self, kind: str, start: str, base: str) -> list[Any]:
        """Updates of 'For' and the base checkpoints, which may have changed; choices that still exist stay."""
        titles = self.base_titles()
        gone = base not in titles and (not base or self._host.access().hide_paths)
        return [self._choices(kind, start), gr.update(choices=titles, value=titles[0] if gone and titles else base)]

    def base_titles(self) -> list[str]:
        """What the base checkpoint can be; in a WebUI the loaded one first."""
        first = [THE_LOADED_ONE] if self._host.has_prompt else []
        return [*first, *(model.title for model in self._host.base_models())]

    def _mine(self) -> UserPresets:
        return UserPresets(self._host.folders().presets)

    def _choices(self, kind: str, start: str | None) -> Any:
        labels = [entry.label for entry in start_values(kind, self._mine())]
        return gr.update(choices=labels, value=start if start in labels else labels[0])

    def _table(self, kind: str, start: str, values: Sequence[Shown]) -> dict[str, Any]:
        if kind in self._host.unusable_methods():
            raise AccessError(self._host.unusable_methods()[kind], "Choose another method.")
        shown = dict(zip(self._form.keys, values, strict=True))
        table = read_values(shown, kind, chosen(start, kind, self._mine()).preset)
        if table["base_model"] == THE_LOADED_ONE:
            table["base_model"] = ""
        return table

    def _shown(self, table: Mapping[str, Any]) -> dict[str, Shown]:
        """What the controls show for a table, the base checkpoint by its title, no paths where they are hidden."""
        shown = shown_values(table)
        base = str(shown["job.base_model"])
        titles = {str(model.path): model.title for model in self._host.base_models()}
        if self._host.access().hide_paths:
            shown |= {field.key: "" for field in all_fields() if field.is_path}
        default = self.base_titles()[0] if self.base_titles() else ""
        shown["job.base_model"] = titles.get(base) or str(shown["job.base_model"]) or default
        return shown

    def _fill(self, table: Mapping[str, Any], kind: str, family: str) -> list[Any]:
        return self._form.updates(self._shown({**table, "family": family}), kind, keep=ESSENTIAL)

    def _family_of(self, base: str) -> str:
        """The family of the checkpoint that is shown by its title, or by a path that may be looked at; else AUTO."""
        from ..jobs.access import check_file
        from ..jobs.families import family_of

        if base in ("", THE_LOADED_ONE):
            return family_of(self._host.selected_base_model())
        listed = {model.title: model.path for model in self._host.base_models()}
        try:
            return family_of(listed.get(base) or check_file(base, self._host.access(), self._host))
        except ExtensionError:
            return AUTO

    def _source(self, source: str) -> tuple[str, str, Mapping[str, Any], Sequence[str]]:
        """What to say, what 'For' becomes, the job table, and which fields stay as they are."""
        word, _, name = source.partition(":")
        if word == "run":
            config = self._manager.folder(name).config()
            start = label_of_preset(config.preset, config.method.kind)
            return f"The settings of '{name}' are in the form.", start, dump(config), ()
        if word == "preset":
            table = self._mine().load(name)
            return f"The start values '{name}' are in the form.", MINE + name, table, ESSENTIAL
        raise ConfigError([Problem("source", f"is {source!r}, accepted are run:ID and preset:NAME")])

    def _recipe(self, file: Any, path: str, pictures: Sequence[Any] | None, folder: str) -> Recipe:
        """What the file says. Raises ExtensionError."""
        from ..jobs.access import check_file
        from ..jobs.like import recipe_of_file

        if not file and not path:
            raise ConfigError([Problem("file", "is missing")], "Drop a file, or give its path.")
        found = Path(path_of(file)) if file else check_file(path, self._host.access(), self._host)
        return recipe_of_file(found, num_pictures=self._num_pictures(pictures, folder))

    def _num_pictures(self, pictures: Sequence[Any] | None, folder: str) -> int | None:
        """How many pictures were dropped or lie in `folder`; None when there is none, or it may not be looked at."""
        from ..jobs.access import check_file
        from ..jobs.like import count_pictures

        if pictures or not folder:
            return count_pictures(Path(path_of(each)) for each in pictures or ())
        try:
            place = check_file(folder, self._host.access(), self._host)
        except ExtensionError:
            return None
        return count_pictures(place.rglob("*")) if place.is_dir() else None

    def _with_base_model(self, recipe: Recipe, family: str) -> tuple[dict[str, Any], Sequence[str], str]:
        """The table with the checkpoint of that name, if the host has one; which fields stay; what to say of it.

        `family` is that of the checkpoint that is chosen now.
        """
        from ..jobs.families import family_of

        name = PureWindowsPath(recipe.base_model).name
        table = {key: value for key, value in recipe.table.items() if key != "base_model"} | {"family": family}
        if not name:
            return table, ESSENTIAL, ""
        for model in self._host.base_models():
            if model.path.name == name or model.path.stem == name:
                keep = [key for key in ESSENTIAL if key not in ("job.base_model", FAMILY)]
                table |= {"base_model": str(model.path), "family": family_of(model.path)}
                return table, keep, f"Its base checkpoint {name} is chosen."
        return table, ESSENTIAL, f"Its base checkpoint {name} is not in the list; choose one like it."


def submitted(manager: JobManager, config: TrainJobConfig | ToolConfig, what: str) -> str:
    """Submit a job and say whether it has begun; `what` it is: 'Training of'."""
    statuses = manager.statuses()
    active = manager.active()  # asked last: a job that begins in between is in one of the two
    ahead = [one.name for one in statuses if one.state == "queued" or one.job_id == active]
    manager.submit(config)
    if not ahead:
        return f'{what} "{config.name}" started.'
    return f'"{config.name}" is queued behind ' + (f'"{ahead[0]}".' if len(ahead) == 1 else f"{len(ahead)} jobs.")


def _refuse_paths(table: Mapping[str, Any], kind: str) -> None:
    """Paths are neither shown nor accepted; the base checkpoint is checked against the host's list later."""
    for field in all_fields():
        if field.is_path and field.applies_to(kind) and field.key != "job.base_model":
            value: Any = table
            for name in field.path:
                value = value.get(name, "") if isinstance(value, Mapping) else ""
            if value:
                raise AccessError(f"{field.label}: paths are not accepted by this WebUI.", "Drop the pictures instead.")
