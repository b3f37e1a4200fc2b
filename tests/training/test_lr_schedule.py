"""Learning-rate schedules: against diffusers, and the WebUI's text syntax."""

import pytest
import torch

from extensions_lib.errors import ConfigError
from extensions_lib.training.lr_schedule import SCHEDULES, LrPiece, make_schedule, make_text_schedule, parse_lr_text


def rates_of_diffusers(name, num_steps, warmup_steps, num_cycles, power, base_lr):
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base_lr)
    scheduler = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup_steps,
        num_training_steps=num_steps,
        num_cycles=num_cycles,
        power=power,
    )
    rates = []
    for _ in range(num_steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("warmup_steps", "num_cycles", "power"), [(0, 1, 1.0), (7, 3, 2.0), (40, 2, 0.5)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rates_are_those_of_diffusers(name, warmup_steps, num_cycles, power):
    settings = {"num_steps": 50, "warmup_steps": warmup_steps, "num_cycles": num_cycles, "power": power}
    schedule = make_schedule(name, base_lr=2e-4, **settings)
    ours = [2e-4 * schedule(step) for step in range(51)]
    assert ours == pytest.approx(rates_of_diffusers(name, base_lr=2e-4, **settings), rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_the_floor_is_reached_and_never_left(name):
    schedule = make_schedule(name, num_steps=100, warmup_steps=10, min_ratio=0.2)
    values = [schedule(step) for step in range(10, 150)]
    assert max(values) == values[0] == 1.0
    assert min(values) >= 0.2 - 1e-12
    assert values[90:] == pytest.approx([0.2] * 50)


def test_warmup_rises_from_zero_whatever_the_floor():
    schedule = make_schedule("cosine", num_steps=100, warmup_steps=4, min_ratio=0.5)
    assert [schedule(step) for step in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_after_the_end_the_last_value_stays():
    for name in SCHEDULES:
        schedule = make_schedule(name, num_steps=10)
        assert schedule(11) == schedule(10) == schedule(1000)


def test_polynomial_ends_at_a_fixed_rate_even_below_it():
    assert make_schedule("polynomial", num_steps=10, base_lr=1e-3)(10) == pytest.approx(1e-4)
    assert make_schedule("polynomial", num_steps=10, base_lr=1e-9)(10) == 1.0
    assert make_schedule("polynomial", num_steps=10, base_lr=0.0)(10) == 1.0


def test_an_unknown_schedule_is_refused_with_the_choices():
    with pytest.raises(ConfigError, match="unknown schedule 'cosin', expected one of constant, .*polynomial"):
        make_schedule("cosin", num_steps=10)


def test_text_of_the_webui():
    assert parse_lr_text("5e-3:200, 1e-3:1000, 5e-4") == (
        LrPiece(5e-3, 200),
        LrPiece(1e-3, 1000),
        LrPiece(5e-4, None),
    )


@pytest.mark.parametrize("text", ["0.005", " 5e-3 ", "0.005:-1", ".005,", "0.005 : -1"])
def test_one_rate_to_the_end(text):
    assert parse_lr_text(text) == (LrPiece(0.005, None),)


def test_a_rate_holds_up_to_and_including_its_step():
    """With k completed steps the step being made is number k + 1."""
    schedule = make_text_schedule(parse_lr_text("4e-3:2, 2e-3:5, 1e-3"))
    rates = [4e-3 * schedule(completed) for completed in range(8)]
    assert rates == pytest.approx([4e-3, 4e-3, 2e-3, 2e-3, 2e-3, 1e-3, 1e-3, 1e-3])


def test_after_the_last_step_the_last_rate_is_kept():
    schedule = make_text_schedule(parse_lr_text("4e-3:2, 0:5"))
    assert [schedule(completed) for completed in (0, 4, 5, 99)] == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "it is empty: ''"),
        (" , ", "it is empty"),
        ("fast", "in 'fast' the rate 'fast' is not a number"),
        ("1e-3:ten", "in '1e-3:ten' the step 'ten' is not a whole number"),
        ("1e-3:", "in '1e-3:' the step '' is not a whole number"),
        ("1e-3:1.5", "the step '1.5' is not a whole number"),
        ("1e-3:10:20", "in '1e-3:10:20' the step '10:20' is not a whole number"),
        ("1e-3:0", "the step 0 is neither at least 1 nor -1"),
        ("1e-3:-2", "the step -2 is neither at least 1 nor -1"),
        ("-1e-3", "the rate '-1e-3' is not a finite number of at least 0"),
        ("nan", "the rate 'nan' is not a finite number"),
        ("inf:10", "the rate 'inf' is not a finite number"),
        ("0:10, 1e-3", "in '0:10' the first rate must be above 0"),
        ("1e-3:100, 1e-4:100", "in '1e-4:100' the step 100 is not after step 100 of the piece before"),
        ("1e-3, 1e-4:100", "in '1e-4:100' nothing can follow the rate 0.001, which lasts to the end"),
        ("1e-3:-1, 1e-4", "in '1e-4' nothing can follow the rate 0.001"),
    ],
)
def test_wrong_text_names_the_piece(text, complaint):
    with pytest.raises(ConfigError) as raised:
        parse_lr_text(text)
    assert complaint in raised.value.message
    assert [problem.path for problem in raised.value.problems] == ["optimizer.learning_rate"]
    assert "'5e-3:200, 1e-3:1000, 5e-4'" in raised.value.hint


def test_all_wrong_pieces_are_reported_together():
    with pytest.raises(ConfigError) as raised:
        parse_lr_text("a:10, 1e-3:b, 1e-3:20")
    assert [problem.text.split()[1] for problem in raised.value.problems] == ["'a:10'", "'1e-3:b'"]
