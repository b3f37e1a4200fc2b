"""Agreement with an independent implementation, sd-mecha (https://github.com/ljleb/sd-mecha), of the same formulas.

What it defines differently, and why we do not follow, is listed in docs/merging.md.
"""

import pytest
import sd_mecha
import torch

from extensions_lib.merge import differences, methods


def theirs(name, *tensors, **parameters):
    return sd_mecha.extensions.merge_methods.resolve(name).__wrapped__(*tensors, **parameters)


def tensors(count, shape, scale=1.0):
    return [scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_weighted_sum(alpha):
    a, b = tensors(2, (6, 5))
    close(
        methods.weighted_sum((a, b), (alpha,)),
        theirs("weighted_sum", {"k": a}, {"k": b}, alpha=torch.tensor(alpha), key="k"),
    )


def test_average_of_four():
    models = tensors(4, (6, 5))
    close(methods.weighted_sum(models, (0.25,) * 3), theirs("n_average", *({"k": m} for m in models), key="k"))


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_add_difference(alpha):
    a, b, c = tensors(3, (6, 5))
    difference = theirs("subtract", b, c)
    close(
        methods.add_difference(a, b, c, alpha),
        theirs("add_difference", {"k": a}, {"k": difference}, alpha=torch.tensor(alpha), key="k"),
    )


def test_train_difference():
    a, b, c = tensors(3, (6, 5))
    mask = theirs("train_difference_mask", a, b, c, alpha=0.8)
    expected = theirs("add_difference", {"k": a}, {"k": b - c}, alpha=mask, key="k")
    close(methods.train_difference(a, b, c, 0.8), expected)


@pytest.mark.parametrize("shape", [(6, 5), (9,), (2, 3, 3, 3)])
@pytest.mark.parametrize("alpha", [0.2, 0.5])
def test_slerp(shape, alpha):
    a, b = tensors(2, shape)
    close(methods.slerp(a, b, alpha), theirs("slerp", a, b, alpha=torch.tensor(alpha)))


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 3, 3)])
def test_cosine_b_without_the_range_of_the_model(shape):
    a, b = tensors(2, shape)
    b = a + 0.7 * b
    found = methods.cosine_merge(a, b, methods.cosine_similarities_b(a, b), 0.3, (0.0, 1.0))
    close(found, theirs("add_cosine_b", a, b, alpha=0.3))


@pytest.mark.parametrize("num_kept", [4, 15, 30])
def test_ties(num_kept):
    """Its k counts one entry more, which is made up for here."""
    deltas = tensors(3, (6, 5))
    expected = theirs("ties_sum", *deltas, k=(num_kept - 1.5) / 30 if num_kept < 30 else 1.0, vote_sgn=True)
    close(differences.ties(deltas, (1.0, 1.0, 1.0), num_kept / 30), expected)


@pytest.mark.parametrize("shape", [(6, 5), (9,)])
def test_model_stock_of_two(shape):
    """Of rows that agree. Its cosine runs over the last axis, which is the kernel's width in a convolution."""
    common, *rest = tensors(3, shape)
    deltas = [common + 0.2 * own for own in rest]
    expected = theirs("model_stock", *deltas)
    close(differences.model_stock(deltas), expected)


def test_probabilities_of_della(monkeypatch):
    """Its mask is drawn by other random numbers; the probabilities behind it are the same."""
    from sd_mecha.extensions.builtin.merge_methods import ties

    monkeypatch.setattr(torch, "bernoulli", lambda probabilities, generator: probabilities)
    (delta,) = tensors(1, (6, 5))
    close(differences.keep_probabilities(delta, 0.4, 0.3), ties.find_della_dropout(delta, 0.6, 0.3, None))
