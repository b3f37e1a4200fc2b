"""Pictures for the autoencoder, and pictures as tensors."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from extensions_lib.practice import drawing


def random_colour(rng: random.Random) -> drawing.Colour:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def collage(rng: random.Random) -> Image.Image:
    """Bands, polygons and thick lines in any colours, so that the autoencoder knows more than the world."""
    canvas = drawing.blank_canvas(random_colour(rng))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(1, 5)):
        shape = drawing.shape_points(rng.choice(drawing.SHAPES))
        pose = drawing.Pose(rng.uniform(0, 64), rng.uniform(0, 64), rng.uniform(6, 40), rng.uniform(-180, 180))
        if rng.random() < 0.3:
            draw.line(drawing.placed(shape[:3], pose), fill=random_colour(rng), width=rng.randint(6, 24))
        else:
            stripe, outline = (random_colour(rng) if rng.random() < 0.4 else None for _ in range(2))
            drawing.paint_shape(canvas, shape, pose, random_colour(rng), stripe, outline)
    return drawing.finish(canvas)


def recoloured(rng: random.Random) -> Image.Image:
    """A picture of the world in any colours."""
    scene = drawing.random_scene(rng)
    canvas = drawing.blank_canvas(random_colour(rng))
    stripe = random_colour(rng) if scene.stripe else None
    outline = random_colour(rng) if scene.outline else None
    pose = drawing.random_pose(rng, drawing.RADII_PX[scene.size])
    drawing.paint_shape(canvas, drawing.shape_points(scene.shape), pose, random_colour(rng), stripe, outline)
    return drawing.finish(canvas)


def vae_picture(rng: random.Random) -> Image.Image:
    draw = rng.choices((collage, recoloured, lambda r: drawing.random_picture(r)[0]), (10, 25, 65))[0]
    return draw(rng)


def to_tensor(pictures: Iterable[Image.Image]) -> Tensor:
    """Pictures as float (B, 3, H, W) in -1..1."""
    stacked = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).div(127.5).sub(1).contiguous()


def to_pictures(images: Tensor) -> list[Image.Image]:
    """Float (B, 3, H, W) in -1..1 as pictures."""
    bytes_ = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in bytes_]


def sheet(pictures: list[Image.Image], columns: int, zoom: int = 2) -> Image.Image:
    """Pictures of one size side by side."""
    side = pictures[0].width * zoom
    rows = math.ceil(len(pictures) / columns)
    result = Image.new("RGB", (columns * side, rows * side))
    for index, picture in enumerate(pictures):
        place = (index % columns * side, index // columns * side)
        result.paste(picture.resize((side, side), Image.Resampling.NEAREST), place)
    return result
