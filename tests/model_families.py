"""Practice-size checkpoints of every family, written once a session when a test first asks for one.

The fixture `family_models` (in tests/conftest.py) answers names of `FAMILY_MODELS` with paths.
"""

from __future__ import annotations

from pathlib import Path

from extensions_lib.practice.families import VARIANTS, write_family_model

FAMILY_MODELS = tuple(VARIANTS)


class FamilyModels:
    """`family_models["sdxl"]` is the path of a small SDXL checkpoint, its yaml beside it; not to be changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[str, Path] = {}

    def __getitem__(self, name: str) -> Path:
        if name not in self._written:
            self._written[name] = write_family_model(name, self._folder)
        return self._written[name]
