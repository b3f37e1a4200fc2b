"""Rounding to bf16 at random: right on average, exact where it can be, repeatable."""

from __future__ import annotations

import pytest
import torch

from extensions_lib.training.ema import ParameterEma
from extensions_lib.training.optimizer import make_optimizer
from extensions_lib.training.rounding import round_to_bfloat16


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("value", [1.003, -1.003, 3e-5, 0.1])
def test_a_number_between_two_becomes_either_and_the_mean_is_kept(value: float) -> None:
    values = torch.full((40_000,), value)
    rounded = round_to_bfloat16(values, generator())
    found = sorted(set(rounded.float().tolist()))
    assert len(found) == 2
    assert found[0] < torch.tensor(value) < found[1]
    assert float(rounded.double().mean()) == pytest.approx(value, rel=1e-4)


def test_what_bf16_can_hold_stays() -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, 2.0**100, 2.0**-120])
    assert torch.equal(round_to_bfloat16(values, generator()).float(), values)


@pytest.mark.parametrize("name", ["adafactor", "lion"])
def test_updates_too_small_for_bf16_count_on_average(name: str) -> None:
    """Each update is a tenth of the gap between two bf16 numbers at 1: to the nearest, nothing would ever move."""
    parameter = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = make_optimizer(name, [{"params": [parameter], "lr": 2.0**-7 / 10}], weight_decay=0.0)
    for _ in range(20):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert parameter.dtype == torch.bfloat16
    assert float(parameter.detach().float().mean()) == pytest.approx(1 - 2.0**-7 * 2, abs=2e-3)


@pytest.mark.parametrize("name", ["adafactor", "lion"])
def test_the_rounding_depends_on_seed_and_step_only(name: str) -> None:
    def after(steps: int, seed: int, restart_at: int | None = None) -> torch.Tensor:
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 64).reshape(8, 8).bfloat16())
        optimizer = make_optimizer(name, [{"params": [parameter], "lr": 1e-3}], rounding_seed=seed)
        for step in range(steps):
            if step == restart_at:
                state = optimizer.state_dict()
                optimizer = make_optimizer(name, [{"params": [parameter], "lr": 1e-3}], rounding_seed=seed)
                optimizer.load_state_dict(state)
            torch.manual_seed(step if restart_at else 99)
            parameter.grad = parameter.detach().sin()
            optimizer.step()
        return parameter.detach()

    assert torch.equal(after(9, 1), after(9, 1, restart_at=3))
    assert not torch.equal(after(5, 1), after(5, 2))


@pytest.mark.parametrize("name", ["adafactor", "lion"])
def test_the_state_of_bf16_parameters_comes_back_in_float32(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(8, 8, dtype=torch.bfloat16))
    optimizers = [make_optimizer(name, [{"params": [parameter], "lr": 1e-3}]) for _ in range(2)]
    parameter.grad = torch.linspace(0.1, 0.9, 64).reshape(8, 8).bfloat16()
    optimizers[0].step()
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    for key, value in optimizers[0].state[parameter].items():
        found = optimizers[1].state[parameter][key]
        assert found == value if key == "step" else torch.equal(found, value) and found.dtype == torch.float32


def test_averages_of_bf16_are_float32_and_come_back_whole() -> None:
    parameter = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    ema = ParameterEma({"p": parameter}, 0.9, torch.device("cpu"))
    for value in (1.5, 2.0, 2.5):
        with torch.no_grad():
            parameter.fill_(value)
        ema.update()
    average = ema.state_tensors()["p"].clone()
    assert average.dtype == torch.float32
    with ema.swapped():
        assert torch.equal(parameter, average.bfloat16())
    assert torch.equal(parameter.detach(), torch.full((8,), 2.5, dtype=torch.bfloat16))
    assert torch.equal(ema.state_tensors()["p"], average)
