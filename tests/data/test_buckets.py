from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from extensions_lib.data.buckets import (
    assign_bucket,
    bucket_without_upscale,
    choose_bucket,
    crop_box,
    default_step_px,
    fit_to_bucket,
    make_buckets,
)
from extensions_lib.errors import DatasetError


@pytest.mark.parametrize(
    ("resolution", "step", "low", "high", "count"),
    [
        (512, 64, 256, 1024, 17),
        (768, 64, 384, 1536, 25),
        (1024, 64, 256, 1024, 25),
        (1024, 64, 512, 2048, 33),
        (1024, 64, 256, 2048, 41),
    ],
)
def test_kohyas_counts(resolution, step, low, high, count) -> None:
    buckets = make_buckets(resolution, step, low, high)
    assert len(buckets) == len(set(buckets)) == count
    assert all((h, w) in buckets for w, h in buckets)
    assert all(w % step == h % step == 0 and w * h <= resolution**2 for w, h in buckets)
    assert all(low <= side <= high for bucket in buckets for side in bucket)


def test_limits_follow_the_resolution() -> None:
    assert make_buckets(512) == make_buckets(512, 64, 256, 1024)
    assert make_buckets(768) == make_buckets(768, 64, 384, 1536)
    small = make_buckets(64)
    assert default_step_px(64) == 8 and default_step_px(256) == 64
    assert small == make_buckets(64, 8, 32, 128) and (64, 64) in small and (32, 128) in small and len(small) == 17
    assert make_buckets(64, 64) == ((64, 64),)
    assert make_buckets(600) == make_buckets(600, 64, 256, 1152) and (576, 576) in make_buckets(600)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((512, 60), "The bucket step is 60 px; accepted are multiples of 8."),
        ((32, 64), "The resolution 32 px is smaller than the bucket step of 64 px."),
        ((512, 64, 640, 1024), "The bucket sizes 640 to 1024 px leave out the square of 512 px."),
        ((512, 64, 256, 448), "The bucket sizes 256 to 448 px leave out the square of 512 px."),
    ],
)
def test_impossible_sizes(arguments, message) -> None:
    with pytest.raises(DatasetError) as caught:
        make_buckets(*arguments)
    assert caught.value.message == message and caught.value.hint


def test_the_nearest_ratio_by_its_logarithm() -> None:
    buckets = make_buckets(512)
    assert choose_bucket(1000, 1000, buckets) == (512, 512)
    assert choose_bucket(3000, 2000, buckets) == (640, 384)
    assert choose_bucket(2000, 3000, buckets) == (384, 640)
    assert choose_bucket(20000, 50, buckets) == (1024, 256)
    # Between the ratios 1 and 2 the middle is 2 ** 0.5 = 1.414; by difference it would be 1.5.
    assert choose_bucket(1400, 1000, ((512, 512), (724, 362))) == (512, 512)
    assert choose_bucket(1430, 1000, ((512, 512), (724, 362))) == (724, 362)


def test_tall_and_wide_are_treated_alike() -> None:
    buckets = make_buckets(512)
    for width in range(100, 1500, 37):
        wide, tall = choose_bucket(width, 611, buckets), choose_bucket(611, width, buckets)
        assert wide == tall[::-1] or math.isclose(wide[0] * wide[1], tall[0] * tall[1])


def test_of_equal_ratios_the_largest() -> None:
    assert choose_bucket(100, 100, ((256, 256), (512, 512), (384, 384))) == (512, 512)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((300, 300), (256, 256)),
        ((512, 512), (512, 512)),
        ((1024, 1024), (512, 512)),
        ((700, 200), (640, 192)),
        ((4000, 100), (3200, 64)),
        ((40, 200), (64, 192)),
    ],
)
def test_sizes_without_upscale(size, bucket) -> None:
    assert bucket_without_upscale(*size, 512, 64) == bucket


@pytest.mark.parametrize("size", [(300, 300), (2000, 2000), (800, 500), (333, 1900), (100, 2500), (511, 513)])
def test_nothing_is_enlarged_without_upscale(size) -> None:
    buckets = make_buckets(512)
    bucket = assign_bucket(*size, buckets, resolution_px=512, step_px=64, allow_upscale=False)
    assert crop_box(*size, bucket).scale <= 1.0
    if crop_box(*size, choose_bucket(*size, buckets)).scale <= 1.0:
        assert bucket == choose_bucket(*size, buckets)
    assert assign_bucket(*size, buckets, resolution_px=512, step_px=64) == choose_bucket(*size, buckets)


def test_the_crop_is_centred_and_has_the_buckets_ratio() -> None:
    crop = crop_box(1000, 2000, (768, 1344))
    assert crop.scale == 0.768
    assert crop.box == pytest.approx((0.0, 125.0, 1000.0, 1875.0))
    assert crop.offset_px == (96, 0)  # the worked example of trainer reference 4.10
    assert crop.area_px == pytest.approx(1_750_000)
    for size in ((64, 64), (33, 977), (977, 33), (640, 481)):
        for bucket in make_buckets(512):
            box = crop_box(*size, bucket)
            assert 0 <= box.left < box.right <= size[0] and 0 <= box.top < box.bottom <= size[1]
            assert (box.right - box.left) / (box.bottom - box.top) == pytest.approx(bucket[0] / bucket[1])


def test_a_circle_stays_a_circle() -> None:
    image = Image.new("L", (900, 500), 255)
    ImageDraw.Draw(image).ellipse((350, 150, 549, 349), fill=0)
    fitted, crop = fit_to_bucket(image, (576, 448))
    dark = np.asarray(fitted) < 128
    rows, columns = dark.any(1).nonzero()[0], dark.any(0).nonzero()[0]
    width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    assert fitted.size == (576, 448) and crop.scale == 0.896
    assert abs(width - height) <= 1 and abs(width - 200 * 0.896) <= 1


def test_a_picture_of_the_buckets_size_is_not_touched(noise) -> None:
    image = noise(64, 64)
    fitted, crop = fit_to_bucket(image, (64, 64))
    assert fitted.tobytes() == image.tobytes() and crop.box == (0, 0, 64, 64) and crop.scale == 1


def test_large_pictures_are_averaged_not_sampled() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (1024, 512)), "L")
    fitted, _ = fit_to_bucket(stripes, (64, 64))
    assert np.abs(np.asarray(fitted).astype(int) - 127).max() <= 6
