"""What the network is asked to predict.

Source: Salimans and Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models" (v prediction).
"""

from __future__ import annotations

from torch import Tensor

from .noise import signal_and_noise_rates

PREDICTION_TYPES = ("epsilon", "v_prediction")


def training_target(
    prediction_type: str, latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor
) -> Tensor:
    """The tensor the prediction is compared with: n ("epsilon") or sqrt(alpha_t) n - sqrt(1 - alpha_t) z.

    `latents` z and `noise` n are (B, C, H, W), `alphas_cumprod` (T,), `timesteps` (B,) integers in [0, T).
    Returns (B, C, H, W) in the dtype of `noise`. Raises ValueError for another prediction type.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        signal, sigma = signal_and_noise_rates(alphas_cumprod, timesteps, noise)
        return (signal * noise - sigma * latents).to(noise.dtype)
    raise ValueError(f"unknown prediction type {prediction_type!r}, expected one of {', '.join(PREDICTION_TYPES)}")
