"""The search for block weights by votes: how near it comes to a hidden optimum, and that it is replayed from votes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from extensions_lib.errors import ConfigError
from extensions_lib.merge.blocks import BLOCK_MAPS, parse_ratios
from extensions_lib.merge.search import BlockSearch

FAMILIES = ("sd1", "sd2", "sdxl")
NUM_VOTERS = 40
Optimum = dict[str, float]


def blocks(family: str) -> tuple[str, ...]:
    return (*BLOCK_MAPS[family].text, *BLOCK_MAPS[family].unet)


def read(family: str, text: str) -> dict[str, float]:
    ratios = parse_ratios(text, BLOCK_MAPS[family]).by_block
    return {name: ratios[name] for name in blocks(family)}


def distance(family: str, text: str, optimum: Optimum) -> float:
    """Root of the mean squared difference over the blocks."""
    found = read(family, text)
    return math.sqrt(sum((found[name] - optimum[name]) ** 2 for name in optimum) / len(optimum))


def smooth(family: str, dice: random.Random) -> Optimum:
    """As people's presets are: a mean and a slope for each of TE, IN, M and OUT, and a little of each block's own."""
    found = {}
    for beginning in ("TE", "IN", "M", "OUT"):
        names = [name for name in blocks(family) if name.startswith(beginning)]
        mean, slope = dice.random(), dice.uniform(-0.4, 0.4)
        for place, name in enumerate(names):
            wanted = mean + slope * (place / max(len(names) - 1, 1) - 0.5) + dice.gauss(0, 0.08)
            found[name] = min(max(wanted, 0.0), 1.0)
    return found


def uneven(family: str, dice: random.Random) -> Optimum:
    """The hardest: every block for itself."""
    return {name: dice.random() for name in blocks(family)}


def left_over(
    family: str, optimum_of: Callable[[str, random.Random], Optimum], num_votes: int, *, noise: float = 0.0
) -> float:
    """The share of the first distance that is left after so many votes, as a mean over voters.

    `noise`: how wrong a voter judges distances; differences of a third of it are alike to him.
    """
    shares = []
    for number in range(NUM_VOTERS):
        dice = random.Random(number)
        optimum, search = optimum_of(family, dice), BlockSearch(family, seed=number)
        first = distance(family, search.best(), optimum)
        for _ in range(num_votes):
            left, right = (distance(family, text, optimum) for text in search.pair())
            seen = right - left + dice.gauss(0, noise)
            search = search.voted("alike" if abs(right - left) < noise / 3 else "left" if seen > 0 else "right")
        shares.append(distance(family, search.best(), optimum) / first)
    return sum(shares) / len(shares)


@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_votes_find_smooth_weights_to_half_and_forty_to_a_third(family: str) -> None:
    assert left_over(family, smooth, 20) < 0.5
    assert left_over(family, smooth, 40) < 0.33


@pytest.mark.parametrize("family", FAMILIES)
def test_voters_who_err_lose_little(family: str) -> None:
    assert left_over(family, smooth, 40, noise=0.01) < 0.4


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_each_block_for_itself_are_slow_to_find(family: str) -> None:
    """Said so that nobody expects more: there are as many numbers as votes."""
    share = left_over(family, uneven, 60)
    assert 0.4 < share < 0.75


def test_a_search_is_replayed_from_its_votes() -> None:
    search = BlockSearch("sd1", seed=3)
    seen = []
    for vote in ("left", "alike", "right", "right", "left"):
        seen.append(search.pair())
        search = search.voted(vote)
    again = BlockSearch("sd1", seed=3, votes=search.votes)
    assert (again.pair(), again.best()) == (search.pair(), search.best())
    assert [BlockSearch("sd1", seed=3, votes=search.votes[:count]).pair() for count in range(5)] == seen


def test_the_first_comparison_is_the_text_encoder_and_the_picked_one_is_where_it_goes_on() -> None:
    search = BlockSearch("sd1")
    texts = search.pair()
    assert sorted(read("sd1", text)["TE"] for text in texts) == [0.25, 0.75]
    assert all(set(read("sd1", text).values()) <= {0.25, 0.5, 0.75} for text in texts)
    assert search.voted("left").best() == texts[0] and search.voted("right").best() == texts[1]
    assert search.voted("alike").best() == search.best()


def test_sides_are_mixed() -> None:
    sides = {read("sd1", BlockSearch("sd1", seed=seed).pair()[0])["TE"] for seed in range(10)}
    assert sides == {0.25, 0.75}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_ends_and_stays_between_0_and_1(family: str) -> None:
    search = BlockSearch(family, start=1.0)
    for _ in range(search.num_votes):
        search = search.voted("right")
    assert search.is_finished and search.pair() is None
    assert all(0 <= weight <= 1 for weight in search.weights().values())
    with pytest.raises(ConfigError, match="finished"):
        search.voted("left")


def test_other_votes_and_families_are_refused() -> None:
    with pytest.raises(ConfigError, match="accepted are left, right, alike"):
        BlockSearch("sd1", votes=("left", "up"))
    with pytest.raises(ConfigError, match="accepted are sd1, sd2, sdxl"):
        BlockSearch("sd3")
