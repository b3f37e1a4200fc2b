"""Timesteps and the generators of a step."""

import pytest
import torch

from extensions_lib.diffusion.timesteps import sample_timesteps, step_generator


def draw(*key):
    return torch.randn(8, generator=step_generator(*key)).tolist()


def test_every_part_of_the_key_changes_the_numbers():
    base = draw(1, 2, 3, "noise")
    others = [(0, 2, 3, "noise"), (1, 3, 3, "noise"), (1, 2, 4, "noise"), (1, 2, 3, "timesteps")]
    assert draw(1, 2, 3, "noise") == base
    assert all(draw(*other) != base for other in others)


def test_the_parts_of_the_key_do_not_run_together():
    assert draw(1, 12, 3, "noise") != draw(11, 2, 3, "noise")


def test_generators_are_the_same_everywhere():
    """A run resumed on another machine, or with another Python, repeats; sha256('1/2/3/noise') begins b6cb94cd."""
    assert step_generator(1, 2, 3, "noise").initial_seed() == 0xCD94CBB6


def test_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    draw(1, 2, 3, "noise")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_timesteps_cover_the_range_and_exclude_its_end():
    timesteps = sample_timesteps(2000, step_generator(0, 0, 0, "timesteps"), 10, 20)
    assert timesteps.shape == (2000,) and timesteps.dtype == torch.int64
    assert sorted(set(timesteps.tolist())) == list(range(10, 20))


def test_timesteps_are_uniform_over_all_levels():
    timesteps = sample_timesteps(20_000, step_generator(0, 0, 0, "timesteps"))
    counts = torch.histc(timesteps.double(), bins=10, min=0, max=1000)
    # 2000 expected in each tenth, standard deviation 42.
    assert ((counts - 2000).abs() < 200).all()


def test_a_range_of_one_level():
    assert sample_timesteps(3, step_generator(0, 0, 0, "timesteps"), 999, 1000).tolist() == [999] * 3


@pytest.mark.parametrize(("low", "high"), [(5, 5), (6, 5), (-1, 5)])
def test_an_empty_range_is_refused(low, high):
    with pytest.raises(ValueError, match=f"min {low} and max {high}"):
        sample_timesteps(1, step_generator(0, 0, 0, "timesteps"), low, high)
