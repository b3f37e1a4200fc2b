"""What several rooms' tests need: the practice model, and a folder of small pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from .model_families import FamilyModels

PRACTICE_MODEL = Path(__file__).parents[1] / "extensions_lib" / "practice" / "model" / "practice.safetensors"


@pytest.fixture(scope="session")
def practice_model() -> Path:
    """The practice checkpoint that ships with the package."""
    return PRACTICE_MODEL


@pytest.fixture(scope="session")
def family_models(tmp_path_factory: pytest.TempPathFactory) -> FamilyModels:
    """Small checkpoints with random weights, by name: 'sd1', 'sd2-v', 'sdxl', 'sdxl-inpaint', ..."""
    return FamilyModels(tmp_path_factory.mktemp("families"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five captioned pictures of two sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(5):
        image = Image.new("RGB", (64 + 32 * (index % 2), 64), (40 * index, 200, 255 - 40 * index))
        ImageDraw.Draw(image).ellipse((10 + index, 12, 50, 52), fill=(200, 30, 30 * index))
        image.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a [name], number {index}", encoding="utf-8")
    return folder
