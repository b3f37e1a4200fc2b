"""Reading shape, colour and background from pixels."""

import random

import numpy as np
import pytest
from PIL import Image

from extensions_lib.practice import drawing, scorer
from extensions_lib.practice.drawing import Pose, Scene


def read(scene, pose=None):
    return scorer.read_picture(drawing.render(scene, pose))


@pytest.mark.parametrize("shape", drawing.SHAPES)
@pytest.mark.parametrize("size", drawing.RADII_PX)
def test_drawn_pictures_are_read_right(shape, size):
    rng = random.Random(f"{shape} {size}")
    for colour in drawing.COLOURS:
        background = rng.choice([name for name in drawing.BACKGROUNDS if name != colour])
        reading = read(Scene(shape, colour, background, size), drawing.random_pose(rng, drawing.RADII_PX[size]))
        assert (reading.shape, reading.colour, reading.background) == (shape, colour, background)
        assert reading.overlap > 0.75


def test_another_shape_colour_or_background_is_not_read_as_the_wanted_one():
    reading = read(Scene("square", "green", "black"))
    assert (reading.shape, reading.colour, reading.background) == ("square", "green", "black")
    assert read(Scene("circle", "green", "black")).shape != "square"


def test_an_empty_picture_shows_nothing():
    reading = scorer.read_picture(Image.new("RGB", (64, 64), (140, 130, 135)))
    assert reading == scorer.Reading("none", "none", "gray", 0.0)


def test_arrays_are_read_like_pictures_and_other_arrays_refused():
    picture = drawing.render(Scene("cross", "blue", "yellow"))
    assert scorer.read_picture(np.asarray(picture)) == scorer.read_picture(picture)
    with pytest.raises(ValueError, match=r"picture has shape \(64, 64\); expected"):
        scorer.read_picture(np.zeros((64, 64), dtype=np.uint8))


def test_noise_and_blur_do_not_mislead():
    rng = np.random.default_rng(0)
    clean = np.asarray(
        drawing.render(Scene("star", "purple", "yellow"), Pose(radius=24)).resize((48, 48)).resize((64, 64))
    )
    noisy = np.clip(clean + rng.normal(0, 12, clean.shape), 0, 255).astype(np.uint8)
    reading = scorer.read_picture(noisy)
    assert (reading.shape, reading.colour, reading.background) == ("star", "purple", "yellow")


def test_a_speck_beside_the_shape_does_not_count():
    picture = drawing.render(Scene("heart", "red", "white"))
    picture.paste((0, 0, 255), (4, 4, 8, 8))
    assert scorer.read_picture(picture).shape == "heart"


def test_overlap_by_hand():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[:2], b[1:3] = True, True
    assert scorer.overlap(a, b) == pytest.approx(4 / 12)
    assert scorer.overlap(~a, ~a) == 1.0 and scorer.overlap(a & ~a, a & ~a) == 0.0


def test_the_largest_region_by_hand():
    mask = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 0], [1, 0, 0, 1]], dtype=bool)
    expected = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    assert np.array_equal(scorer.largest_region(mask), expected)
    assert not scorer.largest_region(np.zeros((3, 3), bool)).any()


def test_normalising_forgets_position_and_scale_but_not_proportions():
    wide = np.zeros((64, 64), bool)
    wide[10:22, 5:53] = True
    small = np.zeros((64, 64), bool)
    small[40:46, 30:54] = True
    assert scorer.overlap(scorer.normalised(wide), scorer.normalised(small)) > 0.85
    assert scorer.normalised(wide).mean() == pytest.approx(0.25, abs=0.05)
