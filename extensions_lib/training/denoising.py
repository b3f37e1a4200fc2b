"""The loss of a micro-batch: noise, timesteps, prediction, comparison.

Letters: B examples, C latent channels, H W latent size (pixels / 8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.loss import huber_thresholds, loss_weights, per_sample_loss
from ..diffusion.noise import add_noise, draw_noise
from ..diffusion.target import training_target
from ..diffusion.timesteps import sample_timesteps, step_generator
from ..models.text import Conditioning

Predict = Callable[[Tensor, Tensor, Conditioning, Tensor], Tensor]


@dataclass(frozen=True)
class NoiseSettings:
    """How noise and timesteps are drawn."""

    seed: int
    offset: float = 0.0
    pyramid_discount: float = 0.0
    input_perturbation: float = 0.0
    min_timestep: int = 0
    max_timestep: int = 1000


@dataclass(frozen=True)
class LossSettings:
    """How the prediction is judged."""

    prediction_type: str
    loss_type: str = "mse"
    huber_c: float = 0.1
    weighting: str = "none"
    min_snr_gamma: float = 5.0


@dataclass(frozen=True)
class Denoiser:
    """What answers noisy latents, and its noise schedule `alphas_cumprod` (1000,) float32.

    `predict(noisy_latents, timesteps, conditioning, sizes)` is `models.predict.predict` of a model, perhaps with
    adapters.
    """

    predict: Predict
    alphas_cumprod: Tensor

    def losses(
        self,
        latents: Tensor,
        conditioning: Conditioning,
        sizes: Tensor,
        noise: tuple[Tensor, Tensor],
        timesteps: Tensor,
        settings: LossSettings,
        mask_weights: Tensor | None = None,
    ) -> Tensor:
        """Losses (B,) float32, weighted by noise level. `latents` (B, C, H, W) are scaled, float32.

        `sizes` (B, 6) are those of `Example.sizes`.
        """
        noisy_latents = self.noisy(latents, noise, timesteps)
        prediction = self.predict(noisy_latents, timesteps, conditioning, sizes)
        target = training_target(settings.prediction_type, latents, noise[1], self.alphas_cumprod, timesteps)
        return self.judged(prediction, target, timesteps, settings, mask_weights)

    def noisy(self, latents: Tensor, noise: tuple[Tensor, Tensor], timesteps: Tensor) -> Tensor:
        """`latents` with the first of `noise`, the input's, at `timesteps`."""
        return add_noise(latents, noise[0], self.alphas_cumprod, timesteps)

    def judged(
        self,
        prediction: Tensor,
        target: Tensor,
        timesteps: Tensor,
        settings: LossSettings,
        mask_weights: Tensor | None = None,
    ) -> Tensor:
        """Losses (B,) float32 of predictions (B, C, H, W), weighted by noise level."""
        weights = loss_weights(
            settings.weighting,
            self.alphas_cumprod,
            timesteps,
            settings.prediction_type,
            min_snr_gamma=settings.min_snr_gamma,
        )
        thresholds = huber_thresholds("snr", self.alphas_cumprod, timesteps, settings.huber_c)
        losses = per_sample_loss(
            prediction, target, loss_type=settings.loss_type, mask_weights=mask_weights, huber_c=thresholds
        )
        return losses * weights

    def draw(
        self, latents: Tensor, settings: NoiseSettings, step: int, micro_batch: int
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Noise for input and target, like `latents`, and timesteps (B,), from (seed, step, micro_batch) alone."""
        noise = draw_noise(
            latents.shape,
            step_generator(settings.seed, step, micro_batch, "noise"),
            offset=settings.offset,
            pyramid_discount=settings.pyramid_discount,
            input_perturbation=settings.input_perturbation,
        )
        timesteps = sample_timesteps(
            len(latents),
            step_generator(settings.seed, step, micro_batch, "timesteps"),
            settings.min_timestep,
            settings.max_timestep,
        )
        moved = tuple(tensor.to(latents.device) for tensor in noise)
        return (moved[0], moved[1]), timesteps.to(latents.device)


VALIDATION_TIMESTEPS = tuple(range(50, 1000, 128))


@torch.no_grad()
def fixed_noise_loss(
    denoiser: Denoiser, latents: Tensor, conditioning: Conditioning, sizes: Tensor, prediction_type: str, seed: int
) -> float:
    """Mean loss of one picture, latents (1, C, H, W), at 8 timesteps from 5 to 95 % with noise fixed by `seed`.

    `sizes` is (1, 6). Comparable between steps and between models; unweighted.
    """
    count = len(VALIDATION_TIMESTEPS)
    noise = torch.randn((count, *latents.shape[1:]), generator=step_generator(seed, 0, 0, "validation")).to(
        latents.device
    )
    timesteps = torch.tensor(VALIDATION_TIMESTEPS, device=latents.device)
    losses = denoiser.losses(
        latents.expand(count, -1, -1, -1),
        conditioning.repeated(count),
        sizes.expand(count, -1),
        (noise, noise),
        timesteps,
        LossSettings(prediction_type),
    )
    return float(losses.mean())
