"""Names of tensors in LoRA-family files as each program writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from extensions_lib.errors import FormatError
from extensions_lib.formats.recognise import recognise
from extensions_lib.formats.safetensors_io import TensorInfo
from extensions_lib.formats.suffixes import lora_algorithms, tensors_by_layer

PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
UNET = "lora_unet_" + PATH.replace(".", "_")
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
TE = TEXT.replace(".", "_")


@pytest.mark.parametrize(
    ("prefix", "layer"),
    [
        (UNET, UNET),
        (f"unet.{PATH}", UNET),
        (f"base_model.model.unet.{PATH}", UNET),
        (f"base_model.model.{PATH}", UNET),
        (PATH, UNET),
        (f"lora_unet.{PATH}", UNET),
        (f"lycoris_{PATH.replace('.', '_')}", UNET),
        ("unet.input_blocks.1.1.proj_in", "lora_unet_input_blocks_1_1_proj_in"),
        (f"text_encoder.{TEXT}", f"lora_te_{TE}"),
        (f"base_model.model.{TEXT}", f"lora_te_{TE}"),
        (f"clip_l.{TEXT}", f"lora_te_{TE}"),
        (f"lora_te1.{TEXT}", f"lora_te1_{TE}"),
        (f"lycoris_{TE}", f"lora_te_{TE}"),
        (f"text_encoder_2.{TEXT}", f"lora_te2_{TE}"),
        (f"clip_g.{TEXT}", f"lora_te2_{TE}"),
    ],
)
@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("lora_down.weight", "lora_up.weight"),
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.default.weight", "lora_B.my_adapter.weight"),
        ("lora.down.weight", "lora.up.weight"),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    ],
)
def test_layers_and_factors(prefix: str, layer: str, down: str, up: str) -> None:
    names = (f"{prefix}.{down}", f"{prefix}.{up}", f"{prefix}.alpha")
    found = tensors_by_layer(Path("x"), {name: torch.ones(()) for name in names})
    assert {name: set(parts) for name, parts in found.items()} == {
        layer: {"lora_down.weight", "lora_up.weight", "alpha"}
    }
    assert lora_algorithms(names) == ["LoRA"]


def test_the_oldest_names_of_diffusers() -> None:
    names = [
        f"down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.{each}_lora.{side}.weight"
        for each in ("to_k", "to_out")
        for side in ("down", "up")
    ]
    found = tensors_by_layer(Path("x"), {name: torch.ones(1) for name in names})
    assert list(found) == [UNET, UNET.replace("to_k", "to_out_0")]
    assert all(set(parts) == {"lora_down.weight", "lora_up.weight"} for parts in found.values())
    header = {name: TensorInfo("F16", (4, 1024)) for name in names}
    assert (recognise(header).kind, recognise(header).family) == ("lora", "sd2")


@pytest.mark.parametrize("suffix", ["lora_magnitude_vector", "lora_magnitude_vector.default.weight"])
def test_pefts_lengths_are_those_of_outputs(suffix: str) -> None:
    """peft writes (O,), for a convolution (1, O, 1, 1), which is not the WebUI's (1, I, 1, 1)."""
    tensors = {
        "unet.a.lora_A.weight": torch.ones(2, 3),
        f"unet.a.{suffix}": torch.ones(5),
        "unet.b.lora_A.weight": torch.ones(2, 3, 3, 3),
        f"unet.b.{suffix}": torch.ones(1, 5, 1, 1),
    }
    found = tensors_by_layer(Path("x"), tensors)
    assert found["lora_unet_a"]["dora_scale"].shape == (5, 1)
    assert found["lora_unet_b"]["dora_scale"].shape == (5, 1, 1, 1)
    assert "DoRA" in lora_algorithms(tensors)


def test_the_family_is_not_read_from_lengths() -> None:
    header = {
        f"unet.{PATH}.lora_magnitude_vector": TensorInfo("F16", (1280,)),
        f"unet.{PATH}.lora_A.weight": TensorInfo("F16", (4, 768)),
    }
    assert recognise(header).family == "sd1"
    text = {f"text_encoder.{TEXT}.lora_A.weight": TensorInfo("F16", (4, 1024))}
    assert recognise(text).family == "sd2"
    assert recognise({f"clip_g.{TEXT}.lora_A.weight": TensorInfo("F16", (4, 1280))}).family == "sdxl"


def test_other_suffixes() -> None:
    with pytest.raises(FormatError, match="'lora_unet_x.oft_blocks', which no LoRA has"):
        tensors_by_layer(Path("x"), {"lora_unet_x.oft_blocks": torch.ones(1)})
