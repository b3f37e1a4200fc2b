from __future__ import annotations

import io
import random
import zlib

import numpy as np
import pytest
from PIL import Image

from extensions_lib.data.images import UPRIGHT, UnusablePicture, decode_picture, open_picture
from extensions_lib.errors import DatasetError


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(image: Image.Image, format: str = "PNG", **options):
    return decode_picture(encoded(image, format, **options))


def corners(image: Image.Image) -> list[tuple[int, int, int]]:
    right, bottom = image.width - 3, image.height - 3
    return [image.getpixel(place) for place in ((2, 2), (right, 2), (2, bottom), (right, bottom))]


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(quadrants, orientation, format) -> None:
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    stored = quadrants.transpose(UPRIGHT[undo]) if orientation > 1 else quadrants
    options: dict = {"quality": 95} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decoded(stored, format, exif=exif, **options)
    assert picture.rgb.size == (64, 32)
    for got, expected in zip(corners(picture.rgb), [RED, GREEN, BLUE, WHITE], strict=True):
        assert max(abs(a - b) for a, b in zip(got, expected, strict=True)) <= 8


def test_alpha_is_turned_with_the_picture() -> None:
    stored = Image.new("RGBA", (32, 64), (0, 0, 0, 255))
    stored.putpixel((0, 0), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees clockwise: top left comes to the top right
    picture = decoded(stored, exif=exif)
    assert picture.alpha is not None and picture.alpha.size == (64, 32)
    assert picture.alpha.getpixel((63, 0)) == 0
    assert picture.rgb.getpixel((63, 0)) == (255, 255, 255)


def test_palette_transparency_survives_the_turn() -> None:
    stored = Image.new("P", (20, 30), 1)
    stored.putpalette([10, 20, 30, 40, 50, 60])
    stored.putpixel((0, 0), 0)
    exif = Image.Exif()
    exif[0x0112] = 3
    picture = decoded(stored, exif=exif, transparency=0)
    assert picture.alpha.getpixel((19, 29)) == 0 and picture.alpha.getpixel((0, 0)) == 255


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_picture_as_it_is(quadrants) -> None:
    picture = decoded(quadrants, "JPEG", quality=95, exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x05\x01")
    assert picture.rgb.size == (64, 32)
    assert picture.notes == ()


def test_alpha_is_laid_over_the_background_and_kept() -> None:
    image = Image.new("RGBA", (32, 32), (200, 100, 0, 255))
    image.putpixel((0, 0), (200, 100, 0, 0))
    image.putpixel((1, 0), (200, 100, 0, 51))
    on_white = decoded(image)
    on_blue = decode_picture(encoded(image), background=(0, 0, 250))
    assert on_white.rgb.getpixel((0, 0)) == (255, 255, 255)
    assert on_white.rgb.getpixel((1, 0)) == (244, 224, 204)
    assert on_blue.rgb.getpixel((1, 0)) == (40, 20, 200)
    assert on_white.rgb.getpixel((5, 5)) == (200, 100, 0)
    assert [on_white.alpha.getpixel((x, 0)) for x in range(3)] == [0, 51, 255]


def test_an_alpha_channel_that_hides_nothing_is_no_alpha() -> None:
    assert decoded(Image.new("RGBA", (32, 32), (1, 2, 3, 255))).alpha is None


@pytest.mark.parametrize(
    ("mode", "colour", "format", "expected"),
    [
        ("RGB", (1, 2, 3), "PNG", (1, 2, 3)),
        ("L", 77, "PNG", (77, 77, 77)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("1", 0, "TIFF", (0, 0, 0)),
        ("CMYK", (255, 0, 0, 0), "TIFF", (0, 255, 255)),
        ("CMYK", (0, 0, 0, 255), "JPEG", (0, 0, 0)),
        ("CMYK", (255, 0, 0, 0), "JPEG", (0, 255, 255)),
        ("YCbCr", (128, 128, 128), "JPEG", (128, 128, 128)),
        ("LA", (90, 255), "PNG", (90, 90, 90)),
        ("I;16", 0x8080, "PNG", (128, 128, 128)),
        ("I;16", 0x8080, "TIFF", (128, 128, 128)),
        ("I", 65535, "PNG", (255, 255, 255)),
        ("I", 257 * 7, "TIFF", (7, 7, 7)),
        ("I;16", 200, "PNG", (1, 1, 1)),
        ("F", 1.0, "TIFF", (255, 255, 255)),
        ("F", 0.5, "TIFF", (128, 128, 128)),
        ("F", 200.0, "TIFF", (200, 200, 200)),
    ],
)
def test_every_mode_becomes_rgb(mode, colour, format, expected) -> None:
    picture = decoded(Image.new(mode, (20, 24), colour), format)
    assert picture.rgb.mode == "RGB" and picture.rgb.size == (20, 24)
    assert picture.rgb.getpixel((10, 10)) == expected
    assert picture.alpha is None and picture.notes == ()


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (16, 1))
    picture = decoded(Image.fromarray(ramp))
    assert [picture.rgb.getpixel((x, 8))[0] for x in range(256)] == list(range(256))


def test_other_ranges_are_stretched_with_a_note() -> None:
    values = np.tile(np.array([-100.0, 300.0] * 10, dtype=np.float32), (20, 1))
    picture = decoded(Image.fromarray(values, "F"), "TIFF")
    assert picture.rgb.getpixel((0, 0)) == (0, 0, 0) and picture.rgb.getpixel((1, 0)) == (255, 255, 255)
    assert picture.notes == ("grey values -100 to 300 stretched to 8 bit",)


def test_values_that_are_not_finite_make_a_picture_unusable() -> None:
    values = np.full((20, 20), np.nan, dtype=np.float32)
    with pytest.raises(UnusablePicture) as caught:
        decoded(Image.fromarray(values, "F"), "TIFF")
    assert caught.value.reason == "holds values that are not finite"


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_palette_with_transparency(transparency) -> None:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 0)
    picture = decoded(image, transparency=transparency)
    assert picture.rgb.getpixel((0, 0)) == (255, 255, 255) and picture.rgb.getpixel((5, 5)) == (40, 50, 60)
    assert picture.alpha.getpixel((0, 0)) == 0 and picture.alpha.getpixel((5, 5)) == 255


def test_single_colour_transparency_of_rgb_and_grey() -> None:
    for mode, colour, other in (("RGB", (9, 9, 9), (50, 60, 70)), ("L", 9, 50)):
        image = Image.new(mode, (20, 20), other)
        image.putpixel((3, 0), colour)
        picture = decoded(image, transparency=colour)
        assert picture.alpha.getpixel((3, 0)) == 0 and picture.alpha.getpixel((4, 0)) == 255
        assert picture.rgb.getpixel((3, 0)) == (255, 255, 255)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_stands_for_an_animation(format) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    options: dict = {"lossless": True} if format == "WEBP" else {}
    picture = decoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert picture.rgb.getpixel((5, 5)) == (250, 0, 0)
    assert picture.notes == ("several frames: the first is used",)


def test_the_second_view_of_a_phone_picture_is_no_animation(noise) -> None:
    picture = decoded(noise(32, 32), "MPO", save_all=True, append_images=[noise(32, 32, 1)])
    assert picture.notes == () and picture.rgb.size == (32, 32)


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15)])
def test_too_small(size) -> None:
    with pytest.raises(UnusablePicture) as caught:
        decoded(Image.new("RGB", size))
    assert caught.value.reason == f"too small: {size[0]}x{size[1]} px, at least 16 px"
    assert isinstance(caught.value, DatasetError)


@pytest.mark.parametrize("size", [(20_000, 10_000), (60_000, 60_000)])
def test_bomb_sizes_are_refused_by_the_header_alone(size, noise) -> None:
    data = bytearray(encoded(noise(32, 32)))
    data[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    with pytest.raises(UnusablePicture) as caught:
        decode_picture(bytes(data))
    assert caught.value.reason == f"too large: {size[0]}x{size[1]} px, at most 179 million pixels"


def test_a_size_pillow_would_warn_of_is_accepted_without_a_warning() -> None:
    data = encoded(Image.new("1", (10_000, 9_000)))
    assert decode_picture(data).rgb.size == (10_000, 9_000)


def test_wrong_extension_does_not_matter(tmp_path, noise) -> None:
    noise(20, 30).save(tmp_path / "a.jpg", "PNG")
    assert open_picture(tmp_path / "a.jpg").rgb.size == (20, 30)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file (0 bytes)"),
        (b"hello world, I am a text", "not a picture: the content is none of PNG, JPEG"),
        (b"\xff\x0a" + bytes(40), "JPEG XL cannot be read"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(40), "HEIC, AVIF or video cannot be read"),
        (b"8BPS" + bytes(40), "Photoshop cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "damaged or truncated: "),
        (b"\xff\xd8\xff\xe0", "damaged or truncated: "),
    ],
)
def test_what_is_no_picture_says_why(tmp_path, data, reason) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(UnusablePicture) as caught:
        open_picture(path)
    assert caught.value.reason.startswith(reason)


def test_missing_file_and_folder_are_reasons_too(tmp_path) -> None:
    with pytest.raises(UnusablePicture, match="cannot be opened: No such file"):
        open_picture(tmp_path / "none.png")


def test_huge_file_is_not_read(tmp_path) -> None:
    path = tmp_path / "a.tif"
    with path.open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(UnusablePicture, match="file too large: 3.0 GiB, at most 1 GiB"):
        open_picture(path)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM"])
def test_a_file_cut_in_the_middle_is_unusable(noise, format) -> None:
    data = encoded(noise(64, 64), format)
    assert decode_picture(data).rgb.size == (64, 64)
    with pytest.raises(UnusablePicture, match="damaged or truncated"):
        decode_picture(data[: len(data) // 2])


def reason_or_mode(data: bytes) -> str:
    try:
        return decode_picture(data, max_pixels=1_000_000).rgb.mode
    except UnusablePicture as error:
        return error.reason


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM"])
def test_damage_anywhere_is_a_picture_or_a_reason(noise, format) -> None:
    data, rng = encoded(noise(24, 24), format), random.Random(format)
    outcomes = []
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(min(len(data), 300))] = rng.randrange(256)
        outcomes.append(reason_or_mode(bytes(damaged)))
    assert all(outcomes) and outcomes.count("RGB") < 150
