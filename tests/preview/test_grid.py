from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extensions_lib.preview.grid import GAP, INK, PAPER, folder_rows, picture_name, render_grid
from extensions_lib.preview.lettering import LINE_HEIGHT_PX, draw_text, printable, text_width_px, wrap_text

RED, BLUE = (200, 30, 30), (20, 40, 220)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, colour)


def pixels(sheet: Image.Image) -> np.ndarray:
    return np.asarray(sheet)


def count(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((pixels(sheet) == colour).all(axis=2).sum())


def box_of(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of all pixels of a colour."""
    down, across = np.nonzero((pixels(sheet) == colour).all(axis=2))
    return int(across.min()), int(down.min()), int(across.max()) + 1, int(down.max()) + 1


def test_columns_and_rows_lie_where_they_should() -> None:
    sheet = render_grid(["a", "b"], [("base model", [plain(RED), plain(BLUE)])], cell_px=64)
    left = 10 * 6 + 12  # the label in letters of 6 px, a margin on both sides
    top = LINE_HEIGHT_PX + 12
    assert box_of(sheet, RED) == (left, top, left + 128, top + 128)
    assert box_of(sheet, BLUE) == (left + 134, top, left + 262, top + 128)
    assert sheet.size == (left + 2 * 134, top + 134)


def test_small_pictures_are_enlarged_by_a_whole_factor_with_sharp_pixels() -> None:
    checks = Image.fromarray(np.eye(2, dtype=np.uint8) * 255).convert("RGB")
    for cell_px, side in ((64, 128), (48, 144), (32, 128), (128, 128)):
        checks = checks.resize((cell_px, cell_px), Image.Resampling.NEAREST)
        sheet = render_grid(["a"], [("x", [checks])], cell_px)
        black = count(sheet, (0, 0, 0))
        assert black == side * side // 2, cell_px


def test_large_pictures_are_reduced_in_proportion() -> None:
    sheet = render_grid(["a"], [("x", [plain(RED, (768, 512))])], cell_px=192)
    left, top, right, bottom = box_of(sheet, RED)
    assert (right - left, bottom - top) == (192, 128)


def test_another_shape_is_centred_in_its_cell() -> None:
    sheet = render_grid(["a", "b"], [("x", [plain(RED, (256, 128)), plain(BLUE, (128, 256))])], cell_px=256)
    red, blue = box_of(sheet, RED), box_of(sheet, BLUE)
    assert (blue[2] - blue[0], blue[3] - blue[1]) == (64, 128)
    assert blue[0] - red[2] == 6 + (256 - 64) // 2


def test_a_missing_picture_is_marked() -> None:
    sheet = render_grid(["a", "b"], [("x", [plain(RED), None])], cell_px=128)
    assert 0.9 * 128 * 128 < count(sheet, GAP) < 128 * 128


def test_a_sheet_without_any_picture_can_be_drawn() -> None:
    assert render_grid(["a"], [("x", [None])], cell_px=128).size[0] > 128
    assert render_grid([], [], cell_px=128).mode == "RGB"


def test_prompt_and_label_are_written() -> None:
    blank = render_grid([""], [("", [plain(RED)])], cell_px=128)
    assert count(blank, INK) == 0
    assert count(render_grid(["W"], [("", [plain(RED)])], cell_px=128), INK) > 10
    label = render_grid([""], [("step 100", [plain(RED)])], cell_px=128)
    assert count(label, INK) > 30
    assert box_of(label, INK)[2] < box_of(label, RED)[0]


def test_letters_grow_with_the_cells() -> None:
    small = render_grid(["W"], [("", [plain(RED)])], cell_px=256)
    large = render_grid(["W"], [("", [plain(RED)])], cell_px=512)
    assert count(large, INK) == 4 * count(small, INK)


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="Row 'step 5' has 1 pictures for 2 columns"):
        render_grid(["a", "b"], [("step 5", [None])])


def test_rows_are_read_from_the_folder_in_order(tmp_path: Path) -> None:
    for step, index, colour in ((1000, 0, RED), (None, 1, BLUE), (20, 0, BLUE), (0, 1, RED), (20, 7, RED)):
        plain(colour).save(tmp_path / picture_name(step, index))
    plain(RED).save(tmp_path / "grid.png")
    (tmp_path / picture_name(20, 1)).write_bytes(b"no picture")
    rows = folder_rows(tmp_path, num_columns=2)
    assert [label for label, _ in rows] == ["base model", "step 0", "step 20", "step 1000"]
    colours = [[image and image.getpixel((0, 0)) for image in images] for _, images in rows]
    assert colours == [[None, BLUE], [None, RED], [BLUE, None], [RED, None]]


def test_picture_names_sort_by_step() -> None:
    names = [picture_name(step, 0) for step in (0, 20, 100, 99999)]
    assert names == ["000000-0.png", "000020-0.png", "000100-0.png", "099999-0.png"]
    assert picture_name(None, 3) == "base-3.png"


def test_text_wraps_at_words_and_is_elided() -> None:
    assert text_width_px("12345") == 30
    assert wrap_text("a red cube on grass", 60, 3) == ["a red cube", "on grass"]
    assert wrap_text("a red cube on grass", 60, 1) == ["a red c..."]
    assert wrap_text("abcdefghijklmnopqrst", 60, 3) == ["abcdefghij", "klmnopqrst"]
    assert wrap_text("", 60, 3) == []
    assert wrap_text("much", 3, 2) == ["m", "..."]
    for line in wrap_text("word " * 100, 128, 3):
        assert text_width_px(line) <= 128


def test_signs_the_font_lacks_become_question_marks() -> None:
    assert printable("caf\u00e9\n\u65e5\u672c  x") == "caf\u00e9 ?? x"


def test_text_is_drawn_in_whole_pixels() -> None:
    sheet = Image.new("RGB", (40, 40), PAPER)
    draw_text(sheet, (2, 3), "W", INK, 2)
    found = (pixels(sheet) == INK).all(axis=2)
    assert found.any()
    blocks = found[3 : 3 + 26, 2 : 2 + 12].reshape(13, 2, 6, 2)
    assert (blocks.all(axis=(1, 3)) == blocks.any(axis=(1, 3))).all()
