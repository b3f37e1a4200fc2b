"""The loss chart: smoothing, binning, ticks, and that it stays small and readable."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from extensions_lib.ui.chart import MAX_POINTS, binned, loss_chart, smoothed, smoothing_window, ticks


def points(svg: str, name: str) -> list[tuple[float, float]]:
    (text,) = re.findall(rf'<polyline class="{name}" points="([^"]*)"', svg)
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


def test_smoothing_is_the_bias_corrected_average() -> None:
    # b = 0.5: s1 = 1/2 over 1/2; s2 = (1/4 + 3/2) over 3/4; s3 = (1/8 + 3/4 + 5/2) over 7/8
    assert smoothed([1.0, 3.0, 5.0], window=2) == pytest.approx([1.0, 7 / 3, 27 / 7])


def test_smoothing_leaves_a_constant_alone_from_the_first_step() -> None:
    assert smoothed([0.3] * 50, window=20) == pytest.approx([0.3] * 50)


@pytest.mark.parametrize(("steps", "window"), [(1, 5), (100, 5), (1200, 60), (100_000, 100)])
def test_window_is_a_twentieth_of_the_run_within_bounds(steps: int, window: int) -> None:
    assert smoothing_window(steps) == window


def test_bins_are_means_of_as_many_neighbours() -> None:
    assert binned([(1, 1.0), (2, 3.0), (3, 5.0)], limit=2) == ([(1.5, 2.0), (3.0, 5.0)], 2)
    assert binned([(1, 1.0), (2, 3.0)], limit=2) == ([(1, 1.0), (2, 3.0)], 1)
    assert binned([], limit=2) == ([], 1)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.013, 0.26, [0.05, 0.1, 0.15, 0.2, 0.25]),
        (1, 742, [100, 200, 300, 400, 500, 600, 700]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 5) == pytest.approx(expected)


def test_nothing_to_draw_before_two_steps() -> None:
    assert loss_chart([], [], 100) == ""
    assert loss_chart([(1, 0.5)], [], 100) == ""


def test_lines_lie_where_the_losses_are() -> None:
    svg = loss_chart([(0, 0.0), (50, 1.0), (100, 0.0)], [(0, 0.5), (100, 0.5)], 100)
    raw, validation = points(svg, "ts-raw"), points(svg, "ts-validation")
    assert [x for x, _ in raw] == pytest.approx([raw[0][0], (raw[0][0] + raw[2][0]) / 2, raw[2][0]], abs=0.1)
    assert raw[0][1] == raw[2][1] > raw[1][1]  # higher losses are higher up
    assert validation[0][1] == validation[1][1] == pytest.approx((raw[0][1] + raw[1][1]) / 2, abs=0.1)
    assert svg.count("<circle") == 2


def test_a_single_outlier_does_not_flatten_the_rest() -> None:
    curve = [(number, 0.1 + 0.01 * (number % 2)) for number in range(1, 300)]
    svg = loss_chart([*curve, (300, 50.0)], [], 100_000)
    heights = [y for _, y in points(svg, "ts-raw")[:-1]]
    assert max(heights) - min(heights) > 3
    assert points(svg, "ts-raw")[-1][1] == pytest.approx(12.0)  # on the upper edge


@pytest.mark.parametrize("losses", [[0.5, 0.5, 0.5], [0.1] * 100, [0.0, 0.0], [-1.0, -1.0], [math.nan, 0.5, 0.5]])
def test_flat_and_broken_losses_can_be_drawn(losses: list[float]) -> None:
    svg = loss_chart(list(enumerate(losses, start=1)), [], 10)
    ElementTree.fromstring(svg)
    assert "nan" not in svg and "inf" not in svg


def test_ten_thousand_steps_stay_small() -> None:
    curve = [(number, 0.1 + 0.05 * math.sin(number)) for number in range(1, 10_001)]
    svg = loss_chart(curve, [(number, 0.1) for number in range(0, 10_001, 10)], 10_000)
    for name in ("ts-raw", "ts-smooth", "ts-validation"):
        assert len(points(svg, name)) <= MAX_POINTS
    assert len(svg) < 60_000
    assert "loss, mean of 25 steps" in svg


def test_chart_says_what_is_drawn() -> None:
    svg = loss_chart([(1, 0.5), (2, 0.4)], [(2, 0.45)], 1200)
    root = ElementTree.fromstring(svg)
    (picture,) = root.iter("svg")
    assert picture.get("role") == "img"
    named = {element.get("id"): element.text for element in picture.iter() if element.get("id")}
    assert picture.get("aria-labelledby").split() == list(named)
    assert list(named.values()) == [
        "Loss by training step",
        "Steps 1 to 2. Smoothed loss from 0.5 to 0.4496, lowest 0.4496. Validation loss 0.45, lowest 0.45 at step 2.",
    ]
    texts = [element.text for element in picture.iter("text")]
    assert {"step (optimizer updates)", "loss (mean per picture)"} <= set(texts)
    legend = ["".join(element.itertext()) for element in root.iter("span")]
    assert legend == [
        "loss of each step",
        "smoothed: moving average (EMA) over about 60 steps, bias-corrected",
        "validation: fixed noise",
    ]


def test_colours_come_from_the_style_sheet() -> None:
    svg = loss_chart([(1, 0.5), (2, 0.4)], [(2, 0.45)], 1200)
    assert not re.search(r"(fill|stroke|style)=", svg)
