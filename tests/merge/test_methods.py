"""Formulas over whole weights: cases worked by hand, and what must hold for any weights."""

import math

import pytest
import torch

from extensions_lib.merge import methods
from extensions_lib.merge.smoothing import smooth_add, smoothed
from extensions_lib.merge.sums import norm, scalar_product


def weights_of(seed, shape=(6, 5), dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


A, B, C = weights_of(1), weights_of(2), weights_of(3)


def row(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)


def test_weighted_sum_by_hand():
    assert methods.weighted_sum((row(0, 4), row(8, 0)), (0.25,)).tolist() == [2.0, 3.0]
    assert methods.weighted_sum((row(0, 4), row(8, 0), row(4, 8)), (0.25, 0.5)).tolist() == [4.0, 5.0]


def test_weighted_sum_ends_exactly_at_its_models():
    for alpha, expected in ((0.0, A), (1.0, B)):
        assert torch.equal(methods.weighted_sum((A, B), (alpha,)), expected)
    assert torch.equal(methods.weighted_sum((A, B, C), (0.0, 1.0)), C)
    assert torch.equal(methods.weighted_sum((A, A, A), (0.3, 0.5)), A)


def test_weighted_sum_does_not_depend_on_the_order_of_the_models():
    first = methods.weighted_sum((A, B, C), (0.3, 0.2))
    torch.testing.assert_close(methods.weighted_sum((A, C, B), (0.2, 0.3)), first)
    torch.testing.assert_close(methods.weighted_sum((C, A, B), (0.5, 0.3)), first)


def test_a_model_of_weight_zero_is_left_out():
    broken = torch.full_like(A, math.nan)
    assert torch.equal(methods.weighted_sum((A, broken, B), (0.0, 0.5)), methods.weighted_sum((A, B), (0.5,)))


def test_weighted_sum_wants_one_number_for_each_model():
    with pytest.raises(ValueError, match="2 weights for 1 models"):
        methods.weighted_sum((A, B), (0.1, 0.2))


def test_add_difference_by_hand():
    assert methods.add_difference(row(1, 1), row(5, 2), row(3, 4), 0.5).tolist() == [2.0, 0.0]
    assert torch.equal(methods.add_difference(A, B, C, 0.0), A)
    assert torch.equal(methods.add_difference(A, B, B, 0.7), A)


def test_triple_sum_by_hand():
    assert methods.triple_sum(row(8, 0), row(0, 8), row(16, 16), 0.25, 0.5).tolist() == [10.0, 10.0]
    assert torch.equal(methods.triple_sum(A, A, A, 0.2, 0.3), A)


def test_sum_twice_by_hand():
    assert methods.sum_twice(row(0), row(8), row(16), 0.5, 0.25).tolist() == [7.0]
    for alpha, beta, expected in ((0.0, 0.0, A), (1.0, 0.0, B), (0.4, 1.0, C)):
        assert torch.equal(methods.sum_twice(A, B, C, alpha, beta), expected)
    assert torch.equal(methods.sum_twice(A, A, A, 0.2, 0.3), A)


def test_train_difference_by_hand():
    """|B - A| = 1, |B - C| = 3: a quarter of the difference 3, times 1.8 alpha; and 0 / 0 counts as 0."""
    merged = methods.train_difference(row(4, 2, 7), row(5, 2, 7), row(2, 5, 7), 0.5)
    torch.testing.assert_close(merged, row(4 + 0.9 * 0.25 * 3, 2, 7))


def test_train_difference_identities():
    assert torch.equal(methods.train_difference(A, B, C, 0.0), A)
    assert torch.equal(methods.train_difference(A, A, C, 1.0), A)
    assert torch.equal(methods.train_difference(A, B, B, 1.0), A)


def test_slerp_by_hand():
    """A right angle, both of length 2: half-way both are cos 45 degrees."""
    merged = methods.slerp(row(2, 0), row(0, 2), 0.5)
    torch.testing.assert_close(merged, row(math.sqrt(2), math.sqrt(2)))
    merged = methods.slerp(row(1, 0), row(0, 3), 1 / 3)
    torch.testing.assert_close(merged, 5 / 3 * row(math.cos(math.pi / 6), math.sin(math.pi / 6)))


def test_slerp_keeps_the_mixed_length_and_ends_at_its_models():
    assert norm(methods.slerp(A, B, 0.3)) == pytest.approx(0.7 * norm(A) + 0.3 * norm(B), rel=1e-6)
    assert torch.equal(methods.slerp(A, B, 0), A)
    assert torch.equal(methods.slerp(A, B, 1), B)
    torch.testing.assert_close(methods.slerp(A, B, 0.25), methods.slerp(B, A, 0.75))


@pytest.mark.parametrize("other", [A, 2 * A, -A, torch.zeros_like(A), A + 1e-4])
def test_slerp_of_parallel_weights_is_the_straight_line(other):
    assert torch.equal(methods.slerp(A, other, 0.25), methods.weighted_sum((A, other), (0.25,)))


def test_similarities_by_hand():
    """Columns: equal, at a right angle, opposite; together (4 + 0 - 1) / (sqrt 6 * sqrt 6)."""
    a = torch.tensor([[2.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    b = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(methods.cosine_similarities_b(a, b), (row(1, 0, -1) + 3 / 6) / 2)
    torch.testing.assert_close(methods.cosine_similarities_a(a, b), (row(1, 0, -1) + 0 / 3) / 2)


def test_similarities_of_vectors_numbers_and_zeros():
    torch.testing.assert_close(methods.cosine_similarities_b(row(3, 4), row(4, 3)), torch.tensor(0.96))
    assert methods.cosine_similarities_b(torch.tensor(2.0), torch.tensor(3.0)).item() == 0.5
    assert methods.cosine_similarities_a(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0, 0, 0]
    assert methods.cosine_similarities_b(weights_of(1, (4, 3, 2, 2)), weights_of(2, (4, 3, 2, 2))).shape == (3, 2, 2)


def test_cosine_merge_by_hand():
    """Range 0 to 0.5: the similarities become 0, 0.5, 1, less alpha 0.25."""
    a, b = torch.zeros(2, 3), torch.full((2, 3), 8.0)
    merged = methods.cosine_merge(a, b, row(0, 0.25, 0.5), 0.25, (0.0, 0.5))
    assert merged.tolist() == [[8.0, 6.0, 2.0]] * 2


@pytest.mark.parametrize("similarities", [methods.cosine_similarities_a, methods.cosine_similarities_b])
def test_cosine_identities(similarities):
    found = similarities(A, B)
    assert torch.equal(methods.cosine_merge(A, B, found, 1.0, (-1.0, 1.0)), B)
    assert torch.equal(methods.cosine_merge(A, A, similarities(A, A), 0.4, (0.2, 0.9)), A)
    torch.testing.assert_close(similarities(B, A), found)
    assert methods.cosine_merge(A, B, found, 0.5, (0.3, 0.3)).isfinite().all()


def test_the_range_leaves_out_one_percent_at_each_end():
    numbers = torch.arange(101.0)[torch.randperm(101, generator=torch.Generator().manual_seed(0))]
    assert methods.similarity_range(numbers) == (1.0, 99.0)
    assert methods.similarity_range(row(0.5)) == (0.5, 0.5)
    assert methods.similarity_range(torch.empty(0)) == (0.0, 1.0)


def test_smooth_add_by_hand():
    """A lone peak has the median 0; a flat difference stays as it is."""
    peak = torch.zeros(5, 5)
    peak[2, 2] = 9.0
    a = weights_of(1, (5, 5))
    assert torch.equal(smooth_add(a, a + peak, a, 1.0), a)
    torch.testing.assert_close(smooth_add(a, a + 2.0, a, 0.5), a + 1.0)
    assert torch.equal(smooth_add(a, peak, a, 0.0), a)
    assert torch.equal(smooth_add(a, peak, peak, 1.0), a)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (9, 4), (3, 5, 3, 3), (12, 3, 1, 1)])
def test_smoothing_agrees_with_scipy(shape, monkeypatch):
    from scipy import ndimage

    monkeypatch.setattr("extensions_lib.merge.smoothing._SLAB_NUMBERS", 200)  # several slabs
    tensor = weights_of(4, shape)
    expected = torch.as_tensor(ndimage.gaussian_filter(ndimage.median_filter(tensor.numpy(), 3), 1.0))
    torch.testing.assert_close(smoothed(tensor), expected, rtol=1e-5, atol=1e-6)


def test_sums_are_exact_and_the_same_with_any_number_of_threads():
    first, second = weights_of(1, (300_001,)), weights_of(2, (300_001,))
    expected = float(first.double() @ second.double())
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(scalar_product(first, second))
    finally:
        torch.set_num_threads(before)
    assert found[0] == pytest.approx(expected, abs=1e-9) and len(set(found)) == 1
    assert norm(row(3, 4)) == 5.0
    assert scalar_product(torch.empty(0), torch.empty(0)) == 0.0


def test_inputs_are_not_changed():
    kept = [A.clone(), B.clone(), C.clone()]
    methods.weighted_sum((A, B, C), (0.1, 0.2))
    methods.train_difference(A, B, C, 1.0)
    smooth_add(A, B, C, 1.0)
    methods.cosine_merge(A, B, methods.cosine_similarities_a(A, B), 0.1, (0.0, 1.0))
    assert all(torch.equal(now, before) for now, before in zip((A, B, C), kept, strict=True))
