from __future__ import annotations

from collections import Counter

import pytest

from extensions_lib.data.stream import BatchPlan, ExampleRef, group_by_bucket
from extensions_lib.errors import DatasetError


@pytest.fixture
def examples(make_example):
    """Seven wide ones seen once, three tall ones seen twice."""
    wide = [make_example(index, (96, 48)) for index in range(7)]
    return wide + [make_example(index, (48, 96), repeats=2) for index in range(7, 10)]


def epoch_of(plan: BatchPlan, epoch: int) -> list[list[ExampleRef]]:
    count = plan.num_micro_batches_per_epoch
    return [plan.micro_batch(index) for index in range(epoch * count, (epoch + 1) * count)]


def test_groups_by_size_with_repeats(examples) -> None:
    tall, wide = group_by_bucket(examples)
    assert tall == ((7, 0), (7, 1), (8, 0), (8, 1), (9, 0), (9, 1))
    assert wide == tuple((index, 0) for index in range(7))


@pytest.mark.parametrize(("batch_size", "count"), [(1, 13), (2, 7), (3, 5), (4, 4), (100, 2)])
def test_every_repeat_of_every_example_once_per_epoch(examples, batch_size, count) -> None:
    plan = BatchPlan(group_by_bucket(examples), batch_size=batch_size, seed=3)
    assert plan.num_micro_batches_per_epoch == count and plan.num_examples_per_epoch == 13
    everything = Counter(slot for group in group_by_bucket(examples) for slot in group)
    for epoch in range(4):
        batches = epoch_of(plan, epoch)
        assert Counter((ref.example_index, ref.repeat) for batch in batches for ref in batch) == everything
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        for batch in batches:
            assert len({examples[ref.example_index].bucket for ref in batch}) == 1


def test_only_the_last_batch_of_a_bucket_is_smaller(examples) -> None:
    plan = BatchPlan(group_by_bucket(examples), batch_size=4, seed=0)
    assert sorted(map(len, epoch_of(plan, 0))) == [2, 3, 4, 4]


def test_the_order_depends_on_seed_and_epoch(examples) -> None:
    groups = group_by_bucket(examples)
    plan = BatchPlan(groups, batch_size=2, seed=5)
    assert epoch_of(plan, 1) == epoch_of(BatchPlan(groups, batch_size=2, seed=5), 1)
    assert epoch_of(plan, 1) != epoch_of(plan, 2)
    assert epoch_of(plan, 1) != epoch_of(BatchPlan(groups, batch_size=2, seed=6), 1)


def test_any_micro_batch_can_be_asked_for_at_any_time(examples) -> None:
    groups = group_by_bucket(examples)
    in_order = [BatchPlan(groups, batch_size=2, seed=5, flip=True).micro_batch(index) for index in range(40)]
    plan = BatchPlan(groups, batch_size=2, seed=5, flip=True)
    jumping = {index: plan.micro_batch(index) for index in sorted(range(40), key=lambda index: index * 17 % 40)}
    assert [jumping[index] for index in range(40)] == in_order
    assert [plan.epoch_of(index) for index in (0, 6, 7, 13, 14)] == [0, 0, 1, 1, 2]


def test_buckets_are_mixed_within_an_epoch(examples) -> None:
    plan = BatchPlan(group_by_bucket(examples), batch_size=1, seed=0)
    buckets = [examples[batch[0].example_index].bucket for batch in epoch_of(plan, 0)]
    assert buckets not in (sorted(buckets), sorted(buckets, reverse=True))


def test_the_order_is_the_same_on_every_machine(examples) -> None:
    plan = BatchPlan(group_by_bucket(examples), batch_size=4, seed=0)
    assert [[(ref.example_index, ref.repeat) for ref in batch] for batch in epoch_of(plan, 0)] == EXPECTED


EXPECTED = [
    [(2, 0), (6, 0), (1, 0), (5, 0)],
    [(7, 0), (8, 0)],
    [(0, 0), (4, 0), (3, 0)],
    [(9, 0), (9, 1), (8, 1), (7, 1)],
]


def test_half_of_the_places_are_mirrored(make_example) -> None:
    groups = group_by_bucket([make_example(index) for index in range(50)])
    mirrored = [
        ref.flip
        for index in range(40)
        for ref in BatchPlan(groups, batch_size=50, seed=0, flip=True).micro_batch(index)
    ]
    assert sum(mirrored) == pytest.approx(1000, abs=80)
    assert all(10 < sum(mirrored[start : start + 50]) < 40 for start in range(0, 2000, 50))  # in every epoch
    assert not any(ref.flip for ref in BatchPlan(groups, batch_size=50, seed=0).micro_batch(0))


def test_mirroring_does_not_change_the_order(examples) -> None:
    groups = group_by_bucket(examples)
    plain, mirrored = (BatchPlan(groups, batch_size=2, seed=5, flip=flip) for flip in (False, True))
    for index in range(20):
        places = [[(ref.example_index, ref.repeat) for ref in plan.micro_batch(index)] for plan in (plain, mirrored)]
        assert places[0] == places[1]


def test_mistakes() -> None:
    with pytest.raises(DatasetError, match="The batch size is 0; accepted are 1 and more."):
        BatchPlan([[(0, 0)]], batch_size=0, seed=0)
    with pytest.raises(DatasetError, match="There are no pictures to make batches of."):
        BatchPlan([[]], batch_size=1, seed=0)
    with pytest.raises(IndexError, match="counted from 0, not -1"):
        BatchPlan([[(0, 0)]], batch_size=1, seed=0).micro_batch(-1)
