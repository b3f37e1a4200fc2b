"""What a single-file checkpoint holds beside the weights of its networks: what belongs to it, and what is left over."""

from __future__ import annotations

import re

from .keys import PREFIXES

_PARTS = (PREFIXES["unet"], PREFIXES["vae"], "cond_stage_model.", "conditioner.")
# Networks of variants (depth, unCLIP), and SDXL's own table of noise.
_FURTHER_PARTS = ("depth_model.", "embedder.", "noise_augmentor.", "denoiser.")
_MARKERS = ("v_pred", "ztsnr", "global_step")  # diffusers tells SD 2's kinds by the last
_SCHEDULE = re.compile(
    r"^(betas|logvar|scale_factor|lvlb_weights|alphas_cumprod(_prev)?|(sqrt|log)_\w*alphas_cumprod|"
    r"posterior_\w+|edm_\w+(\.\w+)?)$"
)
# The judge that a VAE was trained with.
_LOSS = PREFIXES["vae"] + "loss."
# What counts the places of a prompt's tokens, without its text encoder's prefix: no weight, in some files.
POSITION_IDS = "text_model.embeddings.position_ids"
# Averages of the weights that a training kept beside them.
AVERAGED = "model_ema."


def belongs_to_model(name: str) -> bool:
    """Whether a tensor is a weight, a noise schedule or a marker, not something that only a training needs.

    Averaged weights do not belong to it.
    """
    if name.startswith(_LOSS):
        return False
    return name.startswith((*_PARTS, *_FURTHER_PARTS)) or name in _MARKERS or _SCHEDULE.match(name) is not None
