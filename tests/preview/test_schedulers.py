"""Each sampling method against its own few lines, after k-diffusion's sampling.py and the DDIM paper, on a known model.

The "model" is a fixed smooth function of the sample, so that every sampler can be written out.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from extensions_lib.config.preview import SAMPLERS
from extensions_lib.errors import ConfigError
from extensions_lib.preview.schedulers import SAMPLER_KINDS, betas_of, build_scheduler, sampler_kind

NUM_STEPS = 12
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def alphas_cumprod() -> Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).to(torch.float32)


@pytest.fixture
def start() -> Tensor:
    return torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3))


def eps(unit: Tensor) -> Tensor:
    """The noise our model sees in a sample of unit variance."""
    return 0.9 * unit + 0.2 * torch.sin(3 * unit)


def run(name: str, alphas_cumprod: Tensor, start: Tensor, num_steps: int = NUM_STEPS) -> Tensor:
    kind = sampler_kind(name)
    scheduler = build_scheduler(kind, alphas_cumprod, "epsilon", num_steps, CPU)
    options = {"generator": [torch.Generator().manual_seed(5)]} if kind.draws_noise else {}
    latents = start * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        pred = eps(scheduler.scale_model_input(latents, timestep))
        latents = scheduler.step(pred, timestep, latents, return_dict=False, **options)[0]
    return latents


def denoised(x: Tensor, sigma: float) -> Tensor:
    return x - sigma * eps(x / (sigma**2 + 1) ** 0.5)


def even_sigmas(alphas_cumprod: Tensor) -> np.ndarray:
    """k-diffusion's get_sigmas: evenly spaced timesteps, the logarithm of sigma interpolated, 0 at the end."""
    table = (((1 - alphas_cumprod) / alphas_cumprod) ** 0.5).log().numpy()
    return np.append(np.exp(np.interp(np.linspace(999, 0, NUM_STEPS), np.arange(1000), table)), 0.0)


def karras_sigmas(alphas_cumprod: Tensor) -> np.ndarray:
    table = (((1 - alphas_cumprod) / alphas_cumprod) ** 0.5).numpy()
    ramp = np.linspace(0, 1, NUM_STEPS)
    low, high = table[0] ** (1 / 7), table[-1] ** (1 / 7)
    return np.append((high + ramp * (low - high)) ** 7, 0.0)


def euler(x: Tensor, sigmas: np.ndarray) -> Tensor:
    for sigma, after in pairwise(sigmas):
        x = x + (x - denoised(x, sigma)) / sigma * (after - sigma)
    return x


def euler_ancestral(x: Tensor, sigmas: np.ndarray) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    for sigma, after in pairwise(sigmas):
        up = min(after, (after**2 * (sigma**2 - after**2) / sigma**2) ** 0.5)
        down = (after**2 - up**2) ** 0.5
        x = x + (x - denoised(x, sigma)) / sigma * (down - sigma)
        x = x + torch.randn(x.shape, generator=generator) * up
    return x


def heun(x: Tensor, sigmas: np.ndarray) -> Tensor:
    for sigma, after in pairwise(sigmas):
        slope = (x - denoised(x, sigma)) / sigma
        moved = x + slope * (after - sigma)
        if after > 0:
            slope = (slope + (moved - denoised(moved, after)) / after) / 2
            moved = x + slope * (after - sigma)
        x = moved
    return x


def dpmpp_2m(x: Tensor, sigmas: np.ndarray) -> Tensor:
    before, last_step = None, 0.0
    for sigma, after in pairwise(sigmas):
        clean = denoised(x, sigma)
        if after == 0:
            return clean
        step = np.log(sigma / after)
        mixed = clean if before is None else clean + (clean - before) * step / (2 * last_step)
        x = after / sigma * x + (1 - after / sigma) * mixed
        before, last_step = clean, step
    raise AssertionError("the last sigma is 0")


# DPM-Solver in diffusers rounds the timesteps to whole ones, hence the wider tolerance: 1 % of the values' scale.
@pytest.mark.parametrize(
    ("name", "by_hand", "spacing", "tolerance"),
    [
        ("euler", euler, even_sigmas, 2e-4),
        ("euler_a", euler_ancestral, even_sigmas, 2e-4),
        ("heun", heun, even_sigmas, 2e-4),
        ("dpmpp_2m", dpmpp_2m, even_sigmas, 1e-2),
        ("dpmpp_2m_karras", dpmpp_2m, karras_sigmas, 1e-2),
    ],
)
def test_sampler_is_k_diffusions(name, by_hand, spacing, tolerance, alphas_cumprod, start) -> None:
    sigmas = spacing(alphas_cumprod)
    expected = by_hand(start * float(sigmas[0]), sigmas)
    found = run(name, alphas_cumprod, start)
    assert (found - expected).abs().max() / expected.abs().max() < tolerance


def test_ddim_is_the_papers_with_the_webuis_timesteps(alphas_cumprod, start) -> None:
    x, timesteps = start, [1 + 83 * index for index in reversed(range(NUM_STEPS))]  # 83 = 1000 // 12
    for timestep, after in zip(timesteps, [*timesteps[1:], 0], strict=True):
        alpha, alpha_after = alphas_cumprod[timestep], alphas_cumprod[after]
        clean = (x - (1 - alpha) ** 0.5 * eps(x)) / alpha**0.5
        x = alpha_after**0.5 * clean + (1 - alpha_after) ** 0.5 * eps(x)
    torch.testing.assert_close(run("ddim", alphas_cumprod, start), x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_few_steps_work(name, num_steps, alphas_cumprod, start) -> None:
    assert torch.isfinite(run(name, alphas_cumprod, start, num_steps)).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_v_prediction_of_the_truth_gives_the_clean_picture(name, alphas_cumprod, start) -> None:
    """With v = sqrt(abar) eps - sqrt(1-abar) x0 for x0 = 0, a sample of pure noise must end near 0."""
    kind = sampler_kind(name)
    scheduler = build_scheduler(kind, alphas_cumprod, "v_prediction", 20, CPU)
    options = {"generator": [torch.Generator().manual_seed(5)]} if kind.draws_noise else {}
    latents = start * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        unit = scheduler.scale_model_input(latents, timestep)
        alpha = alphas_cumprod[int(timestep)]
        latents = scheduler.step(
            alpha**0.5 * unit / (1 - alpha) ** 0.5, timestep, latents, return_dict=False, **options
        )[0]
    assert latents.abs().max() < 0.1


def test_settings_and_samplers_are_the_same_list() -> None:
    assert tuple(SAMPLERS) == tuple(SAMPLER_KINDS)


def test_betas_give_the_schedule_back(alphas_cumprod) -> None:
    again = torch.tensor([1 - beta for beta in betas_of(alphas_cumprod)], dtype=torch.float64).cumprod(0)
    torch.testing.assert_close(again.to(torch.float32), alphas_cumprod)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_schedule_that_ends_in_pure_noise_stays_finite(name, alphas_cumprod, start) -> None:
    zero_snr = alphas_cumprod.clone()
    zero_snr[-1] = 0.0
    assert torch.isfinite(run(name, zero_snr, start)).all()


def test_an_unknown_sampler_names_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        sampler_kind("lms")
    assert caught.value.message == (
        "1 setting is wrong:\n"
        "  sampler: there is no 'lms'; accepted are ddim, euler, euler_a, heun, dpmpp_2m, dpmpp_2m_karras"
    )
