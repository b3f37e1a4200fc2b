"""The practice world: coloured shapes on coloured backgrounds, drawn from a seed.

A `Scene` says what is in a picture, `render` paints it, `random_scene` invents one and `caption_of` describes it.
Everything random comes from the `random.Random` handed in, so a seed always gives the same pictures.
Lengths are in pixels of the finished picture; colours are RGB triples in 0..255.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

RESOLUTION_PX = 64
SUPERSAMPLING = 4

Colour = tuple[int, int, int]
Point = tuple[float, float]

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS: dict[str, Colour] = {
    "red": (215, 35, 40),
    "orange": (245, 140, 25),
    "yellow": (248, 225, 55),
    "green": (45, 165, 65),
    "blue": (40, 85, 220),
    "purple": (140, 55, 175),
    "black": (22, 22, 22),
    "white": (245, 245, 245),
}
BACKGROUNDS: dict[str, Colour] = {**COLOURS, "gray": (135, 135, 135)}
RADII_PX = {"small": (17.0, 18.5), "medium": (20.5, 22.0), "large": (24.0, 26.0)}

NUM_STRIPES = 5
OUTLINE_FRACTION = 0.2  # of the radius
MARGIN_PX = 3.0
SHIFT_PX = 5.0
SHADE_JITTER = 10
TILT_DEGREES = 6.0


@dataclass(frozen=True)
class Scene:
    """One shape on one background. `stripe` and `outline` name a second and a third colour, or are None."""

    shape: str
    colour: str
    background: str
    size: str = "medium"
    stripe: str | None = None
    outline: str | None = None


@dataclass(frozen=True)
class Pose:
    """Where the shape is and how it leans: centre and radius in pixels, tilt in degrees, shade seed for the colours."""

    x: float = RESOLUTION_PX / 2
    y: float = RESOLUTION_PX / 2
    radius: float = 20.0
    tilt: float = 0.0
    shade: int | None = None


def random_scene(rng: random.Random) -> Scene:
    """A scene whose neighbouring colours differ; most of them plain, the others striped, outlined or both."""
    palette = list(COLOURS)
    colour, stripe, outline = rng.sample(palette, 3)
    background = rng.choice([name for name in BACKGROUNDS if name not in (colour, stripe, outline)])
    kind = rng.choices(("plain", "striped", "outlined", "both"), (60, 20, 10, 10))[0]
    return Scene(
        shape=rng.choice(SHAPES),
        colour=colour,
        background=background,
        size=rng.choice(list(RADII_PX)),
        stripe=stripe if kind in ("striped", "both") else None,
        outline=outline if kind in ("outlined", "both") else None,
    )


def random_pose(rng: random.Random, radii_px: tuple[float, float]) -> Pose:
    """A pose with a radius from `radii_px`, at most SHIFT_PX off the centre and MARGIN_PX or more from the edge."""
    radius = rng.uniform(*radii_px)
    reach = min(RESOLUTION_PX / 2 - radius - MARGIN_PX, SHIFT_PX)
    centre = RESOLUTION_PX / 2
    return Pose(
        x=centre + rng.uniform(-reach, reach),
        y=centre + rng.uniform(-reach, reach),
        radius=radius,
        tilt=rng.uniform(-TILT_DEGREES, TILT_DEGREES),
        shade=rng.randrange(1 << 30),
    )


def caption_of(scene: Scene, rng: random.Random) -> str:
    """A description of `scene`; one time in three it leaves something out (the size is left out most often)."""
    shown = scene
    omission = rng.choices(("nothing", "background", "colour", "shape"), (70, 14, 8, 8))[0]
    noun = "shape" if omission == "shape" else shown.shape
    colours = "" if omission == "colour" else _colour_words(shown)
    size = shown.size if rng.random() < 0.4 else ""
    thing = " ".join(word for word in (size, colours, noun) if word)
    if shown.outline and omission != "colour":
        thing += f" with {with_article(shown.outline)} outline"
    if omission == "background":
        return rng.choice((with_article(thing), thing, f"a picture of {with_article(thing)}"))
    return rng.choice(
        (
            f"{with_article(thing)} on {with_article(shown.background)} background",
            f"{with_article(thing)} on {with_article(shown.background)} background",
            f"{with_article(thing)}, {shown.background} background",
            f"{thing}, {shown.background} background",
            f"{thing} on {shown.background}",
            f"a picture of {with_article(thing)} on {with_article(shown.background)} background",
        )
    )


def render(scene: Scene, pose: Pose | None = None, resolution_px: int = RESOLUTION_PX) -> Image.Image:
    """Paint `scene` in `pose` (default: centred, upright, exact colours) as a square RGB picture."""
    pose = pose or Pose(radius=sum(RADII_PX[scene.size]) / 2)
    shades = random.Random(pose.shade) if pose.shade is not None else None
    canvas = blank_canvas(shaded(BACKGROUNDS[scene.background], shades))
    stripe = shaded(COLOURS[scene.stripe], shades) if scene.stripe else None
    outline = shaded(COLOURS[scene.outline], shades) if scene.outline else None
    paint_shape(canvas, shape_points(scene.shape), pose, shaded(COLOURS[scene.colour], shades), stripe, outline)
    return finish(canvas, resolution_px)


def random_picture(rng: random.Random, scene: Scene | None = None) -> tuple[Image.Image, str]:
    """A picture and its caption; of a scene invented here unless one is given."""
    scene = scene or random_scene(rng)
    return render(scene, random_pose(rng, RADII_PX[scene.size])), caption_of(scene, rng)


def vary_unsaid(scene: Scene, caption: str, rng: random.Random) -> Scene:
    """Another scene that `caption` describes equally well: what the caption leaves out is drawn anew."""
    other = random_scene(rng)
    said = caption.replace(",", " ").split()
    changes: dict[str, str | None] = {}
    if not any(size in said for size in RADII_PX):
        changes["size"] = other.size
    if scene.shape not in said:
        changes["shape"] = other.shape
    if scene.colour not in said:
        changes.update(colour=other.colour, stripe=other.stripe, outline=other.outline)
    varied = replace(scene, **changes)
    free = [b for b in BACKGROUNDS if b not in (varied.colour, varied.stripe, varied.outline)]
    if scene.background not in said:
        return replace(varied, background=rng.choice(free))
    return varied if scene.background in free else scene


def shape_points(shape: str) -> list[Point]:
    """Corner points of `shape` around (0, 0) within radius 1, y pointing down."""
    if shape == "circle":
        return [_polar(1.0, 360 * i / 72) for i in range(72)]
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [(0.0, -0.95), (0.98, 0.8), (-0.98, 0.8)]
    if shape == "star":
        return [_polar(1.0 if i % 2 == 0 else 0.42, 36 * i - 90) for i in range(10)]
    if shape == "cross":
        arm = 0.32
        quarter = [(-arm, -0.95), (arm, -0.95), (arm, -arm)]
        return [_turned(point, 90 * turn) for turn in range(4) for point in quarter]
    if shape == "heart":
        return [_heart_point(math.radians(5 * i)) for i in range(72)]
    raise ValueError(f"shape is {shape!r}; known shapes are {', '.join(SHAPES)}")


def paint_shape(
    canvas: Image.Image,
    points: list[Point],
    pose: Pose,
    colour: Colour,
    stripe: Colour | None = None,
    outline: Colour | None = None,
) -> None:
    """Paint a polygon onto a supersampled `canvas`: horizontal stripes of `stripe`, a rim of `outline`."""
    if outline is not None:
        ImageDraw.Draw(canvas).polygon(placed(points, pose), fill=outline)
        pose = replace(pose, radius=pose.radius * (1 - OUTLINE_FRACTION))
    mask = Image.new("L", canvas.size, 0)
    ImageDraw.Draw(mask).polygon(placed(points, pose), fill=255)
    fill = Image.new("RGB", canvas.size, colour)
    if stripe is not None:
        _paint_stripes(fill, pose, stripe)
    canvas.paste(fill, (0, 0), mask)


def placed(points: list[Point], pose: Pose) -> list[Point]:
    """Corner points in supersampled pixels: turned by the tilt, scaled to the radius, moved to the centre."""
    turned = (_turned(point, pose.tilt) for point in points)
    return [((pose.x + pose.radius * x) * SUPERSAMPLING, (pose.y + pose.radius * y) * SUPERSAMPLING) for x, y in turned]


def blank_canvas(colour: Colour) -> Image.Image:
    """A supersampled canvas of one colour."""
    side = RESOLUTION_PX * SUPERSAMPLING
    return Image.new("RGB", (side, side), colour)


def finish(canvas: Image.Image, resolution_px: int = RESOLUTION_PX) -> Image.Image:
    """Shrink a supersampled canvas to the finished, antialiased picture."""
    return canvas.resize((resolution_px, resolution_px), Image.Resampling.BOX)


def shaded(colour: Colour, shades: random.Random | None) -> Colour:
    """`colour` moved by up to SHADE_JITTER per channel, or unchanged without a source of shades."""
    if shades is None:
        return colour
    red, green, blue = (min(max(c + shades.randint(-SHADE_JITTER, SHADE_JITTER), 0), 255) for c in colour)
    return red, green, blue


def _paint_stripes(fill: Image.Image, pose: Pose, stripe: Colour) -> None:
    """Cover the even ones of NUM_STRIPES horizontal bands across the shape's height."""
    draw = ImageDraw.Draw(fill)
    top = (pose.y - pose.radius) * SUPERSAMPLING
    band = 2 * pose.radius * SUPERSAMPLING / NUM_STRIPES
    for index in range(1, NUM_STRIPES, 2):
        draw.rectangle((0, top + index * band, fill.width, top + (index + 1) * band - 1), fill=stripe)


def _heart_point(t: float) -> Point:
    """A point of the classic heart curve at parameter `t` in radians."""
    x = 16 * math.sin(t) ** 3
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return x / 17, -(y + 2.5) / 17


def _polar(radius: float, degrees: float) -> Point:
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


def _turned(point: Point, degrees: float) -> Point:
    """`point` turned clockwise on the screen."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return point[0] * cosine - point[1] * sine, point[0] * sine + point[1] * cosine


def _colour_words(scene: Scene) -> str:
    return f"{scene.colour} and {scene.stripe} striped" if scene.stripe else scene.colour


def with_article(words: str) -> str:
    """`words` after "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
