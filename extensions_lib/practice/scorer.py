"""Judge practice pictures by their pixels: which colour, which shape, which background. Nothing here is learned.

The border names the background, everything that differs from it is the foreground, the nearest named colour is its
colour, and the named shape whose silhouette overlaps best, after moving and scaling, is its shape.
Pictures are PIL images or uint8 arrays (H, W, 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from . import drawing

Picture = Image.Image | np.ndarray

FOREGROUND_DISTANCE = 55.0  # RGB distance from the background that counts as foreground
MIN_AREA_SHARE = 0.01
TEMPLATE_PX = 32
TEMPLATE_TILTS = (-8.0, 0.0, 8.0)
BORDER_PX = 2


@dataclass(frozen=True)
class Reading:
    """What a picture shows. Shape and colour are "none" when nothing stands out; `overlap` is the best IoU, 0..1."""

    shape: str
    colour: str
    background: str
    overlap: float


def read_picture(picture: Picture) -> Reading:
    """Name shape, colour and background of `picture`."""
    pixels = as_pixels(picture)
    backdrop = background_colour(pixels)
    background = nearest_colour(backdrop, drawing.BACKGROUNDS)
    mask = foreground_mask(pixels, backdrop)
    if mask.mean() < MIN_AREA_SHARE:
        return Reading("none", "none", background, 0.0)
    colour = nearest_colour(np.median(pixels[mask], axis=0), drawing.COLOURS)
    shape, overlap = nearest_shape(mask)
    return Reading(shape, colour, background, overlap)


def as_pixels(picture: Picture) -> np.ndarray:
    """Float RGB pixels (H, W, 3) in 0..255."""
    pixels = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"picture has shape {pixels.shape}; expected (height, width, 3)")
    return pixels.astype(np.float64)


def background_colour(pixels: np.ndarray) -> np.ndarray:
    """Median colour (3,) of the picture's border."""
    return np.median(pixels[_border(pixels.shape[:2])], axis=0)


def foreground_mask(pixels: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    """Largest connected region (H, W) of pixels that differ from `backdrop` (3,); cracks of two pixels are closed.

    Such cracks appear where the blend of two neighbouring colours happens to be the background's.
    """
    return largest_region(_closed(np.linalg.norm(pixels - backdrop, axis=2) > FOREGROUND_DISTANCE))


def nearest_colour(colour: np.ndarray, palette: dict[str, drawing.Colour]) -> str:
    """Name of the palette's entry nearest to `colour` (3,) in RGB."""
    return min(palette, key=lambda name: float(np.linalg.norm(np.subtract(palette[name], colour))))


def nearest_shape(mask: np.ndarray) -> tuple[str, float]:
    """Name of the shape whose silhouette fits `mask` (H, W) best, and the overlap (IoU, 0..1)."""
    silhouette = normalised(mask)
    overlaps = {name: max(overlap(silhouette, t) for t in templates) for name, templates in _templates().items()}
    best = max(overlaps, key=lambda name: overlaps[name])
    return best, overlaps[best]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks of one size, 0..1."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 0.0


def normalised(mask: np.ndarray) -> np.ndarray:
    """`mask` (H, W) cut to its bounding box and scaled, keeping its proportions, to TEMPLATE_PX squared."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(cut.shape)
    square = np.zeros((side, side), dtype=np.uint8)
    top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[top : top + cut.shape[0], left : left + cut.shape[1]] = cut * 255
    scaled = Image.fromarray(square).resize((TEMPLATE_PX, TEMPLATE_PX), Image.Resampling.BILINEAR)
    return np.asarray(scaled) > 127


def largest_region(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected region of `mask` (H, W); all False when `mask` is."""
    labels = _labels(mask)
    if not mask.any():
        return mask
    return labels == np.bincount(labels[mask]).argmax()


def _labels(mask: np.ndarray) -> np.ndarray:
    """Equal positive numbers for connected pixels: each takes its neighbours' largest number until none changes."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = np.where(mask, _largest_neighbour(labels), 0)
        if np.array_equal(spread, labels):
            return labels
        labels = spread


def _closed(mask: np.ndarray) -> np.ndarray:
    """`mask` (H, W) grown by one pixel and shrunk again."""
    grown = _largest_neighbour(mask.astype(int))
    return np.asarray(-_largest_neighbour(-grown, outside=-1) > 0)


def _largest_neighbour(values: np.ndarray, outside: int = 0) -> np.ndarray:
    """For each pixel (H, W) the largest value of itself and its four neighbours; `outside` is beyond the edge."""
    padded = np.pad(values, 1, constant_values=outside)
    five = (padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.asarray(np.max(five, axis=0))


def _border(size: tuple[int, int]) -> np.ndarray:
    border = np.ones(size, dtype=bool)
    border[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = False
    return border


@lru_cache(maxsize=1)
def _templates() -> dict[str, list[np.ndarray]]:
    """Silhouettes of every shape, upright and leaning either way."""
    scenes = {name: drawing.Scene(name, "black", "white", "large") for name in drawing.SHAPES}
    return {name: [_silhouette(scene, tilt) for tilt in TEMPLATE_TILTS] for name, scene in scenes.items()}


def _silhouette(scene: drawing.Scene, tilt: float) -> np.ndarray:
    pixels = as_pixels(drawing.render(scene, drawing.Pose(radius=25.0, tilt=tilt)))
    return normalised(pixels.mean(axis=2) < 128)
