"""Text in Pillow's built-in font, which every Pillow has: measured, wrapped and drawn, enlarged by whole factors."""

from __future__ import annotations

from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

LINE_HEIGHT_PX = 13
ELLIPSIS = "..."


@lru_cache(maxsize=1)
def _font() -> ImageFont.ImageFont:
    return ImageFont.load_default()


def printable(text: str) -> str:
    """The text on one line, with '?' for what is not Latin-1: the built-in font has no other signs."""
    return " ".join(text.split()).encode("latin-1", errors="replace").decode("latin-1")


def text_width_px(text: str) -> int:
    """Width of one line at scale 1."""
    left, _, right, _ = _font().getbbox(printable(text))
    return int(right - min(left, 0))


def wrap_text(text: str, width_px: int, max_lines: int) -> list[str]:
    """At most `max_lines` lines of at most `width_px` each; words that do not fit are cut, a cut text ends in '...'."""
    lines: list[str] = []
    rest = printable(text)
    while rest and len(lines) < max_lines:
        line, rest = _first_line(rest, width_px)
        lines.append(line)
    if rest:
        lines[-1] = _elided(lines[-1], width_px)
    return lines


def _first_line(text: str, width_px: int) -> tuple[str, str]:
    """The words that fit, at least one letter, and what is left."""
    if text_width_px(text) <= width_px:
        return text, ""
    length = max(_fitting_length(text, width_px), 1)
    space = text.rfind(" ", 0, length + 1)
    end = space if space > 0 else length
    return text[:end].rstrip(), text[end:].lstrip()


def _elided(line: str, width_px: int) -> str:
    return line[: _fitting_length(line, width_px - text_width_px(ELLIPSIS))].rstrip(" ,.") + ELLIPSIS


def _fitting_length(text: str, width_px: int) -> int:
    """How many letters of `text` fit."""
    return next((n for n in range(len(text), 0, -1) if text_width_px(text[:n]) <= width_px), 0)


def draw_text(sheet: Image.Image, corner: tuple[int, int], text: str, ink: tuple[int, int, int], scale: int) -> None:
    """Draw one line with its upper left corner at `corner`, every font pixel `scale` pixels wide."""
    width = text_width_px(text)
    if width == 0:
        return
    mask = Image.new("L", (width, LINE_HEIGHT_PX), 0)
    ImageDraw.Draw(mask).text((0, 0), printable(text), fill=255, font=_font())
    enlarged = mask.resize((width * scale, LINE_HEIGHT_PX * scale), Image.Resampling.NEAREST)
    sheet.paste(ink, (*corner, corner[0] + enlarged.width, corner[1] + enlarged.height), enlarged)
