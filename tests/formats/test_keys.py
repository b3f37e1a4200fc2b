"""The key tables, against the full-size Stable Diffusion 1.5 built by diffusers without memory (meta device)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from extensions_lib.errors import KeyMismatchError
from extensions_lib.formats.keys import (
    SD1_LAYOUT,
    SDXL_LAYOUT,
    UNetLayout,
    lora_layer_name,
    text_from_ldm,
    text_to_ldm,
    unet_from_ldm,
    unet_to_ldm,
    vae_from_ldm,
    vae_tensors_from_ldm,
    vae_tensors_to_ldm,
    vae_to_ldm,
)

UNET_PAIRS = [
    ("down_blocks.0.resnets.1.conv1.weight", "input_blocks.2.0.in_layers.2.weight"),
    ("down_blocks.0.resnets.1.conv2", "input_blocks.2.0.out_layers.3"),
    ("down_blocks.0.downsamplers.0.conv.bias", "input_blocks.3.0.op.bias"),
    ("down_blocks.2.resnets.0.conv_shortcut", "input_blocks.7.0.skip_connection"),
    ("down_blocks.3.resnets.1.norm2.weight", "input_blocks.11.0.out_layers.0.weight"),
    ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
    ("mid_block.attentions.0.norm.weight", "middle_block.1.norm.weight"),
    ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
    ("up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
    ("up_blocks.3.attentions.2.proj_out.bias", "output_blocks.11.1.proj_out.bias"),
    ("time_embedding.linear_2.bias", "time_embed.2.bias"),
    ("conv_in.weight", "input_blocks.0.0.weight"),
    ("conv_norm_out.weight", "out.0.weight"),
    ("conv_out.weight", "out.2.weight"),
]

# The worked examples of kohya's format for SDXL.
SDXL_LORA_NAMES = [
    (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    ),
    ("down_blocks.0.resnets.1.conv2", "lora_unet_input_blocks_2_0_out_layers_3"),
    ("up_blocks.0.upsamplers.0.conv", "lora_unet_output_blocks_2_2_conv"),
    ("time_embedding.linear_1", "lora_unet_time_embed_0"),
    ("add_embedding.linear_1", "lora_unet_label_emb_0_0"),
]


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(cross_attention_dim=768)


@pytest.fixture(scope="module")
def vae() -> torch.nn.Module:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )


@pytest.fixture(scope="module")
def text_encoder() -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        return CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=12))


@pytest.mark.parametrize(("ours", "theirs"), UNET_PAIRS)
def test_unet_names_both_ways(ours: str, theirs: str) -> None:
    assert unet_to_ldm(ours, SD1_LAYOUT) == theirs
    assert unet_from_ldm(theirs, SD1_LAYOUT) == ours


def test_every_unet_tensor_has_one_checkpoint_name(unet: torch.nn.Module) -> None:
    names = list(unet.state_dict())
    renamed = [unet_to_ldm(name, SD1_LAYOUT) for name in names]
    assert len(names) == len(set(renamed)) == 686
    assert [unet_from_ldm(name, SD1_LAYOUT) for name in renamed] == names
    assert {name.split(".")[0] for name in renamed} == {
        "input_blocks",
        "middle_block",
        "output_blocks",
        "time_embed",
        "out",
    }


def test_checkpoint_blocks_have_the_original_shapes(unet: torch.nn.Module) -> None:
    """Spot checks against the published SD 1.5 file, where a slip by one block changes a width."""
    shapes = {unet_to_ldm(name, SD1_LAYOUT): tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    assert shapes["input_blocks.4.0.in_layers.2.weight"] == (640, 320, 3, 3)
    assert shapes["input_blocks.4.0.skip_connection.weight"] == (640, 320, 1, 1)
    assert shapes["output_blocks.3.0.in_layers.2.weight"] == (1280, 2560, 3, 3)
    assert shapes["output_blocks.8.0.in_layers.2.weight"] == (640, 960, 3, 3)
    assert shapes["output_blocks.9.1.transformer_blocks.0.attn2.to_k.weight"] == (320, 768)


@pytest.mark.parametrize(
    "name",
    [
        "up_blocks.0.attentions.0.norm.weight",  # the coarsest block of SD 1 has none
        "down_blocks.3.downsamplers.0.conv.weight",
        "down_blocks.4.resnets.0.conv1.weight",
        "down_blocks.0.resnets.0.conv9.weight",
        "down_blocks.0.resnets.2.conv1.weight",
        "nonsense",
    ],
)
def test_unknown_unet_names_are_refused(name: str) -> None:
    with pytest.raises(KeyMismatchError, match=name.replace(".", r"\.")):
        unet_to_ldm(name, SD1_LAYOUT)


@pytest.mark.parametrize("name", ["output_blocks.2.2.conv.weight", "input_blocks.12.0.op.weight", "joint_blocks.0.x"])
def test_unknown_checkpoint_names_are_refused(name: str) -> None:
    with pytest.raises(KeyMismatchError, match="unknown"):
        unet_from_ldm(name, SD1_LAYOUT)


def test_a_layout_is_only_data() -> None:
    """One layer per block, two levels: the upsampler and the blocks move as the numbering rule says."""
    small = UNetLayout(layers_per_block=1, up_attention=(True, False))
    assert unet_to_ldm("down_blocks.1.resnets.0.conv1.weight", small) == "input_blocks.3.0.in_layers.2.weight"
    assert unet_to_ldm("up_blocks.0.upsamplers.0.conv.weight", small) == "output_blocks.1.2.conv.weight"
    assert unet_from_ldm("output_blocks.3.0.emb_layers.1.bias", small) == "up_blocks.1.resnets.1.time_emb_proj.bias"


def test_every_vae_tensor_has_one_checkpoint_name(vae: torch.nn.Module) -> None:
    names = list(vae.state_dict())
    renamed = [vae_to_ldm(name) for name in names]
    assert len(names) == len(set(renamed)) == 248
    assert [vae_from_ldm(name) for name in renamed] == names
    assert "decoder.up.0.block.0.nin_shortcut.weight" in renamed
    assert "decoder.up.3.upsample.conv.weight" in renamed
    assert "encoder.down.0.downsample.conv.weight" in renamed


def test_only_the_eight_vae_attention_matrices_change_rank(vae: torch.nn.Module) -> None:
    tensors = vae.state_dict()
    renamed = vae_tensors_to_ldm(tensors)
    raised = {name for name, tensor in renamed.items() if tensor.ndim != tensors[vae_from_ldm(name)].ndim}
    parts = ("q", "k", "v", "proj_out")
    assert raised == {f"{side}.mid.attn_1.{part}.weight" for side in ("encoder", "decoder") for part in parts}
    back = vae_tensors_from_ldm(renamed)
    assert {name: tensor.shape for name, tensor in back.items()} == {n: t.shape for n, t in tensors.items()}


def test_vae_values_survive_both_ways() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    tensors = {"encoder.mid_block.attentions.0.to_out.0.weight": matrix}
    renamed = vae_tensors_to_ldm(tensors)
    assert renamed["encoder.mid.attn_1.proj_out.weight"].shape == (2, 3, 1, 1)
    (back,) = vae_tensors_from_ldm(renamed).values()
    assert torch.equal(back, matrix)


def test_unknown_vae_names_are_refused() -> None:
    with pytest.raises(KeyMismatchError, match="loss.logvar"):
        vae_from_ldm("loss.logvar")


def test_text_names(text_encoder: torch.nn.Module) -> None:
    names = [name for name in text_encoder.state_dict() if not name.endswith("position_ids")]
    assert len(names) == 196
    assert [text_to_ldm(name) for name in names] == names
    without_root = [name[len("text_model.") :] for name in names]  # files of 2022
    assert [text_from_ldm(name) for name in without_root] == names
    with pytest.raises(KeyMismatchError, match="text_projection"):
        text_to_ldm("text_projection.weight")


def kohya_unet_targets(unet: torch.nn.Module) -> Iterator[str]:
    """Every Linear and 1x1 convolution inside a Transformer2DModel: kohya's default."""
    for path, module in unet.named_modules():
        if type(module).__name__ == "Transformer2DModel":
            for name, leaf in module.named_modules():
                if isinstance(leaf, (torch.nn.Linear, torch.nn.Conv2d)):
                    yield f"{path}.{name}"


def test_the_192_default_unet_lora_names(unet: torch.nn.Module) -> None:
    names = [lora_layer_name(path, "unet", "sd1") for path in kohya_unet_targets(unet)]
    assert len(names) == len(set(names)) == 192
    assert all("." not in name and name.startswith("lora_unet_") for name in names)
    block = "lora_unet_down_blocks_1_attentions_0_"
    assert sorted(name[len(block) :] for name in names if name.startswith(block)) == sorted(
        ["proj_in", "proj_out"]
        + [f"transformer_blocks_0_attn{i}_to_{part}" for i in (1, 2) for part in ("q", "k", "v", "out_0")]
        + ["transformer_blocks_0_ff_net_0_proj", "transformer_blocks_0_ff_net_2"]
    )
    assert sum("mid_block" in name for name in names) == 12
    assert sum("up_blocks_0" in name for name in names) == 0


def test_the_72_text_encoder_lora_names(text_encoder: torch.nn.Module) -> None:
    paths = [name for name, module in text_encoder.named_modules() if isinstance(module, torch.nn.Linear)]
    names = [lora_layer_name(path, "text_encoder", "sd1") for path in paths]
    parts = [f"self_attn_{part}_proj" for part in ("q", "k", "v", "out")] + ["mlp_fc1", "mlp_fc2"]
    expected = {f"lora_te_text_model_encoder_layers_{layer}_{part}" for layer in range(12) for part in parts}
    assert len(names) == 72
    assert set(names) == expected


@pytest.mark.parametrize(("path", "name"), SDXL_LORA_NAMES)
def test_sdxl_lora_names_are_checkpoint_names(path: str, name: str) -> None:
    assert lora_layer_name(path, "unet", "sdxl") == name
    assert unet_from_ldm(unet_to_ldm(path, SDXL_LAYOUT), SDXL_LAYOUT) == path


def test_sdxl_text_encoders_and_wrong_pairs() -> None:
    path = "text_model.encoder.layers.3.mlp.fc1"
    assert lora_layer_name(path, "text_encoder", "sdxl") == "lora_te1_text_model_encoder_layers_3_mlp_fc1"
    assert lora_layer_name(path, "text_encoder_2", "sdxl") == "lora_te2_text_model_encoder_layers_3_mlp_fc1"
    with pytest.raises(ValueError, match="sd1/text_encoder_2; accepted"):
        lora_layer_name(path, "text_encoder_2", "sd1")
