"""The practice model that ships with Train Studio, the world it draws, and two subjects to train on."""

from __future__ import annotations

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
SUBJECTS_FOLDER = Path(__file__).parent / "subjects"
BADGE_FOLDER = SUBJECTS_FOLDER / "badge"
STICKER_FOLDER = SUBJECTS_FOLDER / "sticker"


def practice_checkpoint() -> Path:
    """The practice model; its configuration is the `.yaml` of the same name beside it."""
    return MODEL_FOLDER / "practice.safetensors"
