"""A search for block weights by comparing pictures: of two that differ in some blocks, the better one is picked.

Coarse to fine: first the text encoder, the inputs, the middle and the outputs of the UNet as a whole, then halves of
them against each other, and so on down to single blocks. A comparison changes one of these directions by plus and
minus a step; the picked one is where the search goes on, and the next step in that direction is shorter, but not so
short that a wrong vote could not be made up for, mostly. Everything follows from the list of votes, so a search is
replayed from it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ..errors import ConfigError, Problem
from .blocks import BASE, BLOCK_MAPS

VOTES = ("left", "right", "alike")
FIRST_STEP, SHORTER, FINER = 0.25, 0.6, 0.6
SMALLEST_STEP = 0.02  # nobody sees less
Weights = Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """Blocks that are changed together, with the sign of each, by `step` up and down."""

    signs: tuple[tuple[str, int], ...]
    step: float


@dataclass(frozen=True)
class BlockSearch:
    """A search at one moment. `start` is every block's weight before the first vote, 0 to 1, and stays that of what
    belongs to no block; `seed` decides which candidate stands left. Raises ConfigError for a vote that is none.
    """

    family: str
    start: float = 0.5
    seed: int = 0
    votes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for index, vote in enumerate(self.votes):
            if vote not in VOTES:
                raise ConfigError([Problem(f"votes[{index}]", f"is {vote!r}, accepted are {', '.join(VOTES)}")])
        if self.family not in BLOCK_MAPS:
            raise ConfigError([Problem("family", f"is {self.family!r}, accepted are {', '.join(BLOCK_MAPS)}")])

    @property
    def num_votes(self) -> int:
        """How many comparisons there are in all; fewer are enough for a good guess."""
        return len(_comparisons(self.family))

    @property
    def is_finished(self) -> bool:
        """Whether the steps have become too small to be seen."""
        return len(self.votes) >= self.num_votes

    def voted(self, vote: str) -> BlockSearch:
        """The search after one more vote."""
        if self.is_finished:
            raise ConfigError([Problem("vote", "is one too many: the search is finished")], "Use its result.")
        return replace(self, votes=(*self.votes, vote))

    def best(self) -> str:
        """The block weights found so far, as `alpha` takes them."""
        return self._text(self.weights())

    def pair(self) -> tuple[str, str] | None:
        """What to compare next, left and right, as `alpha` takes them; None when the search is finished."""
        if self.is_finished:
            return None
        left, right = self._candidates(self.weights(), len(self.votes))
        return self._text(left), self._text(right)

    def weights(self) -> dict[str, float]:
        """The weight of every block found so far."""
        weights = dict.fromkeys(_blocks(self.family), self.start)
        for index, vote in enumerate(self.votes):
            if vote != "alike":
                left, right = self._candidates(weights, index)
                weights = left if vote == "left" else right
        return weights

    def _candidates(self, weights: Weights, index: int) -> tuple[dict[str, float], dict[str, float]]:
        comparison = _comparisons(self.family)[index]
        lower, upper = (_moved(weights, comparison, sign) for sign in (-1, 1))
        is_swapped = random.Random(f"{self.seed} {index}").random() < 0.5
        return (upper, lower) if is_swapped else (lower, upper)

    def _text(self, weights: Weights) -> str:
        block_map = BLOCK_MAPS[self.family]
        numbers = [self.start if name == BASE else weights[name] for name in block_map.preset]
        told = [f"{number:.4g}" for number in numbers]
        return ", ".join([*told, *(f"{name}={weights[name]:.4g}" for name in block_map.text)])


def _moved(weights: Weights, comparison: Comparison, sign: int) -> dict[str, float]:
    changed = {name: weights[name] + sign * own * comparison.step for name, own in comparison.signs}
    return {**weights, **{name: min(max(weight, 0.0), 1.0) for name, weight in changed.items()}}


def _blocks(family: str) -> tuple[str, ...]:
    block_map = BLOCK_MAPS[family]
    return (*block_map.text, *block_map.unet)


@lru_cache
def _comparisons(family: str) -> tuple[Comparison, ...]:
    """All, in order: round after round, each of which reaches one level further down."""
    levels = _levels(family)
    visits: dict[tuple[int, int], int] = {}
    found: list[Comparison] = []
    for round_number in range(len(levels) + 100):
        for depth in range(min(round_number + 1, len(levels))):
            for place, signs in enumerate(levels[depth]):
                count = visits.get((depth, place), 0)
                step = FIRST_STEP * FINER**depth * SHORTER**count
                if step >= SMALLEST_STEP:
                    visits[depth, place] = count + 1
                    found.append(Comparison(signs, step))
    return tuple(found)


def _levels(family: str) -> list[list[tuple[tuple[str, int], ...]]]:
    """The directions by depth: groups as a whole, then half against half."""
    unet = BLOCK_MAPS[family].unet
    groups: list[Sequence[str]] = [BLOCK_MAPS[family].text]
    groups += [[name for name in unet if name.startswith(beginning)] for beginning in ("IN", "M", "OUT")]
    levels = [[tuple((name, 1) for name in group) for group in groups]]
    while any(len(group) > 1 for group in groups):
        halves = [(group[: len(group) // 2], group[len(group) // 2 :]) for group in groups if len(group) > 1]
        levels.append([tuple(_against(first, second)) for first, second in halves])
        groups = [half for pair in halves for half in pair]
    return levels


def _against(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[str, int]]:
    yield from ((name, 1) for name in first)
    yield from ((name, -1) for name in second)
