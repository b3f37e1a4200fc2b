from __future__ import annotations

import pytest
import torch
from PIL import Image

from extensions_lib.data.buckets import crop_box
from extensions_lib.data.masks import alpha_mask, latent_alpha, loss_weights


def half(width: int, height: int) -> Image.Image:
    """The left half is opaque."""
    alpha = Image.new("L", (width, height), 0)
    alpha.paste(255, (0, 0, width // 2, height))
    return alpha


def test_a_latent_gets_the_mean_of_its_area() -> None:
    alpha = Image.new("L", (16, 8), 255)
    alpha.paste(0, (0, 0, 2, 8))  # 2 of the 8 columns of the first latent
    got = latent_alpha(alpha, (16, 8), crop_box(16, 8, (16, 8)))
    assert got.dtype == torch.float32 and got.shape == (1, 1, 2)
    assert got.flatten().tolist() == [0.75, 1.0]


def test_the_mask_is_cropped_like_the_picture() -> None:
    # 128x64 cut to its centre: the opaque half ends in the middle; scaled by 2.
    got = latent_alpha(half(64, 32), (64, 64), crop_box(64, 32, (64, 64)))
    assert got.shape == (1, 8, 8)
    assert got[0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    corner = Image.new("L", (64, 32), 0)
    corner.paste(255, (0, 0, 16, 32))  # exactly the part that is cut off at the left
    assert latent_alpha(corner, (64, 64), crop_box(64, 32, (64, 64))).sum() == 0


def test_wide_masks_have_rows_before_columns() -> None:
    got = alpha_mask(half(128, 32), (128, 32), crop_box(128, 32, (128, 32)))
    assert got.shape == (1, 4, 16)


def test_weights_are_onetrainers_with_mean_one() -> None:
    alpha = torch.tensor([[[0.0, 0.05, 0.5, 1.0]]])
    expected = torch.tensor([[[0.1, 0.1, 0.5, 1.0]]]) / 0.425
    assert torch.allclose(loss_weights(alpha), expected)
    assert torch.allclose(loss_weights(alpha, 0.0), alpha / 0.3875)
    assert loss_weights(alpha, 1.0).tolist() == [[[1.0] * 4]]


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.1])
def test_a_picture_without_any_weight_counts_evenly(unmasked_weight) -> None:
    assert torch.allclose(loss_weights(torch.zeros(1, 2, 2), unmasked_weight), torch.ones(1, 2, 2))


def test_without_transparency_all_weights_are_one() -> None:
    got = alpha_mask(None, (64, 128), crop_box(64, 128, (64, 128)))
    assert got.shape == (1, 16, 8) and got.eq(1).all()
