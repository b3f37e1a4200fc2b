"""Noise schedules, signal-to-noise ratios, and the random numbers of a step.

Letters: T number of noise levels (1000), B batch.
Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models"; Lin et al. 2023, "Common Diffusion Noise Schedules
and Sample Steps are Flawed" (zero terminal SNR); Hang et al. 2023, "Efficient Diffusion Training via Min-SNR".
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def scaled_linear_alphas_cumprod(
    beta_start: float = 0.00085, beta_end: float = 0.012, *, num: int = 1000, dtype: torch.dtype = torch.float64
) -> Tensor:
    """The cumulative product of 1 - beta_t, with the square root of beta linear in t: Stable Diffusion's schedule.

    Returns (num,) in (0, 1], falling; computed in float64, then cast to `dtype`.
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, num, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).to(dtype)


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """The schedule shifted and stretched so that the last level is pure noise (exactly 0) and the first is kept.

    `alphas_cumprod` is (T,), falling. Returns (T,) of the same dtype. Source: Lin et al. 2023, algorithm 1.
    """
    signal = alphas_cumprod.double().sqrt()
    first, last = signal[0], signal[-1]
    rescaled = (signal - last) * (first / (first - last))
    return (rescaled**2).to(alphas_cumprod.dtype)


def snr(alphas_cumprod: Tensor) -> Tensor:
    """Signal-to-noise ratio, alpha / (1 - alpha), of cumulative alphas in [0, 1). Same shape; 0 is pure noise."""
    return alphas_cumprod / (1 - alphas_cumprod)


def sample_timesteps(batch: int, generator: torch.Generator, min_timestep: int = 0, max_timestep: int = 1000) -> Tensor:
    """One integer per sample, uniform in [min_timestep, max_timestep).

    Returns (batch,) int64 on the generator's device. Raises ValueError for an empty range.
    """
    if not 0 <= min_timestep < max_timestep:
        raise ValueError(f"timesteps need 0 <= min < max, got min {min_timestep} and max {max_timestep}")
    return torch.randint(min_timestep, max_timestep, (batch,), generator=generator, device=generator.device)


def step_generator(seed: int, step: int, micro_batch: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments: the same on every device, machine and Python.

    `purpose` ("noise", "timesteps", ...) keeps what is drawn for one thing from shifting what is drawn for another.
    Draw on the CPU and move the result, so that a run does not depend on the device it is trained on.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{micro_batch}/{purpose}".encode()).digest()
    # torch's CPU generator reads the lowest 32 bits of the seed only.
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:4], "little"))
