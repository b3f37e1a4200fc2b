"""The practice world."""

import random
from dataclasses import replace

import numpy as np
import pytest

from extensions_lib.practice import drawing
from extensions_lib.practice.drawing import Pose, Scene

HEART = Scene("heart", "red", "white")


def pixels(picture):
    return np.asarray(picture).astype(int)


def test_a_seed_always_gives_the_same_picture_and_caption():
    first, again, other = (drawing.random_picture(random.Random(seed)) for seed in (5, 5, 6))
    assert np.array_equal(pixels(first[0]), pixels(again[0])) and first[1] == again[1]
    assert not np.array_equal(pixels(first[0]), pixels(other[0]))


def test_a_plain_scene_has_its_two_colours_and_antialiased_edges_between():
    picture = drawing.render(HEART)
    colours = {colour for _, colour in picture.getcolors(4096)}
    assert picture.size == (64, 64) and picture.mode == "RGB"
    assert picture.getpixel((32, 32)) == drawing.COLOURS["red"]
    assert picture.getpixel((0, 0)) == drawing.BACKGROUNDS["white"]
    assert 5 < len(colours) < 40


@pytest.mark.parametrize("shape", drawing.SHAPES)
def test_every_shape_lies_within_its_radius_and_nearly_fills_it(shape):
    reach = max(x * x + y * y for x, y in drawing.shape_points(shape)) ** 0.5
    assert 0.9 < reach < 1.3


def test_shapes_are_told_apart_by_their_area():
    def area(shape):
        picture = drawing.render(Scene(shape, "black", "white"), Pose(radius=20))
        return (pixels(picture).mean(axis=2) < 128).sum() / 20**2

    assert area("circle") == pytest.approx(np.pi, rel=0.02)
    assert area("square") == pytest.approx(1.6**2, rel=0.03)
    assert area("triangle") == pytest.approx(0.98 * 1.75, rel=0.04)


def test_an_unknown_shape_is_named_in_the_error():
    with pytest.raises(ValueError, match="'blob'; known shapes are circle"):
        drawing.shape_points("blob")


def test_stripes_alternate_from_top_to_bottom_beginning_with_the_first_colour():
    picture = drawing.render(replace(HEART, shape="square", stripe="blue"), Pose(radius=25))
    red, blue = drawing.COLOURS["red"], drawing.COLOURS["blue"]
    assert [picture.getpixel((32, y)) for y in (15, 22, 32, 42, 50)] == [red, blue, red, blue, red]


def test_an_outline_surrounds_the_shape():
    picture = drawing.render(replace(HEART, shape="circle", outline="green"), Pose(radius=20))
    green = drawing.COLOURS["green"]
    assert [picture.getpixel(place) for place in ((14, 32), (32, 14), (50, 32), (32, 50))] == [green] * 4
    assert picture.getpixel((32, 32)) == drawing.COLOURS["red"]


def test_the_pose_moves_and_tilts():
    upright, moved, tilted = (pixels(drawing.render(HEART, pose)) for pose in (Pose(), Pose(x=36, y=29), Pose(tilt=8)))
    assert np.array_equal(np.roll(upright, (-3, 4), axis=(0, 1)), moved)
    assert 0.003 < (np.abs(upright - tilted).max(axis=2) > 60).mean() < 0.2


@pytest.mark.parametrize("size", drawing.RADII_PX)
def test_random_poses_keep_the_shape_in_the_picture(size):
    rng = random.Random(0)
    for _ in range(50):
        pose = drawing.random_pose(rng, drawing.RADII_PX[size])
        for centre in (pose.x, pose.y):
            assert drawing.MARGIN_PX - 1e-9 <= centre - pose.radius <= centre + pose.radius <= 61 + 1e-9


def test_random_scenes_use_everything_and_never_hide_the_shape():
    scenes = [drawing.random_scene(random.Random(seed)) for seed in range(500)]
    assert {s.shape for s in scenes} == set(drawing.SHAPES) and {s.colour for s in scenes} == set(drawing.COLOURS)
    assert {s.background for s in scenes} == set(drawing.BACKGROUNDS)
    assert all(s.background not in (s.colour, s.stripe, s.outline) for s in scenes)
    assert 0.5 < sum(s.stripe is None and s.outline is None for s in scenes) / 500 < 0.7


def test_captions_say_what_is_there_and_sometimes_leave_something_out():
    scene = Scene("star", "orange", "gray", stripe="blue", outline="white")
    captions = {drawing.caption_of(scene, random.Random(seed)) for seed in range(300)}
    assert "an orange and blue striped star with a white outline on a gray background" in captions
    assert "orange and blue striped star with a white outline, gray background" in captions
    assert any("gray" not in caption for caption in captions) and any("orange" not in caption for caption in captions)
    assert not any(word in " ".join(captions).split() for word in ("red", "green", "circle", "heart"))


def test_what_a_caption_leaves_out_varies_and_what_it_says_stays():
    rng = random.Random(0)
    scene = Scene("star", "orange", "gray", size="large")
    varied = [drawing.vary_unsaid(scene, "an orange star", rng) for _ in range(60)]
    assert {(s.shape, s.colour, s.stripe) for s in varied} == {("star", "orange", None)}
    assert len({s.background for s in varied}) > 4 and {s.size for s in varied} == set(drawing.RADII_PX)
    assert all(s.background != "orange" for s in varied)
    full = "a large orange star on a gray background"
    assert {drawing.vary_unsaid(scene, full, rng) for _ in range(20)} == {scene}


def test_articles():
    assert drawing.with_article("orange star") == "an orange star" and drawing.with_article("red star") == "a red star"
