"""The tab as a page of its own, without a WebUI around it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import ConfigError, Problem
from .compat import js_argument

ASSETS = Path(__file__).resolve().parents[2]
TAB_ID = "tab_train_studio"
# Fonts of the machine: the theme's own come from the network.
FONT = ("system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")


@dataclass(frozen=True)
class Served:
    """A page that is being served: its address, its FastAPI app, and how to end it."""

    url: str
    app: Any
    close: Callable[[], None]


def standalone_page(tab: gr.Blocks, title: str) -> gr.Blocks:
    """A page with `tab` in an element called as the WebUI calls the tab, and with our style and script."""
    theme = gr.themes.Default(font=list(FONT), font_mono=list(MONO))
    with gr.Blocks(theme=theme, title=title, analytics_enabled=False) as page:
        with gr.Column(elem_id=TAB_ID):
            tab.render()
        page.load(fn=None, inputs=[], outputs=[], **js_argument(_add_assets()))
    return page


def serve_page(page: gr.Blocks, server_name: str, port: int, users: Sequence[tuple[str, str]]) -> Served:
    """Serve `page` in threads of its own and return at once. Raises ConfigError when the port is taken."""
    try:
        _try_port(server_name, port)
        app, url, _ = page.launch(
            server_name=server_name,
            server_port=port,
            auth=list(users) or None,
            prevent_thread_lock=True,
            show_api=False,
            quiet=True,
        )
    except OSError as error:
        problem = Problem("port", f"is {port}, which is in use or may not be used")
        raise ConfigError([problem], "Choose another.") from error
    return Served(url, app, lambda: page.close(verbose=False))


def _try_port(server_name: str, port: int) -> None:
    """Raises OSError when the port is taken. gradio asks the same way, but leaves the socket of a failed try open."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((server_name, port))


def _add_assets() -> str:
    """Script for the page that adds our style and script to its head; gradio 3 has no other door for both."""
    style = (ASSETS / "style.css").read_text(encoding="utf-8")
    script = (ASSETS / "javascript" / "train_studio.js").read_text(encoding="utf-8")
    return (
        "() => { for (const [kind, text] of "
        f"{json.dumps([['style', style], ['script', script]])}) "
        "{ const tag = document.createElement(kind); tag.textContent = text; document.head.append(tag); } }"
    )
