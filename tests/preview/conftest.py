from __future__ import annotations

from pathlib import Path

import pytest
import torch

from extensions_lib.models.bundle import ModelBundle, ModelSource
from extensions_lib.models.family import SD1
from extensions_lib.models.tokenizer import PromptTokenizer


@pytest.fixture(scope="session")
def shared_bundle() -> ModelBundle:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = PromptTokenizer.from_open_clip()
    text_config = CLIPTextConfig(
        vocab_size=49408, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=32, eos_token_id=49407, bos_token_id=49406,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 32, 32), layers_per_block=1, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        text_encoder = CLIPTextModel(text_config)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas_cumprod = (1 - betas).cumprod(0).to(torch.float32)
    source = ModelSource(path=Path("tiny.safetensors"), name="tiny")
    bundle = ModelBundle(SD1, unet, vae, {"text_encoder": text_encoder}, tokenizer, alphas_cumprod, source)
    bundle.freeze()
    return bundle


@pytest.fixture
def bundle(shared_bundle: ModelBundle) -> ModelBundle:
    """The tiny model in evaluation mode, whatever the test before did to the flags."""
    shared_bundle.freeze()
    return shared_bundle
