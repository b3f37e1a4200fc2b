"""Formulas over differences: cases worked by hand, and what must hold for any differences."""

import pytest
import torch

from extensions_lib.merge import differences as d


def row(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)


def change(seed, shape=(8, 5)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ALL = {
    "ties": lambda deltas, weights: d.ties(deltas, weights, 0.6),
    "dare": lambda deltas, weights: d.dare(deltas, weights, 0.6, range(len(deltas))),
    "della": lambda deltas, weights: d.della(deltas, weights, 0.6, 0.2, range(len(deltas))),
    "breadcrumbs": lambda deltas, weights: d.breadcrumbs(deltas, weights, 0.6, 0.1),
    "model_stock": lambda deltas, weights: d.model_stock(deltas),
}


def test_ties_by_hand():
    """Half of each is kept: (4, -3) and (-5, -2). Signs of the sums: +, -, -, +; only agreeing entries are averaged."""
    first, second = row(4, -3, 1, 0), row(1, -5, -2, 0)
    assert d.ties([first, second], [1, 1], 0.5).tolist() == [4.0, -4.0, -2.0, 0.0]
    assert d.ties([first, second], [3, 1], 0.5).tolist() == [4.0, -3.5, -2.0, 0.0]


def test_ties_elects_the_sign_of_the_larger_sum():
    assert d.ties([row(3), row(-1), row(-1)], [1, 1, 1], 1.0).item() == 3.0
    assert d.ties([row(3), row(-2), row(-2)], [1, 1, 1], 1.0).item() == -2.0
    assert d.ties([row(2), row(-2)], [1, 1], 1.0).item() == 2.0, "0 counts as +"


def test_zeros_count_for_neither_sign():
    assert d.ties([row(0, -4), row(6, 0)], [1, 1], 1.0).tolist() == [6.0, -4.0]


def test_ties_keeps_what_is_as_large_as_the_smallest_kept():
    assert d.ties([row(2, -2, 1, 2)], [1], 0.5).tolist() == [2.0, -2.0, 0.0, 2.0]
    assert d.ties([row(1, 9, 2, 3)], [1], 0.01).tolist() == [0.0, 9.0, 0.0, 0.0], "one at least"


def test_ties_does_not_depend_on_the_order():
    deltas = [change(seed) for seed in range(3)]
    first = d.ties(deltas, [1.0, 2.0, 0.5], 0.3)
    torch.testing.assert_close(d.ties(deltas[::-1], [0.5, 2.0, 1.0], 0.3), first)


def test_dare_keeps_or_drops_and_rescales():
    delta = change(0, (100, 100))
    result = d.dare([delta], [1.0], 0.25, [7])
    kept = result != 0
    torch.testing.assert_close(result[kept], delta[kept] * 4)
    assert kept.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert result.mean().item() == pytest.approx(delta.mean().item(), abs=0.1)


def test_dare_sums_over_models_with_masks_of_their_own():
    deltas = [change(0), change(1)]
    both = d.dare(deltas, [2.0, 0.5], 0.5, [3, 4])
    parts = d.dare(deltas[:1], [2.0], 0.5, [3]) + d.dare(deltas[1:], [0.5], 0.5, [4])
    torch.testing.assert_close(both, parts)
    same = d.dare([deltas[0], deltas[0]], [1.0, -1.0], 0.5, [3, 4])
    assert same.any(), "the masks differ"
    assert torch.equal(d.dare(deltas, [1.0, 1.0], 1.0, [0, 0]), deltas[0] + deltas[1])


def test_keep_probabilities_by_hand():
    """Ranks 2, 1, 4, 3 of 4: 0.5 -+ 0.4 (r - 2.5) / 4."""
    found = d.keep_probabilities(row(-2, 1, 9, 3), 0.5, 0.4)
    torch.testing.assert_close(found, row(0.45, 0.35, 0.65, 0.55))
    assert d.keep_probabilities(change(3), 0.3, 0.5).mean().item() == pytest.approx(0.3, abs=1e-6)


def test_della_divides_each_kept_entry_by_its_own_probability():
    delta = change(0, (40, 50))
    result = d.della([delta], [1.0], 0.5, 0.6, [5])
    kept = result != 0
    torch.testing.assert_close(result[kept], (delta / d.keep_probabilities(delta, 0.5, 0.6))[kept])
    large = delta.abs() > delta.abs().median()
    assert kept[large].float().mean() > kept[~large].float().mean() + 0.2


def test_della_is_right_on_average():
    delta = row(1.0, -2.0, 4.0, 3.0)
    mean = sum(d.della([delta], [1.0], 0.5, 0.6, [seed]) for seed in range(4000)) / 4000
    torch.testing.assert_close(mean, delta, rtol=0.1, atol=0.0)


def test_without_epsilon_della_is_dare():
    assert torch.equal(d.della([change(1)], [1.0], 0.4, 0.0, [9]), d.dare([change(1)], [1.0], 0.4, [9]))


def test_breadcrumbs_by_hand():
    """Of ten, the largest is dropped, five are left, four are too small."""
    delta = row(1, -10, 3, 9, -5, 7, 2, -8, 4, 6)
    assert d.breadcrumbs([delta], [1.0], 0.5, 0.1).tolist() == [0, 0, 0, 9, -5, 7, 0, -8, 0, 6]
    assert d.breadcrumbs([delta], [2.0], 0.9, 0.5).tolist() == [2, 0, 6, 18, -10, 14, 4, -16, 8, 12]
    assert torch.equal(d.breadcrumbs([delta], [1.0], 1.0, 0.5), delta)


def test_model_stock_by_hand():
    """cos 60 degrees = 1/2: t = 2 * 0.5 / 1.5 = 2/3 for two; equal rows have t = 1, a right angle 0."""
    first = torch.tensor([[2.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    second = torch.tensor([[1.0, 3.0**0.5], [1.0, 1.0], [0.0, 1.0]])
    expected = torch.tensor([[1.0, 3.0**0.5 / 3], [1.0, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(d.model_stock([first, second]), expected)


def test_model_stock_of_three_is_the_same_in_any_order():
    deltas = [change(seed) + 1 for seed in range(3)]
    torch.testing.assert_close(d.model_stock(deltas), d.model_stock([deltas[2], deltas[0], deltas[1]]))


def test_model_stock_of_opposed_changes_stays_at_the_base():
    assert not d.model_stock([change(0), -change(0)]).any()
    with pytest.raises(ValueError, match="2 models beside the base or more, got 1"):
        d.model_stock([change(0)])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 3, 3)])
def test_no_change_stays_no_change(name, shape):
    result = ALL[name]([torch.zeros(shape), torch.zeros(shape)], [1.0, 1.0])
    assert result.shape == shape and result.dtype == torch.float32 and not result.any()


@pytest.mark.parametrize("name", ALL)
def test_inputs_stay_and_the_result_is_repeatable_with_any_number_of_threads(name):
    deltas = [change(0, (64, 700)), change(1, (64, 700))]
    kept = [delta.clone() for delta in deltas]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = ALL[name](deltas, [1.0, 0.5])
        torch.set_num_threads(2)
        second = ALL[name](deltas, [1.0, 0.5])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(first, second)
    assert all(torch.equal(now, old) for now, old in zip(deltas, kept, strict=True))
