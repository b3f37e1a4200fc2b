"""Which examples make up which micro-batch: a pure function of the seed and the micro-batch's number.

Nothing is counted or remembered, so a run resumed at any micro-batch goes on exactly as it would have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import DatasetError
from .chance import random_for
from .example import Example


@dataclass(frozen=True)
class ExampleRef:
    """One place in a micro-batch: the example, which of its repeats, and whether it is mirrored."""

    example_index: int
    repeat: int = 0
    flip: bool = False


Slot = tuple[int, int]  # (example index, repeat)


def group_by_bucket(examples: Iterable[Example]) -> tuple[tuple[Slot, ...], ...]:
    """The (example index, repeat) pairs of each bucket, smallest bucket first."""
    groups: dict[tuple[int, int], list[Slot]] = {}
    for example in examples:
        groups.setdefault(example.bucket, []).extend((example.index, repeat) for repeat in range(example.repeats))
    return tuple(tuple(groups[bucket]) for bucket in sorted(groups))


class BatchPlan:
    """Every (example, repeat) once per epoch, in batches drawn inside one bucket; the last of a bucket may be smaller.

    `buckets` are the groups of `group_by_bucket`. With `flip` each place is mirrored or not with equal chance.
    """

    def __init__(self, buckets: Sequence[Sequence[Slot]], *, batch_size: int, seed: int, flip: bool = False) -> None:
        if batch_size < 1:
            raise DatasetError(f"The batch size is {batch_size}; accepted are 1 and more.")
        self._buckets = [tuple(slots) for slots in buckets if slots]
        if not self._buckets:
            raise DatasetError("There are no pictures to make batches of.", "Add pictures, or set repeats to 1.")
        self._batch_size = batch_size
        self._seed = seed
        self._flip = flip
        self._batches_of = lru_cache(maxsize=2)(self._shuffled_batches)

    @property
    def num_micro_batches_per_epoch(self) -> int:
        """The same for every epoch: each bucket's size divided by the batch size, rounded up."""
        return sum(-(-len(slots) // self._batch_size) for slots in self._buckets)

    @property
    def num_examples_per_epoch(self) -> int:
        """Examples times repeats."""
        return sum(map(len, self._buckets))

    def epoch_of(self, index: int) -> int:
        """The epoch, from 0, of micro-batch `index`, from 0."""
        return index // self.num_micro_batches_per_epoch

    def micro_batch(self, index: int) -> list[ExampleRef]:
        """The examples of micro-batch `index`, counted from 0 over all epochs."""
        if index < 0:
            raise IndexError(f"Micro-batches are counted from 0, not {index}.")
        epoch, place = divmod(index, self.num_micro_batches_per_epoch)
        return [ExampleRef(example, repeat, self._flips(epoch, example, repeat))
                for example, repeat in self._batches_of(epoch)[place]]  # fmt: skip

    def _shuffled_batches(self, epoch: int) -> tuple[tuple[Slot, ...], ...]:
        batches: list[tuple[Slot, ...]] = []
        for number, slots in enumerate(self._buckets):
            order = list(slots)
            random_for("order", self._seed, epoch, number).shuffle(order)
            size = self._batch_size
            batches += [tuple(order[start : start + size]) for start in range(0, len(order), size)]
        random_for("batches", self._seed, epoch).shuffle(batches)
        return tuple(batches)

    def _flips(self, epoch: int, example: int, repeat: int) -> bool:
        return self._flip and random_for("flip", self._seed, epoch, example, repeat).random() < 0.5
