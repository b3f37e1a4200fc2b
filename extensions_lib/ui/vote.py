"""The button that begins a vote on block weights with what the form of the grid describes."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..errors import ExtensionError
from ..jobs.votes import Votes
from .fields import Shown
from .layout import QUICK, SEEN, html_block
from .messages import done_html
from .workshop_handlers import WorkshopHandlers

VOTED = "grid"
BEGIN = "Find block weights by votes"
BEGUN = "The first pair is being drawn; vote below."


def vote_button(kind: str) -> Any:
    """Inside a row: the button, for the tool `kind`."""
    return gr.Button(BEGIN, elem_id="train_studio_begin_vote", visible=kind == VOTED)


def vote_block() -> None:
    """Where the page's script shows the vote."""
    html_block('<div data-ts-fragment="votes"></div>', "train_studio_votes")


def connect_vote(begin: Any, tool: Any, components: list[Any], message: Any, handlers: VoteHandlers) -> None:
    """The events of the button, which is seen with the grid."""
    tool.change(lambda kind: gr.update(visible=kind == VOTED), [tool], [begin], **QUICK)
    begin.click(handlers.begin, [tool, *components], [message], **SEEN)


class VoteHandlers:
    """Bound to the form of one tab."""

    def __init__(self, votes: Votes, form: WorkshopHandlers) -> None:
        self._votes = votes
        self._form = form

    def begin(self, kind: str, *values: Shown) -> str:
        """Begin with what the form describes, but for x, y and alpha; the message as HTML."""
        shown = self._form.named(values)
        try:
            self._votes.start(self._form.table(kind, shown))
        except ExtensionError as error:
            return self._form.error(error, kind, shown)
        return done_html(BEGUN)
