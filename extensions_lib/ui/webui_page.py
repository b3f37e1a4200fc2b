"""What the WebUI's own pages need of gradio: a setting's control, and a tab that only says what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr


def radio_setting(choices: Sequence[str]) -> dict[str, Any]:
    """The control of a setting with few choices."""
    return {"component": gr.Radio, "component_args": {"choices": list(choices)}}


def notice_tab(lines: Sequence[str]) -> gr.Blocks:
    """A tab in place of ours when ours cannot be made."""
    with gr.Blocks(analytics_enabled=False) as tab:
        text = "".join(f"<p>{escape(line)}</p>" for line in lines)
        gr.HTML(f'<div class="ts-message">{text}</div>', elem_id="train_studio_notice")
    return tab
