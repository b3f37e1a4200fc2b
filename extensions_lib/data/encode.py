"""From one picture to the mean and deviation of its latents, and from those to samples.

C is 4 for Stable Diffusion 1; H and W are latent sizes, pixels / 8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import DatasetError, OutOfMemoryError, is_out_of_memory
from ..formats.safetensors_io import data_hash
from .example import Example
from .fitted import load_fitted, to_tensor
from .images import Colour
from .masks import latent_alpha

NOT_ENCODING = ("decoder.", "post_quant_conv.")


class Posterior(Protocol):
    """A normal distribution of latents, (B, C, H, W)."""

    mean: Tensor
    std: Tensor


class Encoding(Protocol):
    """What a VAE answers to pictures."""

    latent_dist: Posterior


class Encoder(Protocol):
    """The part of diffusers' AutoencoderKL that is used here; `encode(x).latent_dist` has `mean` and `std`."""

    dtype: torch.dtype
    device: torch.device

    def encode(self, x: Tensor) -> Encoding:
        """Posterior for pictures (B, 3, height, width) in -1..1."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """All weights by name."""


@dataclass(frozen=True)
class LatentStats:
    """`mean` and `std` (C, H, W) float32, unscaled; `alpha` (1, H, W) opacity in 0..1, None when all is opaque."""

    mean: Tensor
    std: Tensor
    alpha: Tensor | None = None


def vae_fingerprint(vae: Encoder) -> str:
    """sha256 over the names, types and values of the weights that encode; another decoder changes nothing."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        if not name.startswith(NOT_ENCODING):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(data_hash({name: tensor}).encode())
    return digest.hexdigest()


def encode_example(example: Example, vae: Encoder, *, flip: bool, background: Colour) -> LatentStats:
    """Encode one picture as the model will see it. Raises as `cache_latents` does."""
    fitted = load_fitted(example, background=background)
    alpha = None if fitted.alpha is None else latent_alpha(fitted.alpha, example.bucket, example.crop)
    pixels = to_tensor(fitted.rgb)
    if flip:
        pixels, alpha = pixels.flip(-1), None if alpha is None else alpha.flip(-1)
    return LatentStats(*_encode(vae, pixels, example), alpha)


def _encode(vae: Encoder, pixels: Tensor, example: Example) -> tuple[Tensor, Tensor]:
    try:
        with torch.no_grad():
            posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
            mean, std = posterior.mean[0].float().cpu(), posterior.std[0].float().cpu()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        width, height = example.bucket
        raise OutOfMemoryError(
            f"There is too little memory on {vae.device} to encode {example.name} at {width}x{height} px.",
            "Use a smaller resolution, or close other programs that use the device.",
        ) from error
    if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
        dtype = name_of_dtype(vae.dtype)
        raise DatasetError(
            f"The latents of {example.name} are not finite (NaN or infinity); the VAE computes in {dtype}.",
            "Use the VAE in float32, or another VAE; if only this picture fails, remove it.",
        )
    return mean, std


def sample_latents(mean: Tensor, std: Tensor, generator: torch.Generator | None, latent_scale: float) -> Tensor:
    """(mean + std * n) * latent_scale with n ~ N(0, 1) from `generator`; without a generator the scaled mean.

    Any shape, usually (B, C, H, W). The noise is drawn on the generator's device and moved to `mean`'s.
    """
    if generator is None:
        return mean * latent_scale
    noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return (mean + std * noise.to(mean.device)) * latent_scale


def name_of_dtype(dtype: torch.dtype) -> str:
    """'float32' for torch.float32."""
    return str(dtype).removeprefix("torch.")
