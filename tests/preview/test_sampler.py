from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from extensions_lib.config.preview import SAMPLERS
from extensions_lib.errors import ConfigError, JobStopped, TrainingError
from extensions_lib.preview.sampler import sample_image, sample_images


def nothing() -> None:
    """No one asks this job for anything."""


REQUEST = {
    "prompt": "a red cube",
    "width_px": 32,
    "height_px": 16,
    "num_steps": 3,
    "guidance_scale": 5.0,
    "sampler": "euler_a",
    "boundary": nothing,
}


def draw(bundle, seed: int = 1, **changes) -> np.ndarray:
    return np.asarray(sample_image(bundle, **{**REQUEST, "seed": seed, **changes}))


def test_a_picture_has_the_asked_size_and_depends_on_seed_prompt_and_negative_prompt(bundle) -> None:
    picture = draw(bundle)
    assert picture.shape == (16, 32, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 0
    np.testing.assert_array_equal(picture, draw(bundle))
    for change in ({"seed": 2}, {"prompt": "a blue ball"}, {"negative_prompt": "blurry"}, {"guidance_scale": 2.0}):
        assert (picture != draw(bundle, **change)).any(), change


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_random_state_is_left_alone(bundle, sampler) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    draw(bundle, sampler=sampler)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])


@pytest.mark.parametrize("sampler", ["euler_a", "dpmpp_2m"])
def test_a_batch_draws_what_single_calls_draw(bundle, sampler) -> None:
    request = {key: value for key, value in REQUEST.items() if key != "sampler"}
    together = sample_images(bundle, **request, sampler=sampler, seeds=(5, 6, 7), max_batch=2)
    assert len(together) == 3
    for seed, picture in zip((5, 6, 7), together, strict=True):
        alone = draw(bundle, seed, sampler=sampler).astype(int)
        assert np.abs(np.asarray(picture).astype(int) - alone).max() <= 1


def test_no_seeds_no_pictures(bundle) -> None:
    assert sample_images(bundle, **REQUEST, seeds=()) == []


@pytest.mark.parametrize(("guidance_scale", "rows"), [(1.0, 1), (5.0, 2)])
def test_guidance_one_does_half_the_work(bundle, guidance_scale, rows) -> None:
    batches = []
    handle = bundle.unet.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    draw(bundle, guidance_scale=guidance_scale)
    handle.remove()
    assert batches == [rows] * 3


def decoded_latents(bundle, guidance_scale: float) -> torch.Tensor:
    """What a single step, linear in the model's answer, hands to the VAE."""
    seen = []
    handle = bundle.vae.post_quant_conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    draw(bundle, guidance_scale=guidance_scale, negative_prompt="blurry", num_steps=1, sampler="euler")
    handle.remove()
    return seen[0]


def test_guidance_goes_from_the_negative_prompt_through_the_prompt_and_beyond(bundle) -> None:
    negative, positive, beyond = (decoded_latents(bundle, scale) for scale in (0.0, 1.0, 3.0))
    assert (positive - negative).abs().max() > 0.01
    torch.testing.assert_close(beyond, negative + 3 * (positive - negative), rtol=1e-3, atol=1e-3)


def test_long_prompts_are_padded_to_the_same_number_of_chunks(bundle) -> None:
    lengths = []
    handle = bundle.unet.register_forward_pre_hook(lambda _, inputs: lengths.append(tuple(inputs[2].shape)))
    draw(bundle, prompt="red " * 80, negative_prompt="blurry", num_steps=1)
    draw(bundle, prompt="red", negative_prompt="blurry " * 200, num_steps=1)
    handle.remove()
    assert lengths == [(2, 2 * 77, 32), (2, 3 * 77, 32)]


def test_tokens_and_clip_skip_reach_the_text_encoder(bundle) -> None:
    ids = []
    handle = bundle.text_encoder.text_model.embeddings.register_forward_pre_hook(
        lambda _, args, kwargs: ids.append(kwargs["input_ids"]), with_kwargs=True
    )
    picture = draw(bundle, prompt="a zkw", tokens={"zkw": [11, 12]}, guidance_scale=1.0)
    handle.remove()
    assert ids[0][0, :4].tolist() == [49406, 320, 11, 12]
    assert (picture != draw(bundle, prompt="a zkw", tokens={"zkw": [11, 12]}, guidance_scale=1.0, clip_skip=2)).any()


class Dropping(nn.Module):
    """Stands for a LoRA's dropout: a module outside the networks."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)


def test_training_flags_and_gradients_are_as_before(bundle) -> None:
    adapter = Dropping()
    bundle.unet.train()
    bundle.unet.mid_block.eval()
    parts = (bundle.unet, bundle.vae, bundle.text_encoder, adapter)
    flags = [module.training for part in parts for module in part.modules()]
    assert any(flags)
    assert not all(flags)
    seen = []
    handle = bundle.unet.register_forward_pre_hook(
        lambda module, _: seen.append((module.training, adapter.dropout.training, torch.is_grad_enabled()))
    )
    draw(bundle, adapters=(adapter,))
    handle.remove()
    assert set(seen) == {(False, False, False)}
    assert [module.training for part in parts for module in part.modules()] == flags
    assert all(parameter.grad is None for parameter in bundle.unet.parameters())


def test_autocast_around_it_does_not_reach_in(bundle) -> None:
    picture = draw(bundle)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(draw(bundle), picture)


def test_a_stop_ends_it_at_the_next_step_and_restores_the_flags(bundle) -> None:
    steps = []

    def stop_at_second() -> None:
        steps.append(1)
        if len(steps) == 2:
            raise JobStopped("Stopped.")

    bundle.unet.train()
    with pytest.raises(JobStopped):
        draw(bundle, boundary=stop_at_second)
    assert len(steps) == 2
    assert all(module.training for module in bundle.unet.modules())


@pytest.mark.parametrize(("part", "name"), [("unet", "UNet"), ("vae", "VAE")])
def test_nan_is_an_error_and_not_a_black_picture(bundle, part, name) -> None:
    module = bundle.unet.conv_out if part == "unet" else bundle.vae.decoder.conv_out
    kept = module.bias.data.clone()
    module.bias.data[0] = float("nan")
    try:
        with pytest.raises(TrainingError) as caught:
            draw(bundle)
    finally:
        module.bias.data.copy_(kept)
    assert caught.value.message == (f"The preview cannot be drawn: the {name} (float32) answered with NaN or infinity.")


def test_all_wrong_numbers_are_named_together(bundle) -> None:
    with pytest.raises(ConfigError) as caught:
        draw(bundle, width_px=500, height_px=0, num_steps=0)
    assert [str(problem) for problem in caught.value.problems] == [
        "width_px: is 500; accepted are multiples of 8, the nearest: 496 and 504",
        "height_px: is 0; accepted are multiples of 8, the nearest: 8",
        "num_steps: is 0; accepted is 1 or more",
    ]


def test_a_size_that_does_not_halve_evenly_is_drawn(bundle) -> None:
    assert draw(bundle, width_px=24, height_px=40).shape == (40, 24, 3)


def test_parts_in_half_precision_draw_nearly_the_same(bundle) -> None:
    halved = copy.deepcopy(bundle)
    halved.to(unet=torch.bfloat16, vae=torch.bfloat16, text_encoder=torch.bfloat16)
    difference = draw(halved, sampler="dpmpp_2m").astype(int) - draw(bundle, sampler="dpmpp_2m")
    assert 0 < np.abs(difference).mean() < 3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_starts_from_the_seeds_own_noise(bundle, sampler) -> None:
    """At unit variance, drawn on the CPU as the WebUI's 'CPU' random source draws it."""
    seen = []
    handle = bundle.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[:2]))
    draw(bundle, seed=7, sampler=sampler, guidance_scale=1.0, num_steps=1)
    handle.remove()
    latents, timestep = seen[0]
    assert timestep == 999
    noise = torch.randn((4, 2, 4), generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(latents[0], noise, rtol=0.01, atol=0.01)
