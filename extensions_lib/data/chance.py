"""Random choices that depend on what they are for and on nothing else."""

from __future__ import annotations

import random


def random_for(purpose: str, *numbers: int) -> random.Random:
    """A generator for one choice, for instance `random_for("flip", seed, epoch, example)`.

    The same arguments give the same numbers in every process; another purpose gives unrelated ones.
    """
    return random.Random(":".join((purpose, *map(str, numbers))))
