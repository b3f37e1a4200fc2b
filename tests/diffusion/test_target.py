"""What the network is asked to predict."""

import pytest
import torch

from extensions_lib.diffusion.noise import add_noise
from extensions_lib.diffusion.target import training_target
from extensions_lib.diffusion.timesteps import scaled_linear_alphas_cumprod

ALPHAS = scaled_linear_alphas_cumprod()
TIMESTEPS = torch.tensor([0, 300, 999])


def pair():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))


def test_epsilon_is_the_noise():
    latents, noise = pair()
    assert torch.equal(training_target("epsilon", latents, noise, ALPHAS, TIMESTEPS), noise)


def test_v_by_hand():
    latents, noise = torch.full((1, 1, 1, 1), 10.0), torch.full((1, 1, 1, 1), 5.0)
    target = training_target("v_prediction", latents, noise, torch.tensor([0.64]), torch.tensor([0]))
    assert target.item() == pytest.approx(0.8 * 5 - 0.6 * 10)


def test_latents_and_noise_follow_from_noisy_latents_and_v():
    latents, noise = pair()
    noisy = add_noise(latents, noise, ALPHAS, TIMESTEPS)
    v = training_target("v_prediction", latents, noise, ALPHAS, TIMESTEPS)
    signal = ALPHAS[TIMESTEPS].sqrt().view(3, 1, 1, 1)
    sigma = (1 - ALPHAS[TIMESTEPS]).sqrt().view(3, 1, 1, 1)
    torch.testing.assert_close(signal * noisy - sigma * v, latents)
    torch.testing.assert_close(sigma * noisy + signal * v, noise)


def test_v_keeps_the_dtype_of_the_noise():
    half = torch.ones(3, 4, 2, 2, dtype=torch.bfloat16)
    assert training_target("v_prediction", half, half, ALPHAS, TIMESTEPS).dtype == torch.bfloat16


def test_another_prediction_type_is_refused():
    latents, noise = pair()
    with pytest.raises(ValueError, match="unknown prediction type 'sample', expected one of epsilon, v_prediction"):
        training_target("sample", latents, noise, ALPHAS, TIMESTEPS)
