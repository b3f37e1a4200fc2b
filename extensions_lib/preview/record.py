"""The prompts a run draws, kept beside its pictures: prompts that were taken from captions are in no setting."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from ..config.preview import PreviewPrompt
from ..formats.atomic import write_bytes_atomic

RECORD_NAME = "prompts.json"


def write_prompts(folder: Path, prompts: Sequence[PreviewPrompt]) -> None:
    """Write the prompts of the pictures in `folder`, [name] and sizes as they were given."""
    text = json.dumps([dataclasses.asdict(prompt) for prompt in prompts], ensure_ascii=False, indent=1)
    write_bytes_atomic(folder / RECORD_NAME, text.encode("utf-8"), overwrite=True)


def read_prompts(folder: Path) -> tuple[PreviewPrompt, ...]:
    """The prompts written into `folder`; none when there is no such record or it cannot be read."""
    try:
        records = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        return tuple(PreviewPrompt(**record) for record in records)
    except (OSError, ValueError, TypeError):
        return ()
