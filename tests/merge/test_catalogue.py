"""Every formula through one door: names, identities, shapes."""

import pytest
import torch

from extensions_lib.config.merge import FORMULAS
from extensions_lib.merge.catalogue import METHODS, Ratios

SHAPES = [(), (3,), (4, 6), (2, 3, 3, 3)]


def models(count, shape):
    return [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def ratios(count, alpha=0.5, **more):
    others = count - 1
    more = {"beta": 0.25, "density": 0.5, "epsilon": 0.15, "top": 0.1, "weights": (alpha,) * others, **more}
    return Ratios(alpha=alpha, seeds=tuple(range(others)), **more)


def num_models(name):
    return max(FORMULAS[name].min_models, FORMULAS[name].max_models or 3)


def test_declarations_and_functions_have_the_same_names():
    assert list(METHODS) == list(FORMULAS)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", METHODS)
def test_every_formula_takes_every_shape(name, shape):
    inputs = models(num_models(name), shape)
    kept = [tensor.clone() for tensor in inputs]
    merged = METHODS[name].merge(inputs, ratios(len(inputs)))
    assert merged.shape == shape and merged.dtype == torch.float32 and merged.isfinite().all()
    assert all(torch.equal(now, before) for now, before in zip(inputs, kept, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_equal_models_give_that_model(name):
    model = models(1, (4, 6))[0]
    count = num_models(name)
    assert torch.equal(METHODS[name].merge([model] * count, ratios(count)), model)


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith("cosine")])
def test_ratio_zero_gives_a(name):
    inputs = models(num_models(name), (4, 6))
    assert torch.equal(METHODS[name].merge(inputs, ratios(len(inputs), alpha=0.0, beta=0.0)), inputs[0])


@pytest.mark.parametrize("name", ["weighted_sum", "slerp", "cosine_a", "cosine_b"])
def test_ratio_one_gives_b(name):
    a, b = models(2, (4, 6))
    assert torch.equal(METHODS[name].merge([a, b], ratios(2, alpha=1.0)), b)


def test_only_cosine_needs_a_look_at_the_whole_model():
    assert [name for name in METHODS if METHODS[name].similarities] == ["cosine_a", "cosine_b"]
