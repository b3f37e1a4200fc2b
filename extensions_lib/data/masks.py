"""Loss weights from transparency. H and W are latent sizes, pixels / 8."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .buckets import LATENT_PX, Bucket, CropBox

UNMASKED_WEIGHT = 0.1


def latent_alpha(alpha: Image.Image, bucket: Bucket, crop: CropBox) -> Tensor:
    """The opacity, (1, H, W) float32 in 0..1, each value the mean over the area of one latent.

    `alpha` has mode L and the size of the upright picture, `crop` is the part that fills `bucket`.
    """
    size = (bucket[0] // LATENT_PX, bucket[1] // LATENT_PX)
    averaged = alpha.convert("F").resize(size, Image.Resampling.BOX, box=crop.box)
    return torch.from_numpy(np.array(averaged, dtype=np.float32) / 255.0).clamp(0.0, 1.0)[None]


def loss_weights(alpha: Tensor, unmasked_weight: float = UNMASKED_WEIGHT) -> Tensor:
    """OneTrainer's mask, normalised: max(alpha, unmasked_weight) divided by its mean over the picture.

    `alpha` is (1, H, W) in 0..1, `unmasked_weight` in 0..1. The mean of the result is 1, so that a small subject
    weighs as much as a large one; a picture without any weight counts evenly.
    """
    weights = alpha.float().clamp(min=unmasked_weight)
    mean = weights.mean()
    return weights / mean if mean > 0 else torch.ones_like(weights)


def alpha_mask(
    alpha: Image.Image | None, bucket: Bucket, crop: CropBox, *, unmasked_weight: float = UNMASKED_WEIGHT
) -> Tensor:
    """Loss weights (1, H, W) float32 of one picture; ones when it has no transparency."""
    if alpha is None:
        return torch.ones(1, bucket[1] // LATENT_PX, bucket[0] // LATENT_PX)
    return loss_weights(latent_alpha(alpha, bucket, crop), unmasked_weight)
