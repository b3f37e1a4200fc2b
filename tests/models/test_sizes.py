from __future__ import annotations

from pathlib import Path

import pytest
import torch

from extensions_lib.errors import KeyMismatchError, ModelError
from extensions_lib.models.build import build_module
from extensions_lib.models.configs import base_config
from extensions_lib.models.family import SD1, SD2
from extensions_lib.models.ldm import part_to_ldm
from extensions_lib.models.sibling import SiblingFacts
from extensions_lib.models.sizes import clip_config, unet_config, vae_config

from .conftest import TinyModel

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
NUM_TENSORS = {"unet": 686, "vae": 248, "text_encoder": 196}


def shapes(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): tuple(t.shape) for name, t in tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def real() -> dict[str, torch.Tensor]:
    """All tensors of a Stable Diffusion 1.5 checkpoint, on meta."""
    tensors: dict[str, torch.Tensor] = {}
    for part, expected in NUM_TENSORS.items():
        found = part_to_ldm(part, build_module(part, base_config(part)), SD1)
        assert len(found) == expected  # formats.md 4.1
        tensors |= found
    return tensors


def test_sd15_has_the_published_names_and_shapes(real: dict[str, torch.Tensor]) -> None:
    published = {
        UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
        UNET + "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        UNET + "middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
        UNET + "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        UNET + "output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        VAE + "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        VAE + "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        TEXT + "text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
    }
    assert {name: tuple(real[name].shape) for name in published} == published


def test_sd15_is_recognised_from_its_shapes(real: dict[str, torch.Tensor]) -> None:
    facts = SiblingFacts.of(SD1)
    assert unet_config(shapes(real, UNET), facts) == base_config("unet")
    assert vae_config(shapes(real, VAE), 0.18215) == base_config("vae")
    assert clip_config(shapes(real, TEXT), facts, Path("x.safetensors")) == base_config("text_encoder")


def test_other_sizes_are_recognised(tiny: TinyModel) -> None:
    unet = unet_config(shapes(tiny.tensors, UNET), SiblingFacts.of(SD1))
    for name, value in unet.items():
        actual = tiny.parts["unet"].config[name]
        assert (list(actual) if isinstance(actual, tuple) else actual) == (value if name != "sample_size" else 8), name
    vae = vae_config(shapes(tiny.tensors, VAE), 0.5)
    assert vae["block_out_channels"] == [32, 32, 64, 64] and vae["scaling_factor"] == 0.5


def test_heads_of_given_width(real: dict[str, torch.Tensor]) -> None:
    facts = SiblingFacts.of(SD2)
    config = unet_config(shapes(real, UNET), facts)
    assert config["attention_head_dim"] == [5, 10, 20, 20]
    unet = build_module("unet", config)
    assert unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1.heads == 10


def test_num_heads_is_the_number_of_heads(real: dict[str, torch.Tensor]) -> None:
    unet = build_module("unet", unet_config(shapes(real, UNET), SiblingFacts.of(SD1)))
    for block in (unet.down_blocks[0], unet.mid_block, unet.up_blocks[3]):
        assert block.attentions[0].transformer_blocks[0].attn2.heads == 8


@pytest.mark.parametrize("facts", [SiblingFacts(7, None, 0.18215), SiblingFacts(8, 4096, 0.18215)])
def test_impossible_heads_are_refused(real: dict[str, torch.Tensor], facts: SiblingFacts) -> None:
    with pytest.raises(ModelError, match=r"\[320, 640, 1280, 1280\] cannot be divided into"):
        unet_config(shapes(real, UNET), facts)


def test_incomplete_or_irregular_unets_are_refused(tiny: TinyModel) -> None:
    found = shapes(tiny.tensors, UNET)
    with pytest.raises(KeyMismatchError, match="no input blocks"):
        unet_config({"input_blocks.0.0.weight": (32, 4, 3, 3)}, SiblingFacts.of(SD1))
    with pytest.raises(KeyMismatchError, match="The tensor out.2.weight is missing"):
        unet_config({name: shape for name, shape in found.items() if name != "out.2.weight"}, SiblingFacts.of(SD1))
    del found["input_blocks.3.0.op.weight"]
    found["input_blocks.3.0.out_layers.3.weight"] = (32, 32, 3, 3)
    with pytest.raises(KeyMismatchError, match=r"layers; all must have as many"):
        unet_config(found, SiblingFacts.of(SD1))


def test_an_odd_text_encoder_needs_its_folder(tiny: TinyModel, tmp_path: Path) -> None:
    facts = SiblingFacts(8, None, 0.18215, clip_version="models/Stable-diffusion/tiny-clip")
    with pytest.raises(ModelError, match=r"64 wide, which is not CLIP-L.*'models/Stable-diffusion/tiny-clip'"):
        clip_config(shapes(tiny.tensors, TEXT), facts, tmp_path / "model.safetensors")
    (tmp_path / "tiny-clip").mkdir()
    (tmp_path / "tiny-clip" / "config.json").write_text('{"text_config": {"num_attention_heads": 4, "hidden_size": 9}}')
    config = clip_config(shapes(tiny.tensors, TEXT), facts, tmp_path / "model.safetensors")
    assert (config["num_attention_heads"], config["hidden_size"], config["num_hidden_layers"]) == (4, 64, 4)
    assert (config["intermediate_size"], config["hidden_act"]) == (256, "quick_gelu")
