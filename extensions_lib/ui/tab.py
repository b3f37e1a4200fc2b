"""The tab: what to make, from which pictures, Check and Train; every other setting below; the live page beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Protocol

import gradio as gr

from ..config.presets import AUTO, default_preset
from ..jobs.manager import JobManager
from ..jobs.user_presets import UserPresets
from ..ports import Host
from .compat import js_argument
from .fields import FAMILY, shown_values
from .forms import Form, field_of
from .handlers import Handlers
from .layout import LOOK_AT_JOBS, QUICK, SEEN, html_block
from .markup import API
from .messages import reasons_html
from .presets import label_of_preset, method_choices, method_text, start_values
from .wording import LIKE_TEXT
from .workshop import build_workshop
from .workshop_handlers import TRAINING_TAB, WORKSHOP_TAB

ROOT_ID = "train_studio_root"
ACCORDIONS = ("method", "training", "prior", "optimizer", "dataset", "preview", "output")


class Extras(Protocol):
    """What a host adds to the page."""

    def connect_paste(self, textbox: Any, button: Any) -> None:
        """Make `button` put the generation parameters in `textbox` into the host's own prompt page."""


@dataclass(frozen=True)
class _Job:
    """The controls that say what to train, beside the form's."""

    method: Any
    shown_method: Any
    start: Any
    files: Any
    refresh: Any

    def inputs(self, form: Form) -> list[Any]:
        """The inputs of Check and Train, in the order of `Handlers.train`."""
        return [self.method, self.start, self.files, *form.components]


def build_tab(
    manager: JobManager,
    host: Host,
    secret: str,
    extras: Extras | None = None,
    *,
    start: Mapping[str, Any] | None = None,
    note: str = "",
) -> gr.Blocks:
    """The page of `host`. `secret` is what its script shows to our routes; `start` is a job table to begin with.

    `note` is shown above the form. Needs no loaded model, no torch and no optional package.
    """
    table = start or _first_values(host)
    kind = table["method"]["kind"]
    form = Form(shown_values(table), kind, hide_paths=host.access().hide_paths)
    handlers = Handlers(manager, host, form)
    with gr.Blocks(analytics_enabled=False) as tab:
        with gr.Row(elem_id="train_studio_columns"):
            with gr.Column(elem_id="train_studio_left", min_width=420), gr.Tabs(elem_id="train_studio_tabs") as tabs:
                with gr.TabItem("Training", id=TRAINING_TAB, elem_id="train_studio_tab_training"):
                    job, message, check, train, like = _left(form, handlers, host, table, note)
                    why = _why(table)
                    mine = _my_start_values()
                with gr.TabItem("Merge & files", id=WORKSHOP_TAB, elem_id="train_studio_tab_workshop"):
                    workshop = build_workshop(manager, host)
            with gr.Column(elem_id="train_studio_right", min_width=420):
                report = html_block("", "train_studio_report")
                html_block(root_html(secret, host.has_prompt), "train_studio_live")
        html_block('<div data-ts-fragment="history"></div>', "train_studio_history")
        load_source, load_button = _hidden("load_source", "load_button")
        infotext, paste = _hidden("infotext", "paste")
        _connect_job(tab, handlers, form, job, (message, report, check, train))
        _connect_start_values(handlers, form, job, message, mine)
        _connect_load(handlers, form, job, message, (load_source, load_button))
        workshop.connect(tab, report, tabs, (load_source, load_button))
        _connect_like(handlers, form, job, message, like)
        _connect_why(handlers, form, job, why)
        if extras is not None:
            extras.connect_paste(infotext, paste)
    for component in tab.blocks.values():
        component.do_not_save_to_config = True
    return tab


def root_html(secret: str, has_prompt: bool) -> str:
    """The element that the page's script looks for, with what it needs to know."""
    return (
        f'<div id="{ROOT_ID}" data-api="{API}" data-secret="{escape(secret)}" data-has-prompt="{int(has_prompt)}">'
        '<div data-ts-fragment="live"></div></div>'
    )


def _first_values(host: Host) -> dict[str, Any]:
    kind = method_choices(host.unusable_methods())[0][1]
    return start_values(kind, UserPresets(host.folders().presets))[0].job_table()


def _left(
    form: Form, handlers: Handlers, host: Host, table: Mapping[str, Any], note: str
) -> tuple[_Job, Any, Any, Any, tuple[Any, Any, Any]]:
    if note:
        html_block(f'<div class="ts-message">{escape(note)}</div>', "train_studio_note")
    job = _job_controls(form, handlers, host, table)
    with gr.Row(elem_id="train_studio_buttons"):
        check = gr.Button("Check", elem_id="train_studio_check")
        train = gr.Button("Train", variant="primary", elem_id="train_studio_train")
    message = html_block("", "train_studio_message")
    like = _like_a_file(host.access().hide_paths)
    for section in ACCORDIONS:
        form.accordion(section)
    return job, message, check, train, like


def _job_controls(form: Form, handlers: Handlers, host: Host, table: Mapping[str, Any]) -> _Job:
    kind = table["method"]["kind"]
    unusable = host.unusable_methods()
    info = method_text(unusable)
    method = gr.Radio(
        method_choices(unusable), value=kind, label="What to make", info=info, elem_id="train_studio_method_kind"
    )
    shown_method = gr.Textbox(kind, visible=False, label="method shown", elem_id="train_studio_method_shown")
    entries = start_values(kind, UserPresets(host.folders().presets))
    with gr.Row(elem_id="train_studio_row_start", equal_height=False):
        start = gr.Dropdown(
            choices=[entry.label for entry in entries],
            value=label_of_preset(table.get("preset", ""), kind),
            label="For",
            info="Start values; all can be changed below.",
            elem_id="train_studio_start",
        )
        refresh = _base_model(form, handlers, host)
    with gr.Row(elem_id="train_studio_row_pictures"):
        form.add(field_of("dataset.folder"), lines=2, max_lines=2)
        files = gr.File(
            file_count="multiple",
            label="Or drop pictures, and captions as .txt",
            elem_id="train_studio_files",
            height=130,
        )
    with gr.Row(elem_id="train_studio_row_names"):
        form.add(field_of(FAMILY), visible=False)
        form.add(field_of("job.name"))
        form.add(field_of("dataset.trigger_word"))
    return _Job(method, shown_method, start, files, refresh)


def _base_model(form: Form, handlers: Handlers, host: Host) -> Any:
    field = field_of("job.base_model")
    titles = handlers.base_titles()
    hide_paths = host.access().hide_paths
    dropdown = gr.Dropdown(
        choices=titles,
        value=titles[0] if titles else None,
        allow_custom_value=not hide_paths,
        label=field.label,
        info="What is taught." if hide_paths else "What is taught; a path may be typed.",
        elem_id=field.elem_id,
    )
    form.put(field, dropdown)
    return gr.Button("Refresh", elem_id="train_studio_refresh_lists", size="sm", scale=0, min_width=60)


def _why(table: Mapping[str, Any]) -> Any:
    with gr.Accordion("Why these start values", open=False, elem_id="train_studio_why"):
        kind = table["method"]["kind"]
        return html_block(
            reasons_html(table.get("preset") or default_preset(kind), AUTO, kind), "train_studio_why_text"
        )


def _like_a_file(hide_paths: bool) -> tuple[Any, Any, Any]:
    with gr.Accordion("Train like a file", open=False, elem_id="train_studio_like"):
        html_block(f"<p>{LIKE_TEXT}</p>", "train_studio_like_text")
        file = gr.File(label="The file", elem_id="train_studio_like_file", height=130)
        path = gr.Textbox(label="Or its path", max_lines=1, visible=not hide_paths, elem_id="train_studio_like_path")
        fill = gr.Button("Fill the form from it", elem_id="train_studio_like_fill")
    return file, path, fill


def _my_start_values() -> tuple[Any, Any, Any]:
    with gr.Accordion("My start values", open=False, elem_id="train_studio_mine"):
        name = gr.Textbox(
            label="Name of my start values",
            info="Keeps the settings of the accordions above; chosen under 'For' as 'Mine: ...'.",
            max_lines=1,
            elem_id="train_studio_mine_name",
        )
        with gr.Row(elem_id="train_studio_row_mine"):
            save = gr.Button("Save as my start values", elem_id="train_studio_mine_save")
            delete = gr.Button("Delete the chosen ones", elem_id="train_studio_mine_delete")
    return name, save, delete


def _hidden(textbox: str, button: str) -> tuple[Any, Any]:
    """A text that the page's script sets and a button that it clicks."""
    return (
        gr.Textbox(visible=False, label=textbox.replace("_", " "), elem_id=f"train_studio_{textbox}"),
        gr.Button(button.replace("_", " "), visible=False, elem_id=f"train_studio_{button}"),
    )


def _connect_job(tab: gr.Blocks, handlers: Handlers, form: Form, job: _Job, parts: tuple[Any, Any, Any, Any]) -> None:
    message, report, check, train = parts
    inputs = job.inputs(form)
    check.click(handlers.check, inputs, [message, report], **SEEN)
    trained = train.click(handlers.train, inputs, [message, report], **QUICK)
    trained.then(fn=None, inputs=[], outputs=[], **js_argument(LOOK_AT_JOBS))
    lists: tuple[Callable[..., Any], list[Any], list[Any]] = (
        handlers.refresh,
        [job.method, job.start, form.component("job.base_model")],
        [job.start, form.component("job.base_model")],
    )
    job.refresh.click(*lists, **QUICK)
    tab.load(*lists, **QUICK)
    based: tuple[Callable[..., Any], list[Any], list[Any]] = (
        handlers.choose_base,
        [job.method, job.start, *form.components],
        [message, *form.components],
    )
    form.component("job.base_model").input(*based, **QUICK)
    job.refresh.click(*based, **QUICK)
    tab.load(handlers.settle_base, based[1], form.components, **QUICK)


def _connect_start_values(handlers: Handlers, form: Form, job: _Job, message: Any, mine: tuple[Any, Any, Any]) -> None:
    name, save, delete = mine
    groups = list(form.groups.values())
    job.method.input(
        handlers.choose_method,
        [job.method, job.shown_method, form.component(FAMILY)],
        [job.shown_method, job.start, *groups, *form.components],
        **QUICK,
    )
    family = form.component(FAMILY)
    job.start.input(handlers.choose_start, [job.method, job.start, family], [message, *form.components], **QUICK)
    save.click(handlers.save_mine, [job.method, job.start, name, *form.components], [message, job.start], **QUICK)
    delete.click(handlers.delete_mine, [job.method, job.start], [message, job.start], **QUICK)


def _connect_like(handlers: Handlers, form: Form, job: _Job, message: Any, like: tuple[Any, Any, Any]) -> None:
    file, path, fill = like
    inputs = [job.method, file, path, job.files, form.component("dataset.folder"), form.component(FAMILY)]
    fill.click(handlers.like, inputs, _form_outputs(form, job, message), **QUICK)


def _connect_why(handlers: Handlers, form: Form, job: _Job, why: Any) -> None:
    inputs = [job.method, job.start, form.component(FAMILY)]
    for changed in (job.start, form.component(FAMILY)):
        changed.change(handlers.reasons, inputs, [why], **QUICK)


def _form_outputs(form: Form, job: _Job, message: Any) -> list[Any]:
    """What is changed when the whole form is filled in, in the order of `Handlers.load_source`."""
    return [message, job.method, job.shown_method, job.start, *form.groups.values(), *form.components]


def _connect_load(handlers: Handlers, form: Form, job: _Job, message: Any, hidden: tuple[Any, Any]) -> None:
    source, button = hidden
    inputs = [job.method, source, form.component(FAMILY)]
    button.click(handlers.load_source, inputs, _form_outputs(form, job, message), **QUICK)
