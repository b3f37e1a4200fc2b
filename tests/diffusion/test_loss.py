"""Losses per sample and their weights."""

import math

import pytest
import torch

from extensions_lib.diffusion.loss import (
    debiased_weights,
    huber_thresholds,
    loss_weights,
    min_snr_weights,
    per_sample_loss,
)
from extensions_lib.diffusion.timesteps import rescale_zero_terminal_snr, scaled_linear_alphas_cumprod

ALPHAS = scaled_linear_alphas_cumprod()
ZERO_TERMINAL = rescale_zero_terminal_snr(ALPHAS)


def pair(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(3, 4, 6, 5, generator=generator).to(dtype) for _ in range(2))


def test_mse_is_the_mean_of_each_sample():
    prediction = torch.tensor([[1.0, 3.0], [0.0, 2.0]]).view(2, 1, 1, 2)
    losses = per_sample_loss(prediction, torch.zeros_like(prediction))
    assert losses.tolist() == [5.0, 2.0]


def test_mse_agrees_with_torch():
    prediction, target = pair()
    expected = torch.nn.functional.mse_loss(prediction, target)
    torch.testing.assert_close(per_sample_loss(prediction, target).mean(), expected)


def test_half_precision_is_compared_in_float32():
    prediction, target = pair(torch.bfloat16)
    losses = per_sample_loss(prediction, target)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, per_sample_loss(prediction.float(), target.float()), rtol=0, atol=0)
    big = torch.full((1, 1, 1, 1), 600.0, dtype=torch.float16)
    assert per_sample_loss(big, torch.zeros_like(big)).item() == 360_000.0


def test_mask_weights_are_shared_by_channels():
    prediction = torch.ones(2, 3, 1, 2)
    prediction[..., 1] = 2.0
    mask = torch.tensor([[2.0, 0.0], [0.5, 1.5]]).view(2, 1, 1, 2)
    losses = per_sample_loss(prediction, torch.zeros_like(prediction), mask_weights=mask)
    assert losses.tolist() == [1.0, (0.5 * 1 + 1.5 * 4) / 2]


def test_masked_places_get_no_gradient():
    prediction = torch.ones(1, 1, 1, 2, requires_grad=True)
    mask = torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)
    per_sample_loss(prediction, torch.zeros(1, 1, 1, 2), mask_weights=mask).sum().backward()
    assert prediction.grad.flatten().tolist() == [0.0, 2.0]


def test_accumulation_over_micro_batches_is_exact():
    """Sums over unequal parts, divided by the total weight, are the loss of the whole."""
    prediction, target = pair()
    weights = torch.tensor([1.0, 2.0, 0.5])
    whole = (per_sample_loss(prediction, target) * weights).sum() / weights.sum()
    parts = [slice(0, 1), slice(1, 3)]
    total = sum((per_sample_loss(prediction[part], target[part]) * weights[part]).sum() for part in parts)
    torch.testing.assert_close(total / weights.sum(), whole)


@pytest.mark.parametrize(("loss_type", "factor"), [("huber", 0.1), ("smooth_l1", 1.0)])
def test_pseudo_huber_by_hand(loss_type, factor):
    difference = torch.tensor([0.0, 0.3]).view(2, 1, 1, 1)
    losses = per_sample_loss(difference, torch.zeros_like(difference), loss_type=loss_type, huber_c=0.1)
    expected = [0.0, factor * 2 * (math.sqrt(0.09 + 0.01) - 0.1)]
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)


def test_huber_is_square_when_the_threshold_is_large():
    prediction, target = pair()
    huber = per_sample_loss(prediction, target, loss_type="huber", huber_c=100.0)
    torch.testing.assert_close(huber, per_sample_loss(prediction, target), rtol=1e-2, atol=0)


def test_huber_thresholds_may_differ_between_samples():
    prediction, target = pair()
    each = torch.tensor([0.1, 0.5, 1.0])
    together = per_sample_loss(prediction, target, loss_type="huber", huber_c=each)
    alone = [
        per_sample_loss(prediction[i : i + 1], target[i : i + 1], loss_type="huber", huber_c=each[i].item())
        for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_huber_schedules():
    timesteps = torch.tensor([0, 500, 999])
    assert huber_thresholds("constant", ALPHAS, timesteps).tolist() == pytest.approx([0.1] * 3)
    assert huber_thresholds("exponential", ALPHAS, timesteps).tolist() == pytest.approx([1, 10**-0.5, 10**-0.999])
    sigma = (1 / 0.38185) ** 0.5
    by_snr = huber_thresholds("snr", ALPHAS, timesteps)
    assert by_snr[1].item() == pytest.approx(0.9 / (1 + sigma) ** 2 + 0.1, rel=1e-5)
    assert huber_thresholds("snr", ZERO_TERMINAL, timesteps)[2].item() == pytest.approx(0.1)


def test_unknown_names_are_refused():
    prediction, target = pair()
    one = torch.tensor([1])
    with pytest.raises(ValueError, match="unknown loss type 'l3', expected one of mse, huber, smooth_l1"):
        per_sample_loss(prediction, target, loss_type="l3")
    with pytest.raises(ValueError, match="unknown Huber schedule 'x', expected one of constant, exponential, snr"):
        huber_thresholds("x", ALPHAS, one)
    with pytest.raises(ValueError, match="unknown loss weighting 'x', expected one of none, min_snr, debiased"):
        loss_weights("x", ALPHAS, one, "epsilon")
    with pytest.raises(ValueError, match="unknown prediction type 'x'"):
        loss_weights("min_snr", ALPHAS, one, "x")


def test_no_weighting_is_one():
    weights = loss_weights("none", ALPHAS, torch.tensor([1, 2, 3]), "epsilon")
    assert weights.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_weights_are_chosen_by_timestep(prediction_type):
    timesteps = torch.tensor([900, 10, 10])
    ratios = (ALPHAS / (1 - ALPHAS))[timesteps]
    min_snr = loss_weights("min_snr", ALPHAS, timesteps, prediction_type, min_snr_gamma=3.0)
    debiased = loss_weights("debiased", ALPHAS, timesteps, prediction_type)
    assert min_snr.dtype == debiased.dtype == torch.float32
    torch.testing.assert_close(min_snr, min_snr_weights(ratios, prediction_type, 3.0).float())
    torch.testing.assert_close(debiased, debiased_weights(ratios, prediction_type).float())
    assert min_snr[0] != min_snr[1] == min_snr[2]


def test_pure_noise_has_finite_weights():
    last = torch.tensor([999])
    assert loss_weights("min_snr", ZERO_TERMINAL, last, "epsilon").item() == 1.0
    assert loss_weights("debiased", ZERO_TERMINAL, last, "epsilon").item() == pytest.approx(100.0)
    assert loss_weights("min_snr", ZERO_TERMINAL, last, "v_prediction").item() == 0.0
    assert loss_weights("debiased", ZERO_TERMINAL, last, "v_prediction").item() == 1.0


def test_a_large_gamma_is_no_weight_for_epsilon():
    assert torch.equal(min_snr_weights(torch.tensor([0.1, 1.0, 50.0]), "epsilon", 100.0), torch.ones(3))
