"""The loss curve as a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 720, 360, 48
COLOURS = {"weighted loss": (200, 60, 50), "noise error": (40, 90, 180)}


def draw_curve(table: Path, target: Path) -> None:
    """Draw the columns of `table` (step, weighted loss, noise error) on a logarithmic scale."""
    with table.open(encoding="ascii") as file:
        rows = [[float(value) for value in row] for row in csv.reader(file)]
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(canvas)
    values = [value for row in rows for value in row[1:]]
    low, high = math.floor(math.log10(min(values)) * 4) / 4, math.ceil(math.log10(min(max(values), 1.0)) * 4) / 4
    last_step = rows[-1][0]

    def place(step: float, value: float) -> tuple[float, float]:
        height = (min(math.log10(value), high) - low) / (high - low)
        return MARGIN + step / last_step * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - height * (HEIGHT - 2 * MARGIN)

    _draw_grid(draw, place, low, high, last_step)
    for column, (name, colour) in enumerate(COLOURS.items(), start=1):
        draw.line([place(row[0], row[column]) for row in rows], fill=colour, width=2)
        draw.text((WIDTH - 160, 10 + 14 * column), name, fill=colour)
    canvas.save(target, optimize=True)


def _draw_grid(
    draw: ImageDraw.ImageDraw,
    place: Callable[[float, float], tuple[float, float]],
    low: float,
    high: float,
    last_step: float,
) -> None:
    """Lines and numbers at quarter decades and at five steps."""
    for quarter in range(round(low * 4), round(high * 4) + 1):
        value = 10 ** (quarter / 4)
        start, end = place(0, value), place(last_step, value)
        draw.line([start, end], fill=(225, 225, 225))
        draw.text((6, start[1] - 5), f"{value:.3f}", fill="black")
    for fifth in range(6):
        step = last_step * fifth / 5
        draw.text((place(step, 10**low)[0] - 12, HEIGHT - MARGIN + 8), f"{step:.0f}", fill="black")
