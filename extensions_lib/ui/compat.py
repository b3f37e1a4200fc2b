"""Where gradio 3.41 and 4.40 differ."""

from __future__ import annotations

from typing import Any

import gradio as gr

IS_VERSION_4 = not gr.__version__.startswith("3.")


def js_argument(code: str) -> dict[str, Any]:
    """The keyword argument of an event that runs `code` in the browser."""
    return {"js" if IS_VERSION_4 else "_js": code}


def path_of(file: Any) -> str:
    """Where an uploaded file lies: an object with a name in 3.41, a text in 4.40."""
    return str(getattr(file, "name", file))
