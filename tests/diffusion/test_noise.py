"""Noise and its variants."""

import pytest
import torch

from extensions_lib.diffusion.noise import add_noise, add_offset, add_pyramid, draw_noise
from extensions_lib.diffusion.timesteps import scaled_linear_alphas_cumprod

SHAPE = (4, 4, 32, 24)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_plain_noise_is_normal_and_serves_as_input_and_target():
    noise = draw_noise(SHAPE, generator())
    assert noise.input is noise.target
    assert noise.input.shape == SHAPE and noise.input.dtype == torch.float32
    assert abs(noise.input.mean()) < 0.02 and abs(noise.input.std() - 1) < 0.02


def test_the_same_generator_gives_the_same_noise():
    assert torch.equal(draw_noise(SHAPE, generator()).input, draw_noise(SHAPE, generator()).input)
    assert not torch.equal(draw_noise(SHAPE, generator()).input, draw_noise(SHAPE, generator(1)).input)


def test_offset_is_one_number_per_sample_and_channel_in_input_and_target():
    plain, shifted = draw_noise(SHAPE, generator()), draw_noise(SHAPE, generator(), offset=0.5)
    added = shifted.target - plain.target
    assert shifted.input is shifted.target
    torch.testing.assert_close(added, added[..., :1, :1].expand(SHAPE))
    assert added[..., 0, 0].flatten().unique().numel() == 16


def test_offset_is_normal_with_the_given_strength():
    noise = torch.zeros(5000, 4, 1, 1)
    assert abs(add_offset(noise, generator(), 0.1).std() - 0.1) < 0.002


def test_random_offset_strength_is_below_the_given_one_and_drawn_once():
    noise = torch.zeros(1, 4, 1, 1)
    fixed = add_offset(noise, generator(), 0.1)
    ratios = add_offset(noise, generator(), 0.1, random_strength=True) / fixed
    torch.testing.assert_close(ratios, ratios[:, :1].expand_as(ratios))
    assert 0 <= ratios[0, 0] < 1


def test_input_perturbation_leaves_the_target_alone():
    plain, perturbed = draw_noise(SHAPE, generator()), draw_noise(SHAPE, generator(), input_perturbation=0.1)
    assert torch.equal(perturbed.target, plain.target)
    assert abs((perturbed.input - perturbed.target).std() - 0.1) < 0.003


def test_input_perturbation_comes_on_top_of_the_offset():
    offset = draw_noise(SHAPE, generator(), offset=0.3)
    both = draw_noise(SHAPE, generator(), offset=0.3, input_perturbation=0.1)
    assert torch.equal(both.target, offset.target)


def test_pyramid_noise_has_unit_deviation_and_coarse_structure():
    plain = draw_noise(SHAPE, generator()).input
    pyramid = draw_noise(SHAPE, generator(), pyramid_discount=0.9).input
    assert pyramid.shape == SHAPE
    assert abs(pyramid.std() - 1) < 1e-5

    def coarse(noise):
        return torch.nn.functional.avg_pool2d(noise, 8).std()

    assert coarse(pyramid) > 2 * coarse(plain)


def test_pyramid_without_discount_weight_is_the_mean_of_two_noises():
    """Level 0 is as fine as the noise itself; with discount 0 it is the only one that counts."""
    noise = torch.zeros(1, 1, 8, 8)
    first = generator()
    torch.rand((), generator=first)
    expected = torch.randn(1, 1, 8, 8, generator=first)
    torch.testing.assert_close(add_pyramid(noise, generator(), 0.0), expected / expected.std())


def test_pyramid_stops_at_one_pixel():
    assert add_pyramid(torch.randn(1, 4, 1, 1, generator=generator()), generator(), 0.3).shape == (1, 4, 1, 1)


def test_offset_and_pyramid_together_are_refused():
    with pytest.raises(ValueError, match=r"offset \(0.1\) and pyramid noise \(0.3\)"):
        draw_noise(SHAPE, generator(), offset=0.1, pyramid_discount=0.3)


def test_add_noise_by_hand():
    alphas = torch.tensor([1.0, 0.64, 0.0])
    latents, noise = torch.full((3, 1, 2, 2), 10.0), torch.full((3, 1, 2, 2), 5.0)
    noisy = add_noise(latents, noise, alphas, torch.tensor([0, 1, 2]))
    expected = torch.tensor([10.0, 0.8 * 10 + 0.6 * 5, 5.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    torch.testing.assert_close(noisy, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_add_noise_keeps_the_dtype_of_the_latents(dtype):
    latents = torch.ones(1, 4, 2, 2, dtype=dtype)
    assert add_noise(latents, latents, scaled_linear_alphas_cumprod(), torch.tensor([5])).dtype == dtype


def test_add_noise_keeps_unit_variance():
    latents, noise = draw_noise((2, 4, 64, 64), generator(1)).input, draw_noise((2, 4, 64, 64), generator(2)).input
    noisy = add_noise(latents, noise, scaled_linear_alphas_cumprod(dtype=torch.float32), torch.tensor([100, 900]))
    assert abs(noisy.std() - 1) < 0.02
