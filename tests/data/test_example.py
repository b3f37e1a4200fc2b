from __future__ import annotations

from pathlib import Path

from extensions_lib.data.buckets import CropBox, crop_box
from extensions_lib.data.example import Example


def example(width: int, height: int, bucket: tuple[int, int], crop: CropBox) -> Example:
    return Example(0, Path("a.png"), "a.png", "", width, height, False, bucket, crop, "")


def test_sizes_are_height_first_and_the_crop_is_counted_in_the_scaled_picture() -> None:
    """1000 x 2000 px fill a bucket of 768 x 1344 at 768 x 1536, of which 96 rows are cut off at the top."""
    tall = example(1000, 2000, (768, 1344), crop_box(1000, 2000, (768, 1344)))
    assert tall.sizes(flip=False) == (2000, 1000, 96, 0, 1344, 768)
    wide = example(2000, 1000, (1344, 768), crop_box(2000, 1000, (1344, 768)))
    assert wide.sizes(flip=False) == (1000, 2000, 0, 96, 768, 1344)


def test_a_mirrored_picture_is_cut_from_its_other_side() -> None:
    """200 x 100 px at half size are 100 x 50; of them 64 columns are seen, 10 to their left and 26 to their right."""
    off_centre = example(200, 100, (64, 48), CropBox(20, 0, 148, 96, 0.5))
    assert off_centre.sizes(flip=False) == (100, 200, 0, 10, 48, 64)
    assert off_centre.sizes(flip=True) == (100, 200, 0, 26, 48, 64)
