"""The part of the tab for files that exist: merging, baking, resizing, ...; made from `config.tools.TOOLS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..config.tools import TOOLS
from ..jobs.manager import JobManager
from ..jobs.votes import Votes
from ..ports import Host
from .compat import js_argument
from .layout import LOOK_AT_JOBS, QUICK, SEEN, html_block
from .tool_fields import arranging_keys
from .tool_form import ToolForm
from .trial import TrialHandlers, connect_trial, trial_block, try_button
from .vote import VoteHandlers, connect_vote, vote_block, vote_button
from .workshop_handlers import WorkshopHandlers, verb


@dataclass(frozen=True)
class Workshop:
    """The controls, and what they do."""

    form: ToolForm
    handlers: WorkshopHandlers
    tool: Any
    refresh: Any
    check: Any
    start: Any
    message: Any
    any_file: Any

    def connect(self, tab: gr.Blocks, report: Any, tabs: Any, load: tuple[Any, Any]) -> None:
        """Inside the Blocks context: the events. `load` are the script's hidden text and button."""
        form, handlers = self.form, self.handlers
        groups = [*form.columns.values(), *form.accordions.values(), self.start]
        self.tool.input(handlers.choose, [self.tool], [*groups, *form.components], **QUICK)
        for listing in (self.refresh.click, tab.load):
            listing(handlers.refresh, [self.tool], form.components, **QUICK)
            listing(handlers.list_all, [], [self.any_file], **QUICK)
        self.check.click(handlers.check, [self.tool, *form.components], [self.message], **SEEN)
        started = self.start.click(handlers.start, [self.tool, *form.components], [self.message, report], **QUICK)
        started.then(fn=None, inputs=[], outputs=[], **js_argument(LOOK_AT_JOBS))
        source, button = load
        rows = [row for kind in TOOLS for row in form.rows_of(kind)]
        loaded = [self.message, tabs, self.tool, *groups, *form.notes.values(), *rows, *form.components]
        button.click(handlers.load_source, [source], loaded, **QUICK)
        for kind in TOOLS:
            self._connect_arrangement(kind)

    def _connect_arrangement(self, kind: str) -> None:
        own = [self.form.component(key) for key in self.form.keys_of(kind)]
        notes = [self.form.notes[kind]] if kind in self.form.notes else []
        for key in arranging_keys(kind):
            changed = [*notes, *own, *self.form.rows_of(kind)]
            self.form.component(key).input(self.handlers.arranger(kind), own, changed, **QUICK)


def build_workshop(manager: JobManager, host: Host) -> Workshop:
    """Inside a Blocks context: the controls. Needs no torch."""
    first = next(iter(TOOLS))
    form = ToolForm(first, hide_paths=host.access().hide_paths)
    with gr.Row(elem_id="train_studio_row_what", equal_height=False):
        choices = [(tool.title, kind) for kind, tool in TOOLS.items()]
        tool = gr.Radio(choices, value=first, label="What to do", elem_id="train_studio_tool")
        refresh = gr.Button("Refresh", elem_id="train_studio_refresh_files", size="sm", scale=0, min_width=60)
    for kind in TOOLS:
        form.column(kind)
    form.shared()
    with gr.Row(elem_id="train_studio_buttons_tool"):
        check = gr.Button("Check", elem_id="train_studio_check_tool")
        start = gr.Button(verb(first), variant="primary", elem_id="train_studio_start_tool")
        attempt = try_button(first, host)
        begin = vote_button(first)
    message = html_block("", "train_studio_message_tool")
    if attempt is not None:
        trial_block()
    vote_block()
    for kind in TOOLS:
        form.accordion(kind)
    handlers = WorkshopHandlers(manager, host, form)
    connect_vote(begin, tool, form.components, message, VoteHandlers(Votes(manager, host), handlers))
    if attempt is not None:
        connect_trial(attempt, tool, form.components, message, TrialHandlers(host, handlers))
    chosen = _file_part(handlers, host.access().hide_paths)
    return Workshop(form, handlers, tool, refresh, check, start, message, chosen)


def _file_part(handlers: WorkshopHandlers, hide_paths: bool) -> Any:
    """What a file is; returns the choice of the file."""
    with gr.Accordion("What is this file?", open=False, elem_id="train_studio_file"):
        with gr.Row(elem_id="train_studio_row_file", equal_height=False):
            chosen = gr.Dropdown(
                [],
                label="The file",
                allow_custom_value=not hide_paths,
                scale=3,
                elem_id="train_studio_file_chosen",
            )
            whole = gr.Checkbox(
                False,
                label="Read all of it",
                info="For hashes, and to look for NaN.",
                scale=1,
                min_width=110,
                elem_id="train_studio_file_whole",
            )
        look = gr.Button("Look", elem_id="train_studio_file_look")
        found = html_block("", "train_studio_file_found")
    look.click(handlers.describe, [chosen, whole], [found], **SEEN)
    return chosen
