"""A merge or a bake in the WebUI's model before it is saved: the button beside its start."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..errors import ExtensionError
from ..ports import Host
from .fields import Shown
from .layout import QUICK, SEEN, html_block
from .messages import done_html
from .workshop_handlers import WorkshopHandlers

TRIED = ("merge", "bake")
TRY = "Try without saving"
WAITING = "On its way into the WebUI's model; how far it is stands below."


def try_button(kind: str, host: Host) -> Any | None:
    """Inside a row: the button, for the tool `kind`; None in a host without trials."""
    if host.trials.refusal:
        return None
    return gr.Button(TRY, elem_id="train_studio_try_tool", visible=kind in TRIED)


def trial_block() -> None:
    """Where the page's script shows the trial."""
    html_block('<div data-ts-fragment="trial"></div>', "train_studio_trial")


def connect_trial(attempt: Any, tool: Any, components: list[Any], message: Any, handlers: TrialHandlers) -> None:
    """The events of the button, which is seen with the tools that can be tried."""
    tool.change(lambda kind: gr.update(visible=kind in TRIED), [tool], [attempt], **QUICK)
    attempt.click(handlers.try_on, [tool, *components], [message], **SEEN)


class TrialHandlers:
    """Bound to the form of one tab."""

    def __init__(self, host: Host, form: WorkshopHandlers) -> None:
        self._host = host
        self._form = form

    def try_on(self, kind: str, *values: Shown) -> str:
        """Begin with what the form describes; the message as HTML."""
        from ..jobs.trials import start_trial

        shown = self._form.named(values)
        try:
            start_trial(self._form.table(kind, shown), self._host)
        except ExtensionError as error:
            return self._form.error(error, kind, shown)
        return done_html(WAITING)
