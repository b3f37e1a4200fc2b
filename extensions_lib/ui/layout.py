"""What the parts of the page share: how events run, and HTML that takes no more room than it needs."""

from __future__ import annotations

from typing import Any

import gradio as gr

# No queue: every handler is short, and the WebUI's queue waits behind Generate.
QUICK: dict[str, Any] = {"queue": False, "api_name": False, "show_progress": "hidden"}
# The same, for what takes a second or two.
SEEN: dict[str, Any] = {**QUICK, "show_progress": "full"}
LOOK_AT_JOBS = "() => { if (window.trainStudio && trainStudio.select) { trainStudio.select(); } }"


def html_block(value: str, elem_id: str, *, visible: bool = True) -> Any:
    """HTML in a column, no higher than it must be, that has the id: gradio 3.41 gives an id of HTML to two elements."""
    with gr.Column(elem_id=elem_id, scale=0, visible=visible):
        return gr.HTML(value)
