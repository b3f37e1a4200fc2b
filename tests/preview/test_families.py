"""Previews of every family against diffusers' own pipelines, from the same noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.load import load_bundle
from extensions_lib.preview.sampler import sample_image

from ..family_pipelines import make_pipeline
from ..model_families import FamilyModels

WIDTH, HEIGHT, STEPS, GUIDANCE = 64, 32, 4, 5.0


def preview(bundle: ModelBundle, negative_prompt: str = "", seed: int = 3) -> Image.Image:
    return sample_image(
        bundle,
        prompt="a red cat",
        negative_prompt=negative_prompt,
        seed=seed,
        width_px=WIDTH,
        height_px=HEIGHT,
        num_steps=STEPS,
        guidance_scale=GUIDANCE,
        sampler="euler",
        boundary=lambda: None,
    )


def largest_difference(one: Image.Image, two: Image.Image) -> int:
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(two, np.int16)).max())


@pytest.mark.parametrize("negative", ["", "a blue dog"])
@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl", "sdxl-v-ztsnr"])
def test_a_preview_is_what_diffusers_draws(
    family_models: FamilyModels, tmp_path: Path, name: str, negative: str
) -> None:
    """Sizes, pooled states, prediction type, schedule, latent scale, and what an empty negative prompt is."""
    bundle = load_bundle(family_models[name])
    noise = torch.randn((4, HEIGHT // 8, WIDTH // 8), generator=torch.Generator().manual_seed(3))[None]
    expected = make_pipeline(bundle, tmp_path)(
        "a red cat",
        negative_prompt=None if bundle.family.name == "sdxl" and not negative else negative,
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=noise,
    ).images[0]
    found = preview(bundle, negative)
    assert np.asarray(found).std() > 5  # not one flat colour
    assert largest_difference(found, expected) <= 1


@pytest.mark.parametrize("name", ["sd1-inpaint", "sd2-inpaint", "sdxl-inpaint"])
def test_an_inpainting_model_is_shown_a_masked_out_picture(family_models: FamilyModels, name: str) -> None:
    bundle = load_bundle(family_models[name])
    seen: list[torch.Tensor] = []
    handle = bundle.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        picture = preview(bundle)
    finally:
        handle.remove()
    assert np.asarray(picture).std() > 5
    assert {tuple(inputs.shape) for inputs in seen} == {(2, 9, HEIGHT // 8, WIDTH // 8)}
    assert all(torch.equal(inputs[:, 4], torch.ones(2, HEIGHT // 8, WIDTH // 8)) for inputs in seen)
    assert list(bundle.masked_out) == [(HEIGHT // 8, WIDTH // 8)]


def test_zero_terminal_snr_starts_from_pure_noise(family_models: FamilyModels) -> None:
    """A network that knows v for one picture leads back to it from the last level, which is pure noise.

    What is left is the first level's noise, a deviation of 0.03, which DDIM does not take away.
    """
    bundle = load_bundle(family_models["sd1-v-ztsnr"])
    picture = torch.linspace(-1, 1, 4 * 4 * 8).reshape(1, 4, 4, 8)

    class KnowsThePicture(torch.nn.Module):
        dtype, device, config = torch.float32, torch.device("cpu"), bundle.unet.config

        def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, *args: object, **options: object) -> tuple:
            alpha = bundle.alphas_cumprod[int(timestep.round())]
            noise = (noisy - alpha.sqrt() * picture) / (1 - alpha).sqrt()
            return (alpha.sqrt() * noise - (1 - alpha).sqrt() * picture,)

    latents: list[torch.Tensor] = []
    bundle.unet = KnowsThePicture()
    handle = bundle.vae.post_quant_conv.register_forward_pre_hook(lambda module, inputs: latents.append(inputs[0]))
    try:
        for sampler in ("ddim", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_karras"):
            sample_image(
                bundle, prompt="", seed=5, width_px=64, height_px=32, num_steps=20, guidance_scale=1,
                sampler=sampler, boundary=lambda: None,
            )  # fmt: skip
            found = latents.pop() * bundle.family.latent_scale
            torch.testing.assert_close(
                found, picture, rtol=0, atol=0.1, msg=lambda text, name=sampler: f"{name}: {text}"
            )
    finally:
        handle.remove()
