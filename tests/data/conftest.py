"""Pictures drawn on the spot; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extensions_lib.data.buckets import crop_box
from extensions_lib.data.example import Example


@pytest.fixture
def noise():
    """noise(width, height, seed): an RGB picture of random pixels; another seed gives another file."""

    def draw(width: int, height: int, seed: int = 0) -> Image.Image:
        values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(values, "RGB")

    return draw


@pytest.fixture
def quadrants():
    """A 64x32 RGB picture: red, green above blue, white. Tells all eight orientations apart."""
    image = Image.new("RGB", (64, 32))
    for colour, place in (
        ((255, 0, 0), (0, 0, 32, 16)),
        ((0, 255, 0), (32, 0, 64, 16)),
        ((0, 0, 255), (0, 16, 32, 32)),
        ((255, 255, 255), (32, 16, 64, 32)),
    ):
        image.paste(colour, place)
    return image


@pytest.fixture
def make_example():
    """make_example(index, bucket, repeats, caption): an example without a file."""

    def make(index: int = 0, bucket=(64, 64), repeats: int = 1, caption: str = "", path: str = "cats/a.png") -> Example:
        return Example(
            index, Path(path), Path(path).name, f"{index:064x}", *bucket, False, bucket,
            crop_box(*bucket, bucket), caption, repeats,
        )  # fmt: skip

    return make
