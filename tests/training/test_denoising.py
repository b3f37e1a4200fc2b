from __future__ import annotations

import pytest
import torch
from torch import Tensor

from extensions_lib.diffusion.timesteps import scaled_linear_alphas_cumprod
from extensions_lib.models.text import Conditioning
from extensions_lib.training.denoising import Denoiser, LossSettings, NoiseSettings, fixed_noise_loss

ALPHAS = scaled_linear_alphas_cumprod(dtype=torch.float32)
LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
STATES = Conditioning(torch.zeros(2, 77, 4))
SIZES = torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)


class KnowsTheNoise:
    """Predicts the noise from (noisy latents, timestep) when told the clean latents; `error` is added."""

    def __init__(self, latents: Tensor, error: float = 0.0) -> None:
        self.latents, self.error = latents, error
        self.seen: list[tuple[Conditioning, Tensor]] = []

    def __call__(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Tensor) -> Tensor:
        self.seen.append((conditioning, sizes))
        alphas = ALPHAS[timesteps].view(-1, 1, 1, 1)
        noise = (noisy.float() - alphas.sqrt() * self.latents) / (1 - alphas).sqrt()
        return noise + self.error


def test_a_perfect_prediction_has_no_loss_and_an_error_its_square() -> None:
    noise, timesteps = torch.randn(LATENTS.shape), torch.tensor([100, 900])
    settings = LossSettings("epsilon")
    perfect = Denoiser(KnowsTheNoise(LATENTS), ALPHAS)
    wrong = Denoiser(KnowsTheNoise(LATENTS, 0.5), ALPHAS)
    assert perfect.losses(LATENTS, STATES, SIZES, (noise, noise), timesteps, settings).max() < 1e-8
    losses = wrong.losses(LATENTS, STATES, SIZES, (noise, noise), timesteps, settings)
    assert torch.allclose(losses, torch.full((2,), 0.25), atol=1e-3)


def test_min_snr_weighs_each_sample_by_its_timestep() -> None:
    noise, timesteps = torch.randn(LATENTS.shape), torch.tensor([100, 900])
    wrong = Denoiser(KnowsTheNoise(LATENTS, 0.5), ALPHAS)
    settings = LossSettings("epsilon", weighting="min_snr")
    losses = wrong.losses(LATENTS, STATES, SIZES, (noise, noise), timesteps, settings)
    assert losses.tolist() == pytest.approx([0.25 * 0.5914, 0.25], rel=2e-3)


def test_huber_is_below_the_square_for_large_errors() -> None:
    noise, timesteps = torch.randn(LATENTS.shape), torch.tensor([100, 900])
    wrong = Denoiser(KnowsTheNoise(LATENTS, 3.0), ALPHAS)
    square = wrong.losses(LATENTS, STATES, SIZES, (noise, noise), timesteps, LossSettings("epsilon"))
    huber = wrong.losses(LATENTS, STATES, SIZES, (noise, noise), timesteps, LossSettings("epsilon", loss_type="huber"))
    assert (huber < square / 3).all()


def test_masked_places_count_by_their_weight() -> None:
    noise, timesteps = torch.randn(LATENTS.shape), torch.tensor([100, 900])
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, :4] = 2.0
    wrong = Denoiser(KnowsTheNoise(LATENTS, 0.5), ALPHAS)
    losses = wrong.losses(LATENTS, STATES, SIZES, (noise, noise), timesteps, LossSettings("epsilon"), mask)
    assert torch.allclose(losses, torch.full((2,), 0.25), atol=1e-3)
    mask[:] = 0
    losses = wrong.losses(LATENTS, STATES, SIZES, (noise, noise), timesteps, LossSettings("epsilon"), mask)
    assert losses.abs().max() == 0


def test_the_network_is_told_of_texts_and_sizes() -> None:
    network = KnowsTheNoise(LATENTS)
    noise, timesteps = torch.randn(LATENTS.shape), torch.tensor([100, 900])
    settings = LossSettings("epsilon")
    losses = Denoiser(network, ALPHAS).losses(LATENTS, STATES, SIZES, (noise, noise), timesteps, settings)
    ((conditioning, sizes),) = network.seen
    assert conditioning is STATES and sizes is SIZES
    assert losses.dtype == torch.float32


def test_draws_depend_on_seed_step_and_micro_batch_only() -> None:
    denoiser = Denoiser(KnowsTheNoise(LATENTS), ALPHAS)
    settings = NoiseSettings(seed=5, min_timestep=10, max_timestep=20)
    torch.manual_seed(1)
    (one, _), times = denoiser.draw(LATENTS, settings, 3, 1)
    torch.manual_seed(2)
    (two, _), again = denoiser.draw(LATENTS, settings, 3, 1)
    assert torch.equal(one, two)
    assert torch.equal(times, again)
    assert all(10 <= time < 20 for time in times.tolist())
    for step, micro_batch, seed in ((4, 1, 5), (3, 0, 5), (3, 1, 6)):
        (other, _), _ = denoiser.draw(LATENTS, NoiseSettings(seed=seed), step, micro_batch)
        assert not torch.equal(one, other)


def test_input_perturbation_changes_the_input_only() -> None:
    denoiser = Denoiser(KnowsTheNoise(LATENTS), ALPHAS)
    (plain, _), _ = denoiser.draw(LATENTS, NoiseSettings(seed=5), 0, 0)
    (perturbed, target), _ = denoiser.draw(LATENTS, NoiseSettings(seed=5, input_perturbation=0.1), 0, 0)
    assert torch.equal(target, plain)
    assert not torch.equal(perturbed, plain)


def test_fixed_noise_loss_repeats_and_tells_models_apart() -> None:
    picture, states, sizes = LATENTS[:1], Conditioning(torch.zeros(1, 77, 4)), SIZES[:1]
    good = Denoiser(KnowsTheNoise(picture, 0.1), ALPHAS)
    bad = Denoiser(KnowsTheNoise(picture, 0.2), ALPHAS)
    first = fixed_noise_loss(good, picture, states, sizes, "epsilon", seed=1)
    torch.manual_seed(77)
    assert fixed_noise_loss(good, picture, states, sizes, "epsilon", seed=1) == first
    assert first == pytest.approx(0.01, rel=0.05)
    assert fixed_noise_loss(bad, picture, states, sizes, "epsilon", seed=1) == pytest.approx(0.04, rel=0.05)
