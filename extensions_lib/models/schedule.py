"""The noise schedule a model was trained with."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.timesteps import rescale_zero_terminal_snr
from ..errors import FormatError, UnsupportedModelError

NUM_TIMESTEPS = 1000
PURE_NOISE = (
    1e-6  # WebUIs write a little more than 0 where a schedule ends in pure noise; Stable Diffusion ends at 0.005
)


def linear_alphas_cumprod(beta_start: float, beta_end: float) -> Tensor:
    """(1000,) float32: prod(1 - beta), where beta itself rises linearly (DDPM, diffusers' "linear")."""
    betas = torch.linspace(beta_start, beta_end, NUM_TIMESTEPS, dtype=torch.float64)
    return torch.cumprod(1.0 - betas, dim=0).float()


def check_alphas_cumprod(values: Tensor, where: str) -> Tensor:
    """A schedule found in a file, as float32. Raises FormatError unless it is (1000,), in [0, 1] and never rises."""
    alphas = values.detach().float()
    if tuple(alphas.shape) != (NUM_TIMESTEPS,):
        raise FormatError(
            f"{where}: the noise schedule alphas_cumprod has shape {tuple(alphas.shape)}, not ({NUM_TIMESTEPS},).",
            "Use another version of this model.",
        )
    in_range = bool(((alphas >= 0) & (alphas <= 1)).all())
    if not in_range or bool((alphas[1:] > alphas[:-1]).any()):
        raise FormatError(
            f"{where}: the noise schedule alphas_cumprod is not a falling series of numbers from 0 to 1.",
            "The file was damaged, probably by a merge; use another version of this model.",
        )
    return alphas


def ends_in_pure_noise(alphas_cumprod: Tensor) -> bool:
    """Whether a schedule (1000,) has zero terminal SNR; one on the meta device has not."""
    return not alphas_cumprod.is_meta and bool(alphas_cumprod[-1] < PURE_NOISE)


def with_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """The schedule (1000,) stretched to end in pure noise; one that does so is given back as it is."""
    return alphas_cumprod if ends_in_pure_noise(alphas_cumprod) else rescale_zero_terminal_snr(alphas_cumprod)


def check_num_timesteps(count: int, where: str) -> None:
    """Raises UnsupportedModelError unless the model knows 1000 timesteps."""
    if count != NUM_TIMESTEPS:
        raise UnsupportedModelError(
            f"{where} was trained with {count} timesteps; only models with {NUM_TIMESTEPS} are supported.",
            "Choose another model.",
        )
