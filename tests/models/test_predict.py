from __future__ import annotations

from pathlib import Path

import pytest
import torch

from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.load import load_bundle
from extensions_lib.models.predict import masked_out_latents, predict
from extensions_lib.models.text import Conditioning

from ..family_pipelines import make_pipeline
from ..model_families import FamilyModels
from .conftest import TinyModel

SIZES = torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)
LATENTS = torch.linspace(-1, 1, 2 * 4 * 8 * 8).reshape(2, 4, 8, 8)
STATES = Conditioning(torch.linspace(-1, 1, 2 * 77 * 64).reshape(2, 77, 64))


@torch.no_grad()
def test_the_answer_is_the_unets(tiny_bundle: ModelBundle, tiny: TinyModel) -> None:
    times = torch.tensor([3, 900])
    expected = tiny.parts["unet"](LATENTS, times, STATES.hidden_states).sample
    assert torch.equal(predict(tiny_bundle, LATENTS, times, STATES, SIZES), expected)


@torch.no_grad()
def test_the_unet_gets_its_own_dtype(tiny_bundle: ModelBundle) -> None:
    seen: list[torch.dtype] = []
    tiny_bundle.to(unet=torch.bfloat16)
    handle = tiny_bundle.unet.register_forward_pre_hook(
        lambda module, inputs: seen.extend((inputs[0].dtype, inputs[2].dtype))
    )
    try:
        answer = predict(tiny_bundle, LATENTS, torch.tensor(500), STATES, SIZES)
    finally:
        handle.remove()
    assert seen == [torch.bfloat16] * 2
    assert answer.dtype == torch.bfloat16


def told(bundle: ModelBundle) -> Conditioning:
    """Texts for two pictures, as wide as the family's."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(2, 77, bundle.family.text_width, generator=generator)
    return Conditioning(states, torch.randn(2, 96, generator=generator) if bundle.family.name == "sdxl" else None)


@torch.no_grad()
@pytest.mark.usefixtures("shared_tokenizer")
def test_sdxl_is_told_sizes_as_diffusers_tells_it(family_models: FamilyModels, tmp_path: Path) -> None:
    bundle = load_bundle(family_models["sdxl"])
    conditioning, times = told(bundle), torch.tensor([3, 900])
    pipeline = make_pipeline(bundle, tmp_path)
    time_ids = pipeline._get_add_time_ids(
        (2000, 1000), (96, 7), (1344, 768), torch.float32, text_encoder_projection_dim=96
    )
    added = {"text_embeds": conditioning.pooled, "time_ids": time_ids.expand(2, -1)}
    expected = bundle.unet(LATENTS, times, conditioning.hidden_states, added_cond_kwargs=added).sample
    sizes = torch.tensor([[2000, 1000, 96, 7, 1344, 768]] * 2)
    assert torch.equal(predict(bundle, LATENTS, times, conditioning, sizes), expected)
    turned = torch.tensor([[1000, 2000, 7, 96, 768, 1344]] * 2)
    assert not torch.allclose(predict(bundle, LATENTS, times, conditioning, turned), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.usefixtures("shared_tokenizer")
def test_sizes_are_not_rounded_with_the_unets_numbers(family_models: FamilyModels) -> None:
    bundle = load_bundle(family_models["sdxl"])
    bundle.to(unet=torch.bfloat16)
    seen: list[torch.Tensor] = []
    handle = bundle.unet.add_time_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        predict(bundle, LATENTS, torch.tensor(500), told(bundle), torch.tensor([[1017, 1019, 1, 3, 1016, 1016]] * 2))
    finally:
        handle.remove()
    assert seen[0].tolist() == [1017, 1019, 1, 3, 1016, 1016] * 2


@torch.no_grad()
@pytest.mark.usefixtures("shared_tokenizer")
@pytest.mark.parametrize("name", ["sd1-inpaint", "sdxl-inpaint"])
def test_an_inpainting_unet_sees_a_mask_of_ones_and_grey(family_models: FamilyModels, name: str) -> None:
    bundle = load_bundle(family_models[name])
    grey = torch.full((1, 3, 64, 64), 127.5) / 127.5 - 1
    latents = bundle.vae.encode(grey).latent_dist.mean * bundle.family.latent_scale
    further = masked_out_latents(bundle, 8, 8)
    assert torch.equal(further, torch.cat([torch.ones(1, 1, 8, 8), latents], dim=1))
    assert masked_out_latents(bundle, 8, 8) is further  # made once
    conditioning, times = told(bundle), torch.tensor([3, 900])
    added = {"text_embeds": conditioning.pooled, "time_ids": SIZES.float()}
    inputs = torch.cat([LATENTS, further.expand(2, -1, -1, -1)], dim=1)
    expected = bundle.unet(inputs, times, conditioning.hidden_states, added_cond_kwargs=added).sample
    assert torch.equal(predict(bundle, LATENTS, times, conditioning, SIZES), expected)
