"""The moving average of parameters."""

import pytest
import torch

from extensions_lib.errors import TrainingError
from extensions_lib.training.ema import ParameterEma, decay_at


def parameters():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.nn.Parameter(torch.randn(3, 4, generator=generator)) for name in ("down", "up")}


def copies(params):
    return {name: parameter.detach().clone() for name, parameter in params.items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def move(params, step):
    with torch.no_grad():
        for parameter in params.values():
            parameter.add_(torch.randn(3, 4, generator=torch.Generator().manual_seed(step)))


def test_decay_warms_up():
    assert [decay_at(k, 0.999) for k in (0, 1, 90)] == [1 / 10, 2 / 11, 91 / 100]
    assert decay_at(10**6, 0.999) == 0.999
    assert decay_at(0, 0.05) == 0.05


def test_averages_by_hand():
    """1, then d = 0.1: 0.1 * 1 + 0.9 * 3 = 2.8, then d = 2/11: 2/11 * 2.8 + 9/11 * 14 = 11.963636."""
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    ema = ParameterEma({"w": parameter}, 0.99)
    seen = [ema.state_tensors()["w"].item()]
    for value in (3.0, 14.0):
        parameter.data.fill_(value)
        ema.update()
        seen.append(ema.state_tensors()["w"].item())
    assert seen == pytest.approx([1.0, 2.8, 2 / 11 * 2.8 + 9 / 11 * 14])


def test_updating_changes_neither_parameters_nor_their_gradients_flags():
    params = parameters()
    before = copies(params)
    ema = ParameterEma(params, 0.9)
    ema.update()
    assert_same(before, copies(params))
    assert all(parameter.requires_grad and parameter.grad_fn is None for parameter in params.values())
    assert not any(average.requires_grad for average in ema.state_tensors().values())


def test_swapped_puts_the_averages_in_and_everything_back():
    params = parameters()
    ema = ParameterEma(params, 0.9)
    move(params, 1)
    ema.update()
    live, averages, objects = copies(params), copies(ema.state_tensors()), {n: id(p) for n, p in params.items()}
    with ema.swapped():
        assert_same(copies(params), averages)
    assert_same(copies(params), live)
    assert_same(ema.state_tensors(), averages)
    assert {name: id(parameter) for name, parameter in params.items()} == objects


def test_swapped_restores_after_an_error():
    params = parameters()
    ema = ParameterEma(params, 0.9)
    move(params, 1)
    live = copies(params)

    def fail_inside():
        with ema.swapped():
            raise ValueError("preview failed")

    with pytest.raises(ValueError, match="preview failed"):
        fail_inside()
    assert_same(copies(params), live)
    ema.update()


def test_swapped_keeps_values_that_are_not_numbers():
    parameter = torch.nn.Parameter(torch.tensor([float("nan"), -0.0]))
    ema = ParameterEma({"w": parameter}, 0.9)
    bits = parameter.detach().view(torch.int32).clone()
    with ema.swapped():
        pass
    assert torch.equal(parameter.detach().view(torch.int32), bits)


@pytest.mark.parametrize("use", [ParameterEma.update, ParameterEma.state_tensors, lambda ema: ema.load_state({}, 0)])
def test_while_swapped_the_averages_cannot_be_used(use):
    ema = ParameterEma(parameters(), 0.9)
    with ema.swapped(), pytest.raises(RuntimeError, match="leave `swapped"):
        use(ema)


def test_resuming_is_bit_identical():
    params = parameters()
    through = ParameterEma(params, 0.95)
    for step in range(5):
        move(params, step)
        through.update()
    resumed = ParameterEma(params, 0.95)
    resumed.load_state(copies(through.state_tensors()), through.num_updates)
    for step in range(5, 10):
        move(params, step)
        through.update()
        resumed.update()
    assert_same(through.state_tensors(), resumed.state_tensors())
    assert through.num_updates == resumed.num_updates == 10


@pytest.mark.parametrize(
    ("state", "first"),
    [
        ({"down": torch.zeros(3, 4)}, "up"),
        ({"down": torch.zeros(3, 4), "up": torch.zeros(4, 3)}, "up"),
        ({"down": torch.zeros(3, 4), "extra": torch.zeros(1), "up": torch.zeros(3, 4)}, "extra"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(state, first):
    ema = ParameterEma(parameters(), 0.9)
    before = copies(ema.state_tensors())
    with pytest.raises(TrainingError, match=f"1 names or shapes differ, first '{first}'"):
        ema.load_state(state, 7)
    assert_same(ema.state_tensors(), before)
    assert ema.num_updates == 0


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"at least 0 and below 1, got {decay}"):
        ParameterEma(parameters(), decay)
