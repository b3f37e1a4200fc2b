"""The prompts that are kept beside the pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions_lib.config.preview import PreviewPrompt
from extensions_lib.preview.record import read_prompts, write_prompts

PROMPTS = (PreviewPrompt(prompt="a [name] für 'x'", seed=2**32 - 1), PreviewPrompt(prompt="b", guidance_scale=6.5))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_prompts(tmp_path, PROMPTS[:1])
    write_prompts(tmp_path, PROMPTS)
    assert read_prompts(tmp_path) == PROMPTS


@pytest.mark.parametrize("text", [None, "", "{", "5", '[{"prompt": "a", "colour": 1}]', "[5]"])
def test_a_missing_or_foreign_record_counts_as_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "prompts.json").write_text(text, encoding="utf-8")
    assert read_prompts(tmp_path) == ()
