"""The preview sheet: one column per prompt, one row per moment, the base model's row on top.

The pictures are files in the run's `previews` folder; the sheet is drawn anew from them whenever a row is added, so it
survives a restart and a picture that was deleted or could not be drawn leaves a marked gap.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from .lettering import LINE_HEIGHT_PX, draw_text, text_width_px, wrap_text

PAPER = (250, 250, 248)
INK = (40, 40, 44)
FAINT = (150, 150, 152)
GAP = (232, 232, 230)
SMALLEST_CELL_PX = 128
HEADER_LINES = 3
BASE_LABEL = "base model"

Row = tuple[str, Sequence[Image.Image | None]]
_PICTURE_NAME = re.compile(r"(base|\d+)-(\d+)\.png")


def picture_name(step: int | None, prompt_index: int) -> str:
    """File name of one preview: '000100-0.png', or 'base-0.png' for the base model (`step` None)."""
    return f"base-{prompt_index}.png" if step is None else f"{step:06d}-{prompt_index}.png"


def folder_rows(folder: Path, num_columns: int) -> list[Row]:
    """The rows whose pictures lie in `folder`: the base model's first, then by step. Foreign files are passed over."""
    found: dict[int, list[Image.Image | None]] = {}
    for path in sorted(folder.glob("*.png")):
        match = _PICTURE_NAME.fullmatch(path.name)
        if match is None or int(match[2]) >= num_columns:
            continue
        step = -1 if match[1] == "base" else int(match[1])
        found.setdefault(step, [None] * num_columns)[int(match[2])] = _read_picture(path)
    return [(BASE_LABEL if step < 0 else f"step {step}", found[step]) for step in sorted(found)]


def _read_picture(path: Path) -> Image.Image | None:
    """The picture as RGB, None when the file is damaged."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError:
        return None


def render_grid(columns: Sequence[str], rows: Sequence[Row], cell_px: int = 256) -> Image.Image:
    """The sheet as one RGB picture.

    `columns` are the prompts; each row is a label and one picture (or None) per column. A cell's longer side is
    `cell_px`, at least 16, and the other follows the first picture; small cells are enlarged by a whole factor to
    128 px or more, so that the labels fit. Pictures keep their proportions. Raises ValueError for a row of another
    length.
    """
    for label, images in rows:
        if len(images) != len(columns):
            raise ValueError(f"Row {label!r} has {len(images)} pictures for {len(columns)} columns.")
    layout = _Layout(columns, rows, cell_px)
    sheet = Image.new("RGB", layout.size, PAPER)
    for index, lines in enumerate(layout.headers):
        left, top = layout.corner(0, index)
        header_top = top - layout.margin - len(lines) * layout.line_px
        for number, line in enumerate(lines):
            draw_text(sheet, (left, header_top + number * layout.line_px), line, INK, layout.text_scale)
    for row_index, (label, images) in enumerate(rows):
        _draw_label(sheet, layout, row_index, label)
        for column_index, image in enumerate(images):
            _draw_cell(sheet, layout, layout.corner(row_index, column_index), image)
    return sheet


class _Layout:
    """Where everything goes, in pixels of the sheet."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Row], cell_px: int) -> None:
        self.cell = _cell_size(rows, max(cell_px, 16))
        self.text_scale = max(1, round(max(self.cell) / 256))
        self.line_px = LINE_HEIGHT_PX * self.text_scale
        self.margin = 6 * self.text_scale
        self.headers = [wrap_text(column, self.cell[0] // self.text_scale, HEADER_LINES) for column in columns]
        widest = max((text_width_px(label) for label, _ in rows), default=0) * self.text_scale
        self.left = widest + 2 * self.margin
        self.top = max((len(lines) for lines in self.headers), default=0) * self.line_px + 2 * self.margin
        self.size = self.corner(len(rows), len(columns))

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """The upper left pixel of a cell."""
        return (
            self.left + column * (self.cell[0] + self.margin),
            self.top + row * (self.cell[1] + self.margin),
        )


def _cell_size(rows: Sequence[Row], cell_px: int) -> tuple[int, int]:
    factor = -(-SMALLEST_CELL_PX // cell_px)
    longest = cell_px * factor
    first = next((image for _, images in rows for image in images if image is not None), None)
    width, height = first.size if first is not None else (1, 1)
    scale = longest / max(width, height)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _draw_label(sheet: Image.Image, layout: _Layout, row: int, label: str) -> None:
    _, top = layout.corner(row, 0)
    middle = top + (layout.cell[1] - layout.line_px) // 2
    right = layout.left - layout.margin
    draw_text(sheet, (right - text_width_px(label) * layout.text_scale, middle), label, INK, layout.text_scale)


def _draw_cell(sheet: Image.Image, layout: _Layout, corner: tuple[int, int], image: Image.Image | None) -> None:
    if image is None:
        box = (*corner, corner[0] + layout.cell[0] - 1, corner[1] + layout.cell[1] - 1)
        ImageDraw.Draw(sheet).rectangle(box, fill=GAP)
        missing, scale = "no picture", layout.text_scale
        left = corner[0] + (layout.cell[0] - text_width_px(missing) * scale) // 2
        draw_text(sheet, (left, corner[1] + (layout.cell[1] - layout.line_px) // 2), missing, FAINT, scale)
        return
    fitted = _fit(image, layout.cell)
    sheet.paste(fitted, tuple(corner[axis] + (layout.cell[axis] - fitted.size[axis]) // 2 for axis in (0, 1)))


def _fit(image: Image.Image, cell: tuple[int, int]) -> Image.Image:
    """The picture as large as fits `cell`; a whole factor up keeps its pixels square and sharp."""
    scale = min(cell[0] / image.width, cell[1] / image.height)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    keeps_pixels = scale >= 1 and scale == round(scale)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST if keeps_pixels else Image.Resampling.LANCZOS)
