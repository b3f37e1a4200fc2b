"""One question to the UNet, asked alike by training and previews.

Letters: B examples, C latent channels, H W latent size (pixels / 8), P width of the pooled text state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .text import Conditioning

if TYPE_CHECKING:
    from .bundle import ModelBundle

PIXELS_PER_LATENT = 8


def predict(
    bundle: ModelBundle, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Tensor
) -> Tensor:
    """The UNet's answer to `noisy_latents` (B, C, H, W) at `timesteps`, (B,) or one for all; in the UNet's dtype.

    `sizes` (B, 6): height and width of the original picture, top and left of the crop in the scaled picture, height
    and width of what is drawn, in pixels. Families without size conditioning ignore them. An inpainting UNet is shown
    a picture that is all masked, in training as in previews, see `masked_out_latents`.
    """
    unet = bundle.unet
    told = conditioning.to(unet.device, unet.dtype)
    inputs = noisy_latents.to(unet.dtype)
    if bundle.is_inpainting:
        further = masked_out_latents(bundle, *noisy_latents.shape[-2:])
        inputs = torch.cat([inputs, further.to(inputs).expand(len(inputs), -1, -1, -1)], dim=1)
    added = None
    if bundle.family.has_size_conditioning:
        # Sizes become waves of float32 numbers, whatever the UNet is: bf16 would round 1016 to 1016 +- 4.
        added = {"text_embeds": told.pooled, "time_ids": sizes.to(unet.device, torch.float32)}
    return unet(inputs, timesteps, told.hidden_states, added_cond_kwargs=added, return_dict=False)[0]


@torch.no_grad()
def masked_out_latents(bundle: ModelBundle, height: int, width: int) -> Tensor:
    """(1, 1 + C, H, W) float32: a mask of ones, and the scaled latents of the grey that masking leaves of a picture.

    What the WebUI shows an inpainting model in text-to-image, and what its own trainer trains with. The posterior's
    mean instead of a sample, so that nothing random is involved. Made once for each size.
    """
    kept = bundle.masked_out.get((height, width))
    if kept is None:
        vae = bundle.vae
        size = (1, 3, height * PIXELS_PER_LATENT, width * PIXELS_PER_LATENT)
        grey = torch.zeros(size, device=vae.device, dtype=vae.dtype)
        latents = vae.encode(grey).latent_dist.mean.float() * bundle.family.latent_scale
        kept = torch.cat([torch.ones_like(latents[:, :1]), latents], dim=1)
        bundle.masked_out[height, width] = kept
    return kept
