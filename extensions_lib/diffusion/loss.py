"""The loss of each sample and its weight. Always float32; sums over samples are the caller's, so that accumulation
over micro-batches can divide by the total weight of a step.

Letters: B batch, C latent channels, H W latent size (pixels / 8), T number of noise levels.
Sources: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy"; Yu et al. 2023, "Debias the
Training of Diffusion Models"; Khrapov et al. 2024, "Improving Diffusion Models's Data-Corruption Resistance using
Scheduled Pseudo-Huber Loss".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .target import PREDICTION_TYPES
from .timesteps import snr

LOSS_TYPES = ("mse", "huber", "smooth_l1")
LOSS_WEIGHTINGS = ("none", "min_snr", "debiased")
HUBER_SCHEDULES = ("constant", "exponential", "snr")

MIN_SNR_OF_EPSILON_WEIGHTS = 1e-4
MAX_SNR_OF_DEBIASED_WEIGHTS = 1000.0


def per_sample_loss(
    model_pred: Tensor,
    target: Tensor,
    *,
    loss_type: str = "mse",
    mask_weights: Tensor | None = None,
    huber_c: Tensor | float = 0.1,
) -> Tensor:
    """The mean error of each sample over C, H and W.

    `model_pred` and `target` are (B, C, H, W) of any floating dtype. `mask_weights` (B, 1, H, W) multiplies the error
    of each place before the mean; give it the mean 1 to keep the size of the loss. `huber_c` > 0, one number or (B,),
    is where "huber" and "smooth_l1" turn from square to straight. Returns (B,) float32. Raises ValueError for another
    loss type.
    """
    error = _element_loss(model_pred.float() - target.float(), loss_type, huber_c)
    if mask_weights is not None:
        error = error * mask_weights.float()
    return error.flatten(1).mean(dim=1)


def _element_loss(difference: Tensor, loss_type: str, huber_c: Tensor | float) -> Tensor:
    if loss_type == "mse":
        return difference**2
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"unknown loss type {loss_type!r}, expected one of {', '.join(LOSS_TYPES)}")
    c = torch.as_tensor(huber_c, dtype=torch.float32, device=difference.device).view(-1, 1, 1, 1)
    pseudo_huber = 2 * (torch.sqrt(difference**2 + c**2) - c)
    return c * pseudo_huber if loss_type == "huber" else pseudo_huber


def huber_thresholds(schedule: str, alphas_cumprod: Tensor, timesteps: Tensor, c: float = 0.1) -> Tensor:
    """The `huber_c` of each sample: larger where there is less noise.

    "constant" is c; "exponential" falls from 1 to c over the T levels; "snr" is (1 - c) / (1 + sigma)^2 + c with
    sigma^2 = 1 / SNR. `alphas_cumprod` is (T,), `timesteps` (B,), `c` in (0, 1]. Returns (B,) float32.
    Raises ValueError for another schedule.
    """
    if schedule == "constant":
        return torch.full(timesteps.shape, c, dtype=torch.float32, device=timesteps.device)
    if schedule == "exponential":
        return torch.exp(timesteps.float() * math.log(c) / len(alphas_cumprod))
    if schedule == "snr":
        sigmas = _snr_at(alphas_cumprod, timesteps).rsqrt()
        return ((1 - c) / (1 + sigmas) ** 2 + c).float()
    raise ValueError(f"unknown Huber schedule {schedule!r}, expected one of {', '.join(HUBER_SCHEDULES)}")


def loss_weights(
    weighting: str,
    alphas_cumprod: Tensor,
    timesteps: Tensor,
    prediction_type: str,
    *,
    min_snr_gamma: float = 5.0,
) -> Tensor:
    """The factor of each sample's loss, applied after its mean over places.

    `alphas_cumprod` (T,) is the schedule in force, rescaled or not; `timesteps` is (B,). Returns (B,) float32.
    Raises ValueError for another weighting or prediction type.
    """
    if weighting == "none":
        return torch.ones(timesteps.shape, dtype=torch.float32, device=timesteps.device)
    ratios = _snr_at(alphas_cumprod, timesteps)
    if weighting == "min_snr":
        return min_snr_weights(ratios, prediction_type, min_snr_gamma).float()
    if weighting == "debiased":
        return debiased_weights(ratios, prediction_type).float()
    raise ValueError(f"unknown loss weighting {weighting!r}, expected one of {', '.join(LOSS_WEIGHTINGS)}")


def min_snr_weights(ratios: Tensor, prediction_type: str, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v.

    `ratios` are SNRs >= 0 of any shape, `gamma` > 0. For epsilon they are floored at 1e-4, so pure noise weighs 1;
    for v pure noise weighs 0, which defeats a schedule with zero terminal SNR.
    """
    if _is_epsilon(prediction_type):
        floored = ratios.clamp(min=MIN_SNR_OF_EPSILON_WEIGHTS)
        return floored.clamp(max=gamma) / floored
    return ratios.clamp(max=gamma) / (ratios + 1)


def debiased_weights(ratios: Tensor, prediction_type: str, *, square_root: bool = False) -> Tensor:
    """1 / sqrt(SNR) for epsilon, 1 / (SNR + 1) for v, with SNR at most 1000.

    `ratios` are SNRs >= 0 of any shape, floored at 1e-4 for epsilon. `square_root` takes 1 / sqrt(SNR + 1) for v,
    a variant some trainers use.
    """
    capped = ratios.clamp(max=MAX_SNR_OF_DEBIASED_WEIGHTS)
    if _is_epsilon(prediction_type):
        return capped.clamp(min=MIN_SNR_OF_EPSILON_WEIGHTS).rsqrt()
    return (capped + 1).rsqrt() if square_root else 1 / (capped + 1)


def _snr_at(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    return snr(alphas_cumprod.to(timesteps.device)[timesteps])


def _is_epsilon(prediction_type: str) -> bool:
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"unknown prediction type {prediction_type!r}, expected one of {', '.join(PREDICTION_TYPES)}")
    return prediction_type == "epsilon"
