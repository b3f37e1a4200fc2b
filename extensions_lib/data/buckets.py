"""Aspect-ratio buckets: the sizes pictures are trained at, so that none is squashed.

A bucket is (width, height) in pixels, about `resolution_px` squared in area, both sides multiples of the step.
The list is kohya's (library/model_util.py, bucket generator); the choice is by the logarithm of the ratio, which
treats tall and wide pictures alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ..errors import DatasetError

Bucket = tuple[int, int]
LATENT_PX = 8
REDUCING_GAP = 3.0


@dataclass(frozen=True)
class CropBox:
    """The part of the upright picture that is seen, in its own pixels, and `scale`, bucket pixels per picture pixel."""

    left: float
    top: float
    right: float
    bottom: float
    scale: float

    @property
    def offset_px(self) -> tuple[int, int]:
        """(top, left) of the crop in the scaled picture, as the micro-conditioning of SDXL counts it."""
        return round(self.top * self.scale), round(self.left * self.scale)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom), as Pillow wants it."""
        return self.left, self.top, self.right, self.bottom

    @property
    def area_px(self) -> float:
        """The number of picture pixels inside."""
        return (self.right - self.left) * (self.bottom - self.top)


def default_step_px(resolution_px: int) -> int:
    """64 px; 8 px below a resolution of 256, where 64 would leave no choice."""
    return 64 if resolution_px >= 256 else LATENT_PX


def make_buckets(
    resolution_px: int, step_px: int | None = None, min_px: int | None = None, max_px: int | None = None
) -> tuple[Bucket, ...]:
    """All buckets for squares of `resolution_px`, sorted. Sides are from `min_px` (default resolution / 2) to `max_px`
    (default 2 * resolution), rounded down to the step. Raises DatasetError for sizes that give no bucket.
    """
    step = step_px or default_step_px(resolution_px)
    _check_step(resolution_px, step)
    low = max(step, (min_px or resolution_px // 2) // step * step)
    high = (max_px or 2 * resolution_px) // step * step
    square = resolution_px // step * step
    if not low <= square <= high:
        raise DatasetError(
            f"The bucket sizes {low} to {high} px leave out the square of {square} px.",
            f"Choose a smallest side of at most {square} px and a largest of at least {square} px.",
        )
    found = {(square, square)}
    for width in range(low, high + 1, step):
        height = min(high, resolution_px**2 // width // step * step)
        if height >= low:
            found |= {(width, height), (height, width)}
    return tuple(sorted(found))


def _check_step(resolution_px: int, step_px: int) -> None:
    if step_px < LATENT_PX or step_px % LATENT_PX:
        raise DatasetError(
            f"The bucket step is {step_px} px; accepted are multiples of {LATENT_PX}.",
            "Use 64, or 8 for small ones.",
        )
    if resolution_px < step_px:
        raise DatasetError(
            f"The resolution {resolution_px} px is smaller than the bucket step of {step_px} px.",
            "Use a larger resolution or a step of 8 px.",
        )


def choose_bucket(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket whose ratio is nearest to width / height, by the logarithm; of equals the largest, then the widest."""

    def rank(bucket: Bucket) -> tuple[float, int, int]:
        distance = abs(math.log(width / height) - math.log(bucket[0] / bucket[1]))
        return round(distance, 9), -bucket[0] * bucket[1], -bucket[0]

    return min(buckets, key=rank)


def bucket_without_upscale(width: int, height: int, resolution_px: int, step_px: int) -> Bucket:
    """The largest size, in steps, that a picture fills without being enlarged, at most `resolution_px` squared in area.

    A side shorter than one step still gets one step, so that such a picture alone is enlarged.
    """
    shrink = min(1.0, resolution_px / math.sqrt(width * height))
    sides = (int((side * shrink + 1e-6) // step_px) * step_px for side in (width, height))
    wide, tall = (max(step_px, side) for side in sides)
    return wide, tall


def assign_bucket(
    width: int, height: int, buckets: Sequence[Bucket], *, resolution_px: int, step_px: int, allow_upscale: bool = True
) -> Bucket:
    """The nearest bucket; without `allow_upscale` a smaller one where the picture would have to be enlarged."""
    bucket = choose_bucket(width, height, buckets)
    if allow_upscale or crop_box(width, height, bucket).scale <= 1.0:
        return bucket
    return bucket_without_upscale(width, height, resolution_px, step_px)


def crop_box(width: int, height: int, bucket: Bucket) -> CropBox:
    """The centred part of a width x height picture that has exactly the bucket's ratio and is as large as possible."""
    scale = max(bucket[0] / width, bucket[1] / height)
    used_width, used_height = min(width, bucket[0] / scale), min(height, bucket[1] / scale)
    left, top = (width - used_width) / 2, (height - used_height) / 2
    return CropBox(left, top, min(width, left + used_width), min(height, top + used_height), scale)


def fit_to_bucket(image: Image.Image, bucket: Bucket) -> tuple[Image.Image, CropBox]:
    """`image` cropped and scaled to `bucket` in one Lanczos step (large ones are averaged first), and the crop."""
    crop = crop_box(*image.size, bucket)
    resized = image.resize(bucket, Image.Resampling.LANCZOS, box=crop.box, reducing_gap=REDUCING_GAP)
    return resized, crop
