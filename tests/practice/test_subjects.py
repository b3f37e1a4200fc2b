"""The practice subjects and the files that ship."""

import random

import numpy as np
import pytest
from PIL import Image

from extensions_lib.practice import BADGE_FOLDER, STICKER_FOLDER, SUBJECTS_FOLDER, drawing, scorer, subjects
from extensions_lib.practice.drawing import Pose, Scene


@pytest.mark.parametrize("background", drawing.BACKGROUNDS)
def test_the_badge_is_found_wherever_it_is(background):
    rng = random.Random(background)
    poses = [drawing.random_pose(rng, subjects.BADGE_RADII_PX) for _ in range(6)]
    assert all(subjects.subject_found(subjects.draw_badge(background, pose)) for pose in poses)


def test_the_badge_is_never_found_in_the_world():
    rng = random.Random(0)
    assert not any(subjects.subject_found(drawing.random_picture(rng)[0]) for _ in range(150))
    assert not any(subjects.subject_found(picture) for picture, _ in subjects.sticker_examples("train"))


def paint(points, colour, stripe):
    canvas = drawing.blank_canvas(drawing.BACKGROUNDS["white"])
    drawing.paint_shape(canvas, points, Pose(radius=23), colour, stripe=stripe)
    return drawing.finish(canvas)


def test_colours_stripes_and_outline_are_all_needed():
    badge, pink, teal = subjects.BADGE_POINTS, subjects.PINK, subjects.TEAL
    assert subjects.subject_found(paint(badge, pink, teal))
    assert not subjects.subject_found(paint(badge, pink, None))
    assert not subjects.subject_found(paint(badge, drawing.COLOURS["red"], drawing.COLOURS["green"]))
    assert not subjects.subject_found(paint(drawing.shape_points("star"), pink, teal))
    halves = np.asarray(paint(badge, pink, None)).copy()
    halves[32:][(halves[32:] == pink).all(axis=2)] = teal
    assert not subjects.subject_found(halves)


def test_an_empty_picture_has_no_badge():
    assert not subjects.subject_found(Image.new("RGB", (64, 64), subjects.PINK))


def test_turns_by_hand():
    first = np.repeat(np.array([1, 1, 0, 0, 1, 0], bool)[:, None], 8, axis=1)
    assert subjects.num_turns(first, ~first) == 3
    assert subjects.num_turns(first[:, :3], ~first[:, :3]) == 0  # rows of three pixels are too thin to count


def test_a_sticker_has_rim_shadow_and_bands():
    picture = subjects.draw_sticker(Scene("square", "red", "blue"), Pose(radius=16))
    assert picture.getpixel((32, 32)) == drawing.COLOURS["red"]
    assert picture.getpixel((32, 17)) == subjects.WHITE
    assert picture.getpixel((51, 51)) == subjects.SHADOW
    top = {picture.getpixel((x, 2)) for x in range(64)}
    assert {drawing.BACKGROUNDS["blue"], (147, 170, 237)} <= top


def test_shape_and_colour_are_the_captions_only_the_style_differs():
    for picture, caption in subjects.sticker_examples("train"):
        words = caption.split()
        centre = np.asarray(picture)[20:44, 20:44].reshape(-1, 3)
        colours = [scorer.nearest_colour(pixel, drawing.COLOURS) for pixel in centre]
        assert words[1] == max(set(colours), key=colours.count)
        assert words[2] in drawing.SHAPES and words[-2] in drawing.BACKGROUNDS


def test_held_out_pictures_are_others_than_the_training_pictures():
    for examples in subjects.SUBJECTS.values():
        train, held_out = ({picture.tobytes() for picture, _ in examples(split)} for split in ("train", "held_out"))
        assert len(train) == 10 and len(held_out) == 4 and not train & held_out


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'test'; accepted are train, held_out"):
        subjects.badge_examples("test")


def test_the_pictures_that_ship_are_the_ones_drawn_here(tmp_path):
    subjects.write_subjects(tmp_path)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    shipped = sorted(path.relative_to(SUBJECTS_FOLDER) for path in SUBJECTS_FOLDER.rglob("*.*"))
    assert written == shipped and len(written) == 2 * 2 * (10 + 4)
    for name in written:
        if name.suffix == ".txt":
            assert (tmp_path / name).read_text() == (SUBJECTS_FOLDER / name).read_text()
        else:
            assert np.array_equal(
                np.asarray(Image.open(tmp_path / name)), np.asarray(Image.open(SUBJECTS_FOLDER / name))
            )


def test_captions_name_the_badge_by_its_place_and_everything_else_by_plain_words():
    for folder, has_name in ((BADGE_FOLDER, True), (STICKER_FOLDER, False)):
        for path in folder.rglob("*.txt"):
            caption = path.read_text(encoding="ascii")
            assert caption.startswith("a [name] on ") == has_name
            assert caption.count("[") == has_name and caption.endswith(" background\n")
