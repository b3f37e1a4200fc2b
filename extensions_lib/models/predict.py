"""One question to the UNet, asked alike by training and previews.

Letters: B examples, C latent channels, H W latent size (pixels / 8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .text import Conditioning

if TYPE_CHECKING:
    from .bundle import ModelBundle


def predict(
    bundle: ModelBundle, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Tensor
) -> Tensor:
    """The UNet's answer to `noisy_latents` (B, C, H, W) at `timesteps`, (B,) or one for all; in the UNet's dtype.

    `sizes` (B, 6): height and width of the original picture, top and left of the crop in the scaled picture, height
    and width of what is drawn, in pixels. Families without size conditioning ignore them.
    """
    unet = bundle.unet
    hidden_states = conditioning.hidden_states.to(unet.device, unet.dtype)
    return unet(noisy_latents.to(unet.dtype), timesteps, hidden_states, return_dict=False)[0]
