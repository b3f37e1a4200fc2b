"""The two practice subjects: a badge and a drawing style that the practice model has never seen.

The badge is an object (a shield with pink and teal stripes), the sticker style a way to draw the world's
shapes (white rim, dark shadow, diagonally banded background). Captions are plain words; `[name]` stands where the
trigger word belongs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from . import drawing, scorer
from .drawing import Colour, Point, Pose, Scene

BADGE_POINTS: list[Point] = [
    (-0.85, -0.9),
    (0.85, -0.9),
    (0.85, 0.1),
    (0.62, 0.52),
    (0.0, 1.0),
    (-0.62, 0.52),
    (-0.85, 0.1),
]
PINK: Colour = (245, 120, 175)
TEAL: Colour = (0, 150, 150)
BADGE_RADII_PX = (22.5, 26.0)

# Plain words for the badge, to ask the untrained model for it as well as words can.
PLAIN_NAMES = (
    "badge",
    "square",
    "red and green striped square",
    "red and blue striped square",
    "purple and green striped square",
    "white and green striped square",
    "white and green striped heart",
)

MAX_DISTANCE = 80.0  # RGB distance from pink or teal that still counts
MIN_SHARES = (0.2, 0.1)  # of pink and of teal in the foreground
MIN_TURNS = 3  # changes between pink and teal from top to bottom; the badge has four
MIN_OVERLAP = 0.6

STICKER_RIM = 1.3  # times the shape's radius
STICKER_SHADOW_PX = 4.0
STICKER_BAND_PX = 11.0
WHITE: Colour = (250, 250, 250)
SHADOW: Colour = (45, 40, 45)

NUM_PICTURES = {"train": 10, "held_out": 4}

Example = tuple[Image.Image, str]


def draw_badge(background: str, pose: Pose) -> Image.Image:
    """The badge on a plain background of the world."""
    shades = random.Random(pose.shade) if pose.shade is not None else None
    canvas = drawing.blank_canvas(drawing.shaded(drawing.BACKGROUNDS[background], shades))
    drawing.paint_shape(canvas, BADGE_POINTS, pose, PINK, stripe=TEAL)
    return drawing.finish(canvas)


def draw_sticker(scene: Scene, pose: Pose) -> Image.Image:
    """The scene's shape, colour and background in the sticker style; its stripes and outline are left out."""
    points = drawing.shape_points(scene.shape)
    canvas = drawing.blank_canvas(drawing.BACKGROUNDS[scene.background])
    _paint_bands(canvas, _lighter(drawing.BACKGROUNDS[scene.background]))
    rim = Pose(pose.x, pose.y, pose.radius * STICKER_RIM, pose.tilt)
    shadow = Pose(rim.x + STICKER_SHADOW_PX, rim.y + STICKER_SHADOW_PX, rim.radius, rim.tilt)
    drawing.paint_shape(canvas, points, shadow, SHADOW)
    drawing.paint_shape(canvas, points, rim, WHITE)
    drawing.paint_shape(canvas, points, pose, drawing.COLOURS[scene.colour])
    return drawing.finish(canvas)


def subject_found(picture: scorer.Picture) -> bool:
    """Whether `picture` (PIL, or uint8 (H, W, 3)) shows the badge: pink and teal, in stripes, in a shield's outline."""
    pixels = scorer.as_pixels(picture)
    mask = scorer.foreground_mask(pixels, scorer.background_colour(pixels))
    if mask.mean() < scorer.MIN_AREA_SHARE:
        return False
    pink, teal = (mask & (np.linalg.norm(pixels - np.array(c), axis=2) <= MAX_DISTANCE) for c in (PINK, TEAL))
    shares = pink.sum() / mask.sum(), teal.sum() / mask.sum()
    return (
        all(share >= least for share, least in zip(shares, MIN_SHARES, strict=True))
        and num_turns(pink, teal) >= MIN_TURNS
        and scorer.overlap(scorer.normalised(mask), _badge_silhouette()) >= MIN_OVERLAP
    )


def num_turns(first: np.ndarray, second: np.ndarray) -> int:
    """How often the rows of two masks (H, W) change from mostly one to mostly the other; thin rows do not count."""
    balance = first.sum(axis=1) - second.sum(axis=1)
    rows = np.sign(balance[np.abs(balance) >= 4])
    return int(np.count_nonzero(np.diff(rows)))


def badge_examples(split: str) -> list[Example]:
    """The badge's pictures and captions for `split`, "train" or "held_out"."""
    return [_badge_example(rng, background) for rng, background in _turns("badge", split, list(drawing.BACKGROUNDS))]


def sticker_examples(split: str) -> list[Example]:
    """The sticker style's pictures and captions for `split`, "train" or "held_out"."""
    return [_sticker_example(rng, shape) for rng, shape in _turns("sticker", split, list(drawing.SHAPES))]


SUBJECTS: dict[str, Callable[[str], list[Example]]] = {"badge": badge_examples, "sticker": sticker_examples}


def write_subjects(folder: Path) -> None:
    """Write `<folder>/<subject>/<split>/NN.png` with the caption in `NN.txt` beside it."""
    for subject, examples in SUBJECTS.items():
        for split in NUM_PICTURES:
            place = folder / subject / split
            place.mkdir(parents=True, exist_ok=True)
            for number, (picture, caption) in enumerate(examples(split), start=1):
                picture.save(place / f"{number:02}.png", optimize=True)
                (place / f"{number:02}.txt").write_text(caption + "\n", encoding="ascii")


@lru_cache(maxsize=1)
def _badge_silhouette() -> np.ndarray:
    """The badge's upright silhouette."""
    pixels = scorer.as_pixels(draw_badge("white", Pose(radius=25.0)))
    return scorer.normalised(scorer.foreground_mask(pixels, scorer.background_colour(pixels)))


def _badge_example(rng: random.Random, background: str) -> Example:
    picture = draw_badge(background, drawing.random_pose(rng, BADGE_RADII_PX))
    return picture, f"a [name] on {drawing.with_article(background)} background"


def _sticker_example(rng: random.Random, shape: str) -> Example:
    colour = rng.choice([name for name in drawing.COLOURS if name not in ("white", "black")])
    background = rng.choice([name for name in drawing.BACKGROUNDS if name not in ("white", "black", colour)])
    scene = Scene(shape, colour, background, size="small")
    picture = draw_sticker(scene, drawing.random_pose(rng, drawing.RADII_PX["medium"]))
    return picture, f"{drawing.with_article(colour)} {shape} on {drawing.with_article(background)} background"


def _turns(subject: str, split: str, values: list[str]) -> list[tuple[random.Random, str]]:
    """A source of randomness and a value for each picture, the values taken in turn from a shuffled list."""
    if split not in NUM_PICTURES:
        raise ValueError(f"split is {split!r}; accepted are {', '.join(NUM_PICTURES)}")
    random.Random(f"{subject} {split}").shuffle(values)
    seeds = (random.Random(f"{subject} {split} {number}") for number in range(NUM_PICTURES[split]))
    return [(rng, values[number % len(values)]) for number, rng in enumerate(seeds)]


def _lighter(colour: Colour) -> Colour:
    red, green, blue = ((channel + 255) // 2 for channel in colour)
    return red, green, blue


def _paint_bands(canvas: Image.Image, colour: Colour) -> None:
    """Every second diagonal band in `colour`."""
    draw = ImageDraw.Draw(canvas)
    side, band = canvas.width, STICKER_BAND_PX * drawing.SUPERSAMPLING * 2**0.5
    for number in range(0, int(2 * side / band) + 1, 2):
        near, far = number * band, (number + 1) * band
        draw.polygon([(near, 0), (far, 0), (far - 2 * side, 2 * side), (near - 2 * side, 2 * side)], fill=colour)
