"""A tiny Stable Diffusion 1 of random weights, made with the libraries' own classes, and files of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from extensions_lib.formats.checkpoint import write_checkpoint
from extensions_lib.formats.safetensors_io import TensorInfo, describe_tensor
from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.family import SD1
from extensions_lib.models.ldm import part_to_ldm
from extensions_lib.models.load import load_bundle
from extensions_lib.models.tokenizer import PromptTokenizer

YAML = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    scale_factor: 0.18215
    unet_config:
      params: {num_heads: 8, model_channels: 32}
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params: {version: models/Stable-diffusion/tiny-clip}
"""
CLIP_CONFIG = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4, "hidden_act": "quick_gelu"}


def fill(module: nn.Module, seed: int) -> nn.Module:
    """Give every weight of a module on meta small random values, without the global generator."""
    generator = torch.Generator().manual_seed(seed)
    module.to_empty(device="cpu")
    for parameter in module.parameters():
        parameter.data.normal_(0.0, 0.1, generator=generator)
    for name, buffer in module.named_buffers():
        assert name.endswith("position_ids")
        buffer.copy_(torch.arange(77)[None])
    return module.eval().requires_grad_(False)


@dataclass(frozen=True)
class TinyModel:
    """The networks, and the same as checkpoint tensors."""

    parts: dict[str, nn.Module]
    tensors: dict[str, Tensor]

    @property
    def header(self) -> dict[str, TensorInfo]:
        return {name: describe_tensor(tensor) for name, tensor in self.tensors.items()}


def make_parts() -> dict[str, nn.Module]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(32, 64, 64, 64), cross_attention_dim=64, attention_head_dim=8, sample_size=8
        )
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=64, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4)
        )
    return {"unet": fill(unet, 1), "vae": fill(vae, 2), "text_encoder": fill(text, 3)}


@pytest.fixture(scope="session")
def tiny() -> TinyModel:
    parts = make_parts()
    tensors: dict[str, Tensor] = {}
    for part, module in parts.items():
        tensors |= part_to_ldm(part, module, SD1)
    return TinyModel(parts, tensors)


@pytest.fixture(scope="session")
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer.from_open_clip()


def write_model(folder: Path, tensors: dict[str, Tensor], yaml: str = YAML, name: str = "tiny.safetensors") -> Path:
    """A checkpoint with its yaml and the CLIP folder the yaml names, as they lie in the WebUI's models folder."""
    path = folder / name
    if path.suffix == ".safetensors":
        write_checkpoint(path, tensors, {})
    else:
        torch.save({"state_dict": tensors, "epoch": 3}, path)
    path.with_suffix(".yaml").write_text(yaml, encoding="utf-8")
    (folder / "tiny-clip").mkdir(exist_ok=True)
    (folder / "tiny-clip" / "config.json").write_text(json.dumps(CLIP_CONFIG), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_path(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a float32 file, not to be changed."""
    return write_model(tmp_path_factory.mktemp("tiny"), tiny.tensors)


@pytest.fixture
def tiny_bundle(tiny_path: Path, shared_tokenizer: None) -> ModelBundle:
    """The tiny model, loaded for one test."""
    return load_bundle(tiny_path)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(tensors, ...)` puts a model into a fresh folder."""
    return lambda tensors, **options: write_model(tmp_path, tensors, **options)


@pytest.fixture
def shared_tokenizer(tokenizer: PromptTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models loaded in a test share one tokenizer: it takes longer to build than the tiny networks."""
    monkeypatch.setattr(PromptTokenizer, "from_open_clip", lambda: tokenizer)
