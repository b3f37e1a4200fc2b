"""The form with its handlers, in a host whose computer is busy, so that nothing is trained."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from extensions_lib.host.standalone import StandaloneHost
from extensions_lib.jobs.manager import JobManager
from extensions_lib.ports import AccessPolicy
from extensions_lib.ui.fields import all_fields, shown_values
from extensions_lib.ui.forms import Form
from extensions_lib.ui.handlers import Handlers
from extensions_lib.ui.tab import ACCORDIONS


class BusyHost(StandaloneHost):
    """Somebody else computes until `free` is set."""

    policy = AccessPolicy()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.free = threading.Event()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self.free.wait(60)
        yield

    def access(self) -> AccessPolicy:
        return self.policy


class Page:
    """A form with its handlers, and what its controls show."""

    def __init__(self, host: BusyHost) -> None:
        self.host = host
        self.manager = JobManager(host)
        self.shown = shown_values({"preset": "lora_character", "method": {"kind": "lora"}})
        with gr.Blocks(analytics_enabled=False):
            self.form = Form(self.shown, "lora", hide_paths=False)
            for field in all_fields():
                if field.is_essential:
                    self.form.add(field)
            for section in ACCORDIONS:
                self.form.accordion(section)
        self.handlers = Handlers(self.manager, host, self.form)

    def values(self) -> list[Any]:
        return [self.shown[key] for key in self.form.keys]

    def take(self, updates: list[Any]) -> dict[str, Any]:
        """Show what updates of all controls say, and return what changed."""
        named = dict(zip(self.form.keys, updates, strict=True))
        changed = {key: update["value"] for key, update in named.items() if "value" in update}
        self.shown |= changed
        return changed
