"""One picture file, whatever its kind, as upright 8 bit RGB.

Every file is either a `Picture` or an `UnusablePicture` with the reason; nothing in between.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DatasetError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
EXTENSIONS = frozenset(
    {
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx"),
        *(".avif", ".heic", ".heif", ".jxl", ".tga", ".psd", ".ico"),  # mostly not readable, so listed with a reason
    }
)
ACCEPTED_TEXT = "PNG, JPEG, WebP, GIF, BMP, TIFF, PPM and JPEG 2000"

MIN_SIDE_PX = 16
MAX_PIXELS = 178_956_970  # where Pillow too speaks of a decompression bomb
MAX_FILE_BYTES = 1 << 30
WHITE = (255, 255, 255)
Colour = tuple[int, int, int]

# What Pillow's decoders raise on damaged input. Warning is listed for processes that turn warnings into errors.
BROKEN = (
    OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, EOFError, OverflowError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError, Warning,
)  # fmt: skip

ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnusablePicture(DatasetError):
    """A picture that cannot be used; `reason` says why in a few words, without the file name."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(f"{name}: {reason}." if name else f"The picture is unusable: {reason}.")
        self.reason = reason


@dataclass(frozen=True)
class Picture:
    """An upright picture. `rgb` has mode RGB, `alpha` mode L and the same size, or is None when all is opaque."""

    rgb: Image.Image
    alpha: Image.Image | None
    notes: tuple[str, ...] = ()


def open_picture(
    path: Path, *, background: Colour = WHITE, min_side_px: int = MIN_SIDE_PX, max_pixels: int = MAX_PIXELS
) -> Picture:
    """Read and decode `path`; see `decode_picture`. Raises UnusablePicture for unreadable files too."""
    return decode_picture(read_file(path), background=background, min_side_px=min_side_px, max_pixels=max_pixels)


def read_file(path: Path) -> bytes:
    """The bytes of a picture file. Raises UnusablePicture when it is missing, locked, empty or over 1 GiB."""
    try:
        size = path.stat().st_size
        if size == 0:
            raise UnusablePicture("empty file (0 bytes)")
        if size > MAX_FILE_BYTES:
            raise UnusablePicture(f"file too large: {size / (1 << 30):.1f} GiB, at most 1 GiB")
        return path.read_bytes()
    except OSError as error:
        raise UnusablePicture(f"cannot be opened: {error.strerror or error}") from error


def decode_picture(
    data: bytes, *, background: Colour = WHITE, min_side_px: int = MIN_SIDE_PX, max_pixels: int = MAX_PIXELS
) -> Picture:
    """The picture in `data`, a whole file.

    EXIF orientation is applied, every mode becomes RGB, transparency is laid over `background` (RGB in 0..255) and
    kept beside it, deeper grey is scaled to 8 bit, the first frame stands for an animation.
    Raises UnusablePicture when there is no picture, it is damaged, its shorter side is under `min_side_px` or it has
    more than `max_pixels` pixels; the size is checked before anything is decoded.
    """
    image = _identify(data)
    _check_size(image.size, min_side_px, max_pixels)
    try:
        notes = _frame_notes(image)
        image.load()
        rgb, alpha, more_notes = _to_rgb(_turn_upright(image), background)
    except UnusablePicture:
        raise
    except BROKEN as error:
        raise UnusablePicture(f"damaged or truncated: {error}") from error
    return Picture(rgb, alpha, (*notes, *more_notes))


def _identify(data: bytes) -> Image.Image:
    """Find the decoder as Image.open does, without its size warning and only among the formats we want."""
    Image.init()
    damage: Exception | None = None
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or not _accepts(accept, data[:16]):
            continue
        try:
            return factory(io.BytesIO(data), "")
        except BROKEN as error:
            damage = error
    if damage is not None:
        raise UnusablePicture(f"damaged or truncated: {damage}") from damage
    raise UnusablePicture(_describe_foreign(data))


def _accepts(accept: Callable[[bytes], bool | str] | None, prefix: bytes) -> bool:
    # A decoder that is present in name only answers with a text instead of True.
    answer = accept(prefix) if accept is not None else False
    return bool(answer) and not isinstance(answer, str)


def _describe_foreign(data: bytes) -> str:
    known = {b"\xff\x0a": "JPEG XL", b"\x00\x00\x00\x0cJXL ": "JPEG XL", b"8BPS": "Photoshop"}
    for start, name in known.items():
        if data.startswith(start):
            return f"{name} cannot be read; accepted are {ACCEPTED_TEXT}"
    if data[4:8] == b"ftyp":
        return f"HEIC, AVIF or video cannot be read; accepted are {ACCEPTED_TEXT}"
    return f"not a picture: the content is none of {ACCEPTED_TEXT}"


def _check_size(size: tuple[int, int], min_side_px: int, max_pixels: int) -> None:
    width, height = size
    if min(size) < min_side_px:
        raise UnusablePicture(f"too small: {width}x{height} px, at least {min_side_px} px")
    if width * height > max_pixels:
        raise UnusablePicture(f"too large: {width}x{height} px, at most {max_pixels / 1e6:.0f} million pixels")


def _frame_notes(image: Image.Image) -> list[str]:
    # MPO is what phones write beside one JPEG: a depth map or a second view, not an animation.
    if image.format == "MPO":
        return []
    try:
        is_animated = getattr(image, "is_animated", False)
        if is_animated:
            image.seek(0)
    except BROKEN:
        return []
    return ["several frames: the first is used"] if is_animated else []


def _turn_upright(image: Image.Image) -> Image.Image:
    # Pillow turns TIFF files itself while loading.
    if image.format == "TIFF":
        return image
    try:
        method = UPRIGHT.get(image.getexif().get(ORIENTATION_TAG))
    except BROKEN:
        method = None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image, background: Colour) -> tuple[Image.Image, Image.Image | None, list[str]]:
    if image.mode == "F" or image.mode.startswith("I"):
        grey, notes = deep_grey_to_8_bit(image)
        return grey.convert("RGB"), None, notes
    has_alpha = "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA")
    if not has_alpha:
        return image.convert("RGB"), None, []
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return rgba.convert("RGB"), None, []
    canvas = Image.new("RGBA", rgba.size, (*background, 255))
    return Image.alpha_composite(canvas, rgba).convert("RGB"), alpha, []


def deep_grey_to_8_bit(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Grey of mode I, I;16* or F as mode L, and notes.

    Integers in 0..65535 are divided by 257; floats in 0..1 are multiplied by 255 and floats in 0..255 kept; other
    ranges are stretched from their darkest to their brightest value. Raises UnusablePicture for NaN or infinity.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise UnusablePicture("holds values that are not finite")
    low, high = float(values.min()), float(values.max())
    full = 65535.0 if image.mode != "F" else 1.0 if high <= 1.0 else 255.0
    notes = []
    if low < 0 or high > full:
        notes = [f"grey values {low:g} to {high:g} stretched to 8 bit"]
        values, full = values - low, max(high - low, 1e-12)
    return Image.fromarray(np.rint(values * (255.0 / full)).astype(np.uint8), "L"), notes
