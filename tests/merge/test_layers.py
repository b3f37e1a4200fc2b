"""Names of layers in LoRA files: each leads to its module, its tensor in a checkpoint, and back, in every family."""

from __future__ import annotations

import pytest
from torch import nn

from extensions_lib.errors import KeyMismatchError
from extensions_lib.formats.keys import (
    SD1_LAYOUT,
    SDXL_LAYOUT,
    canonical_layer,
    kernel_size,
    layer_module,
    lora_layer_name,
    unet_to_ldm,
)
from extensions_lib.merge.layers import layer_places, tensor_of_layer
from extensions_lib.merge.models import read_model
from extensions_lib.models.load import load_bundle

from ..model_families import FamilyModels

FAMILIES = ("sd1", "sd2", "sdxl")
LAYERS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)


def other_names(path: str, part: str, family: str) -> list[str]:
    """What other programs call a layer."""
    flat = path.replace(".", "_")
    if part == "unet":
        ldm = unet_to_ldm(path, SDXL_LAYOUT if family == "sdxl" else SD1_LAYOUT)
        return [f"lora_unet_{flat}", f"lora_unet_{ldm.replace('.', '_')}"]
    return [f"lora_te2_{flat}"] if part == "text_encoder_2" else [f"lora_te_{flat}", f"lora_te1_{flat}"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_the_networks_has_a_place(family: str, family_models: FamilyModels) -> None:
    bundle = load_bundle(family_models[family])
    places = layer_places(read_model(family_models[family]))
    for part in ("unet", *bundle.text_encoders):
        for path, module in bundle.parts[part].named_modules():
            if not isinstance(module, LAYERS):
                continue
            name = lora_layer_name(path, part, family)
            place = places[name]
            assert place.shape == tuple(module.weight.shape), path
            assert (place.bias is None) == (module.bias is None), path
            assert place.has_factors == isinstance(module, (nn.Linear, nn.Conv2d)) or "projection" in path, path
            if "projection" in path:  # the WebUI knows no name for it
                continue
            for other in (name, *other_names(path, part, family)):
                assert layer_module(other, family) == (part, path)
                assert canonical_layer(other, family) == name
                assert kernel_size(other) == getattr(module, "kernel_size", (1,))[0], other
            assert tensor_of_layer(name, family) == place.weight


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "sd1"),
        ("lora_te_text_model_embeddings_token_embedding", "sd1"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc3", "sd2"),
        ("lora_unet_down_blocks_3_attentions_0_proj", "sd1"),
        ("lora_unet_input_blocks_9_1_proj_in", "sdxl"),
        ("lora_unet_input_blocks_1_0_in_layers_1", "sd1"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "sdxl"),
        ("oft_unet_input_blocks_4_1_proj_in", "sdxl"),
    ],
)
def test_names_of_no_layer(name: str, family: str) -> None:
    with pytest.raises(KeyMismatchError):
        canonical_layer(name, family)


def test_the_last_norm_layer_has_the_name_that_the_webui_finds() -> None:
    assert lora_layer_name("conv_norm_out", "unet", "sd1") == "lora_unet_out_0"
    assert canonical_layer("lora_unet_conv_norm_out", "sdxl") == "lora_unet_out_0"
