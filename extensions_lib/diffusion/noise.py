"""The noise that is added to latents, and variants of it.

Letters: B batch, C latent channels, H W latent size (pixels / 8), T number of noise levels.
Sources: Guttenberg 2023, "Diffusion with Offset Noise"; Whitaker 2023, "Multi-Resolution Noise for Diffusion Model
Training" (pyramid); Ning et al. 2023, "Input Perturbation Reduces Exposure Bias in Diffusion Models".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class NoisePair(NamedTuple):
    """Noise (B, C, H, W) for the network's input and for its target; the same tensor without input perturbation."""

    input: Tensor
    target: Tensor


def draw_noise(
    shape: Sequence[int],
    generator: torch.Generator,
    *,
    offset: float = 0.0,
    random_offset_strength: bool = False,
    pyramid_discount: float = 0.0,
    input_perturbation: float = 0.0,
) -> NoisePair:
    """The noise of one micro-batch of `shape` (B, C, H, W), float32, on the generator's device.

    `offset` >= 0 adds a constant per sample and channel, `pyramid_discount` in [0, 1) adds coarser noise; both belong
    to the input and to the target. `input_perturbation` >= 0 adds noise to the input alone. 0 turns each off, and the
    plain noise is the same whichever are on. Raises ValueError when offset and pyramid are both on: each adds low
    frequencies, and together they are too strong.
    """
    if offset and pyramid_discount:
        raise ValueError(f"offset ({offset}) and pyramid noise ({pyramid_discount}) cannot be combined")
    noise = torch.randn(tuple(shape), generator=generator, device=generator.device)
    if offset:
        noise = add_offset(noise, generator, offset, random_strength=random_offset_strength)
    if pyramid_discount:
        noise = add_pyramid(noise, generator, pyramid_discount)
    if input_perturbation:
        return NoisePair(noise + input_perturbation * _randn_like(noise, noise.shape, generator), noise)
    return NoisePair(noise, noise)


def add_offset(noise: Tensor, generator: torch.Generator, strength: float, *, random_strength: bool = False) -> Tensor:
    """`noise` (B, C, H, W) plus `strength` times one normal number per sample and channel.

    With `random_strength` the strength is drawn once per call, uniform in [0, strength).
    """
    offset = _randn_like(noise, (*noise.shape[:2], 1, 1), generator)
    if random_strength:
        offset = offset * torch.rand((), generator=generator, device=noise.device)
    return noise + strength * offset


def add_pyramid(noise: Tensor, generator: torch.Generator, discount: float, num_levels: int = 6) -> Tensor:
    """`noise` (B, C, H, W) plus enlarged coarser noise, divided by the standard deviation of the whole.

    Level i is H / r^i by W / r^i large, r uniform in [2, 4) and drawn per level, and weighs `discount`^i. Stops early
    at a side of one latent pixel.
    """
    height, width = noise.shape[-2:]
    total = noise
    for level in range(num_levels):
        ratio = 2 + 2 * torch.rand((), generator=generator, device=noise.device).item()
        size = (max(1, int(height / ratio**level)), max(1, int(width / ratio**level)))
        coarse = _randn_like(noise, (*noise.shape[:2], *size), generator)
        total = total + discount**level * functional.interpolate(coarse, size=(height, width), mode="bilinear")
        if 1 in size:
            break
    return total / total.std()


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """x_t = sqrt(alpha_t) z + sqrt(1 - alpha_t) n.

    `latents` z and `noise` n are (B, C, H, W), `alphas_cumprod` (T,), `timesteps` (B,) integers in [0, T).
    Returns (B, C, H, W) in the dtype of `latents`.
    """
    signal, sigma = signal_and_noise_rates(alphas_cumprod, timesteps, latents)
    return (signal * latents + sigma * noise).to(latents.dtype)


def signal_and_noise_rates(alphas_cumprod: Tensor, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(alpha_t) and sqrt(1 - alpha_t) per sample: two (B, 1, 1, 1) tensors on the device of `like`.

    `alphas_cumprod` is (T,), `timesteps` (B,). The dtype is that of `alphas_cumprod`.
    """
    alphas = alphas_cumprod.to(like.device)[timesteps.to(like.device)].view(-1, 1, 1, 1)
    return alphas.sqrt(), (1 - alphas).sqrt()


def _randn_like(noise: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, device=noise.device, dtype=noise.dtype)
