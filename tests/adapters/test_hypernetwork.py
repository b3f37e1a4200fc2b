"""Networks before keys and values: their start, their arithmetic, and the layers as before."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from extensions_lib.adapters.hypernetwork import ContextNetwork, Dense, Norm, hooked_before, initial_weight
from extensions_lib.config.hypernetwork import ACTIVATIONS, WEIGHT_INITS

PLAIN: dict[str, Any] = {
    "layer_structure": (1, 2, 1), "activation": "relu", "weight_init": "Normal", "layer_norm": False,
    "activate_output": False, "dropout_structure": (0, 0, 0),
}  # fmt: skip


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def network(width: int = 8, **changes: Any) -> ContextNetwork:
    return ContextNetwork(width, generator=generator(), **{**PLAIN, **changes})


@pytest.mark.parametrize(
    ("rule", "deviation"),
    [
        ("Normal", 0.01),
        ("XavierUniform", math.sqrt(2 / 600)),
        ("XavierNormal", math.sqrt(2 / 600)),
        ("KaimingUniform", math.sqrt(2 / 200)),
        ("KaimingNormal", math.sqrt(2 / 200)),
    ],
)
def test_weights_start_by_the_named_rule(rule: str, deviation: float) -> None:
    weight = initial_weight((400, 200), rule, generator())
    assert weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert weight.mean().abs().item() < deviation / 50
    is_bounded = weight.abs().max().item() <= deviation * math.sqrt(3) * 1.0001
    assert is_bounded == rule.endswith("Uniform")


def test_every_rule_and_activation_that_can_be_chosen_is_there() -> None:
    for rule in WEIGHT_INITS:
        initial_weight((2, 2), rule, generator())
    for activation in ACTIVATIONS:
        assert network(activation=activation)(torch.ones(1, 1, 8)).isfinite().all()


@pytest.mark.parametrize("rule", WEIGHT_INITS)
def test_the_start_is_that_of_torch_for_the_same_draws(rule: str) -> None:
    """torch.nn.init with the same bounds, by its own formulas."""
    init = {
        "Normal": lambda weight: nn.init.normal_(weight, 0.0, 0.01),
        "XavierUniform": nn.init.xavier_uniform_,
        "XavierNormal": nn.init.xavier_normal_,
        "KaimingUniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
        "KaimingNormal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    }[rule]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = init(torch.empty(300, 500))
    assert initial_weight((300, 500), rule, generator()).std().item() == pytest.approx(reference.std().item(), rel=0.02)


def test_layer_norms_start_with_gains_of_one_and_biases_at_zero() -> None:
    made = network(layer_norm=True)
    norms = [layer for layer in made.linear if isinstance(layer, Norm)]
    assert [norm.weight.tolist() for norm in norms] == [[1.0] * 16, [1.0] * 8]
    biases = [layer.bias for layer in made.linear if isinstance(layer, (Norm, Dense))]
    assert len(biases) == 4 and not any(bias.any() for bias in biases)


def test_it_adds_to_its_input() -> None:
    made, states = network(), torch.randn(2, 3, 8, generator=generator())
    first, _, second = made.linear
    hidden = torch.relu(states @ first.weight.T + first.bias) @ second.weight.T + second.bias
    assert torch.allclose(made(states), states + hidden, atol=1e-6)
    made.multiplier = 0.25
    assert torch.allclose(made(states), states + 0.25 * hidden, atol=1e-6)
    half = made(states.half())
    assert half.dtype == torch.float16
    assert torch.allclose(half.float(), states + 0.25 * hidden, atol=1e-2)


def test_making_one_draws_nothing_from_torchs_own_generator() -> None:
    before = torch.get_rng_state()
    network(layer_norm=True, dropout_structure=(0, 0.5, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_acts_while_training_only() -> None:
    made, states = network(dropout_structure=(0, 0.5, 0)).eval(), torch.ones(1, 4, 8)
    assert torch.equal(made(states), made(states))
    made.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.equal(made(states), made(states))


def test_a_layer_gets_its_input_through_the_network_and_is_left_as_it_was() -> None:
    layer, made, states = nn.Linear(8, 4), network(), torch.randn(2, 3, 8, generator=generator())
    base = layer(states)
    with hooked_before({layer: made}):
        assert torch.allclose(layer(states), nn.functional.linear(made(states), layer.weight, layer.bias))
        made.multiplier = 0.0
        assert torch.equal(layer(states), base)
    assert torch.equal(layer(states), base)
    assert not layer._forward_pre_hooks
