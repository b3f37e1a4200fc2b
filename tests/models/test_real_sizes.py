"""SD 2.1 and SDXL at their published sizes, without a single weight: files of nothing but a header and a hole."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from extensions_lib.formats.keys import SDXL_LAYOUT, lora_layer_name
from extensions_lib.models.ldm import POSITION_IDS, bundle_to_ldm, unet_layout
from extensions_lib.models.load import outline_bundle
from extensions_lib.practice.real_sizes import REAL_SIZES, real_networks, real_tensors

pytestmark = pytest.mark.usefixtures("shared_tokenizer")
UNET = "model.diffusion_model."
BIG = "conditioner.embedders.1.model."
NUM_TENSORS = {"sd1": 1130 + 1, "sd2": 686 + 248 + 294, "sdxl": 1680 + 248 + 196 + 390 + 1}  # formats.md 4.1
NAMES = {torch.float16: "F16", torch.int64: "I64"}
PUBLISHED = {
    "sd2": {
        UNET + "input_blocks.1.1.proj_in.weight": (320, 320),
        UNET + "output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        "cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight": (3072, 1024),
        "cond_stage_model.model.positional_embedding": (77, 1024),
        "cond_stage_model.model.text_projection": (1024, 1024),
    },
    "sdxl": {
        UNET + "label_emb.0.0.weight": (1280, 2816),
        UNET + "input_blocks.8.1.transformer_blocks.9.attn2.to_v.weight": (1280, 2048),
        UNET + "output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        UNET + "output_blocks.5.2.conv.weight": (640, 640, 3, 3),
        BIG + "transformer.resblocks.31.mlp.c_fc.weight": (5120, 1280),
        BIG + "text_projection": (1280, 1280),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
    },
}


def write_hollow(path: Path, tensors: dict[str, Tensor]) -> Path:
    """A .safetensors file with this header, whose data takes no room on the disk: the file has a hole."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return path


@pytest.mark.parametrize("family", REAL_SIZES)
def test_real_sizes_are_found_and_written_again(family: str, tmp_path: Path) -> None:
    tensors = real_tensors(family)
    assert len(tensors) == NUM_TENSORS[family]
    published = PUBLISHED.get(family, {})
    assert {name: tuple(tensors[name].shape) for name in published} == published
    outline = outline_bundle(write_hollow(tmp_path / "real.safetensors", tensors))
    assert outline.family.name == family
    written = {name: tuple(tensor.shape) for name, tensor in bundle_to_ldm(outline).items()}
    passengers = {name for name in tensors if name not in written}
    assert all(written[name] == tuple(tensors[name].shape) for name in written)
    assert written.keys() | passengers == tensors.keys()
    last = ("resblocks.23.", "text_projection") if family == "sd2" else ()  # SD 2's last layer is not loaded
    assert all(name.endswith(("logit_scale", POSITION_IDS)) or any(map(name.__contains__, last)) for name in passengers)


@pytest.mark.parametrize("family", REAL_SIZES)
def test_the_settings_are_the_published_ones(family: str, tmp_path: Path) -> None:
    """Heads and activations show in no shape, and are what the families have."""
    outline = outline_bundle(write_hollow(tmp_path / "real.safetensors", real_tensors(family)))
    for part, expected in real_networks(family).items():
        found = outline.parts[part].config
        for name, value in REAL_SIZES[family][part].items():
            if name == "architectures" or (family, name) == ("sd2", "num_hidden_layers"):
                continue
            actual = getattr(found, name)
            assert (list(actual) if isinstance(actual, tuple) else actual) == value, (part, name)
        if part != "text_encoder" or family != "sd2":
            assert sum(p.numel() for p in outline.parts[part].parameters()) == sum(
                p.numel() for p in expected.parameters()
            )


def test_parameters_are_as_many_as_published() -> None:
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in real_networks("sdxl").items()}
    assert counts == {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    }
    assert sum(p.numel() for p in real_networks("sd2")["unet"].parameters()) == 865_910_724


def test_every_layer_of_sdxl_has_a_name_in_lora_files() -> None:
    unet = real_networks("sdxl")["unet"]
    assert unet_layout(unet) == SDXL_LAYOUT
    layers = [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    names = {lora_layer_name(layer, "unet", "sdxl") for layer in layers}
    assert len(names) == len(layers)
    targets = [name for name in layers if ".attentions." in name]
    assert len(targets) == 722  # formats.md 2.2
