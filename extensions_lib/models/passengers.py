"""What a single-file checkpoint holds beside the weights of its networks: what belongs to it, and what is left over."""

from __future__ import annotations

import re

from ..formats.keys import PREFIXES
from .prediction import ALPHAS, V_PRED, ZTSNR

_PARTS = (PREFIXES["unet"], PREFIXES["vae"], "cond_stage_model.", "conditioner.")
# Networks of variants (depth, unCLIP), and SDXL's own table of noise.
_FURTHER_PARTS = ("depth_model.", "embedder.", "noise_augmentor.", "denoiser.")
_MARKERS = (V_PRED, ZTSNR, "global_step")  # diffusers tells SD 2's kinds by the last
_SCHEDULE = re.compile(
    rf"^(betas|logvar|scale_factor|lvlb_weights|{ALPHAS}(_prev)?|(sqrt|log)_\w*alphas_cumprod|sqrt_recipm1_{ALPHAS}|"
    r"posterior_\w+|edm_\w+(\.\w+)?)$"
)
# The judge that a VAE was trained with.
_LOSS = PREFIXES["vae"] + "loss."


def belongs_to_model(name: str) -> bool:
    """Whether a tensor is a weight, a noise schedule or a marker, not something that only a training needs.

    Averaged weights (`model_ema.`) do not belong to it.
    """
    if name.startswith(_LOSS):
        return False
    return name.startswith((*_PARTS, *_FURTHER_PARTS)) or name in _MARKERS or _SCHEDULE.match(name) is not None
