"""What is known of one picture of a dataset before anything is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .buckets import Bucket, CropBox


@dataclass(frozen=True)
class Example:
    """One usable picture. Sizes are in pixels of the upright picture.

    `name` is the path relative to the dataset's folder with forward slashes, `sha256` that of the file's bytes,
    `caption` the text of its caption file or file name, before any template. `notes` tell what the user may want to
    know.
    """

    index: int
    path: Path
    name: str
    sha256: str
    width: int
    height: int
    has_alpha: bool
    bucket: Bucket
    crop: CropBox
    caption: str
    repeats: int = 1
    notes: tuple[str, ...] = ()

    def sizes(self, *, flip: bool) -> tuple[int, int, int, int, int, int]:
        """(height, width) of the picture, (top, left) of the crop in the scaled picture, (height, width) of the bucket.

        SDXL is told of them in this order. A mirrored picture is cut as far from its other side.
        """
        bucket_width, bucket_height = self.bucket
        top, left = self.crop.offset_px
        if flip:
            left = round(self.width * self.crop.scale) - bucket_width - left
        return self.height, self.width, top, left, bucket_height, bucket_width


@dataclass(frozen=True)
class Skipped:
    """A picture file that is not used: `name` relative to the folder, and the reason."""

    path: Path
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"
