"""What a file is, for every kind a WebUI folder may hold, and the independent check of a written LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from extensions_lib.errors import FormatError, ModelError
from extensions_lib.formats.inspect import describe_file, verify_lora
from extensions_lib.formats.network import network_tensors
from extensions_lib.formats.recognise import recognise
from extensions_lib.formats.safetensors_io import TensorInfo, data_hash, write_atomic

UNET = "model.diffusion_model."
ATTENTION = UNET + "input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"
VAE = {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}
CLIP = {"cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,)}
OPEN_CLIP = {"cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": (3072, 1024)}


def unet(width: int, channels: int = 4, block: int = 1) -> dict[str, tuple[int, ...]]:
    return {UNET + "input_blocks.0.0.weight": (320, channels, 3, 3), ATTENTION.format(block): (320, width)}


SDXL_TEXT = {
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
    "conditioner.embedders.1.model.ln_final.weight": (1280,),
}
LORA_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
LORA_Q_LDM = "lora_unet_input_blocks_4_1_transformer_blocks_{}_attn1_to_q"
TE_Q = "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight"

# What it is -> names and shapes, as in published files; then kind, family, variant.
FILES = {
    "sd1": ({**unet(768), **VAE, **CLIP}, "checkpoint", "sd1", ""),
    "sd1 narrow": ({**unet(64), **VAE, **CLIP}, "checkpoint", "sd1", ""),
    "sd1 inpainting": ({**unet(768, 9), **VAE, **CLIP}, "checkpoint", "sd1", "inpainting"),
    "sd1 inpainting, sorted": ({**CLIP, **VAE, **unet(768, 9)}, "checkpoint", "sd1", "inpainting"),
    "sd1 ip2p": ({**unet(768, 8), **VAE, **CLIP}, "checkpoint", "sd1", "instruct-pix2pix"),
    "sd2": ({**unet(1024), **VAE, **OPEN_CLIP}, "checkpoint", "sd2", ""),
    "sd2 depth": ({**unet(1024, 5), **OPEN_CLIP}, "checkpoint", "sd2", "depth"),
    "sd2 turbo": (
        {**unet(1024), "conditioner.embedders.0.model.ln_final.weight": (1024,)},
        "checkpoint",
        "sd2",
        "",
    ),
    "sdxl": ({**unet(2048, block=4), **VAE, **SDXL_TEXT}, "checkpoint", "sdxl", ""),
    "sdxl v": (
        {**unet(2048, block=4), **VAE, **SDXL_TEXT, "v_pred": (0,), "ztsnr": (0,)},
        "checkpoint",
        "sdxl",
        "v_pred marker, ztsnr marker",
    ),
    "refiner": (
        {**unet(1280, block=4), "conditioner.embedders.0.model.ln_final.weight": (1280,)},
        "checkpoint",
        "sdxl-refiner",
        "",
    ),
    "sd3": (
        {
            UNET + "x_embedder.proj.weight": (1536, 16, 2, 2),
            UNET + "joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536),
            "first_stage_model.decoder.conv_in.weight": (512, 16, 3, 3),
        },
        "checkpoint",
        "sd3",
        "",
    ),
    "flux": ({UNET + "double_blocks.0.img_attn.qkv.weight": (9216, 3072), **VAE}, "checkpoint", "flux", ""),
    "flux bare": ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "unet", "flux", ""),
    "alt": (
        {**unet(768), "cond_stage_model.roberta.embeddings.word_embeddings.weight": (250002, 1024)},
        "checkpoint",
        "altdiffusion",
        "",
    ),
    "unet alone": (unet(768), "unet", "sd1", ""),
    "diffusers unet": (
        {
            "conv_in.weight": (320, 4, 3, 3),
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        },
        "unet",
        "sd1",
        "",
    ),
    "vae": ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "vae", "", "4 latent channels"),
    "flux vae": ({"decoder.conv_in.weight": (512, 16, 3, 3)}, "vae", "", "16 latent channels"),
    "vae with prefix": (VAE, "vae", "", "4 latent channels"),
    "text encoder": ({"text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768)}, "text_encoder", "", ""),
    "controlnet": ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "controlnet", "", ""),
    "lora sd1": ({LORA_K + ".lora_down.weight": (4, 768), LORA_K + ".alpha": ()}, "lora", "sd1", "LoRA"),
    "lora sd2": ({LORA_K + ".lora_down.weight": (4, 1024)}, "lora", "sd2", "LoRA"),
    "lora sdxl width": ({LORA_K + ".lora_down.weight": (4, 2048)}, "lora", "sdxl", "LoRA"),
    "lora sdxl depth": ({LORA_Q_LDM.format(1) + ".lora_down.weight": (4, 640)}, "lora", "sdxl", "LoRA"),
    "lora sd1 ldm": (
        {LORA_Q_LDM.format(0) + ".lora_down.weight": (4, 640), LORA_K + ".lora_down.weight": (4, 768)},
        "lora",
        "sd1",
        "LoRA",
    ),
    "lora sd1 text": ({TE_Q: (4, 768)}, "lora", "sd1", "LoRA"),
    "lora sd2 text": ({TE_Q: (4, 1024)}, "lora", "sd2", "LoRA"),
    "lora sdxl text": ({TE_Q.replace("te_", "te2_"): (4, 1280)}, "lora", "sdxl", "LoRA"),
    "lora flux": ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072)}, "lora", "flux", "LoRA"),
    "lora sd3": ({"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": (4, 1536)}, "lora", "sd3", "LoRA"),
    "loha": ({LORA_K + ".hada_w1_a": (320, 4), LORA_K + ".hada_w1_b": (4, 768)}, "lora", "sd1", "LoHa"),
    "lokr": ({LORA_K + ".lokr_w1": (4, 4), LORA_K + ".lokr_w2": (80, 192)}, "lora", "sd1", "LoKr"),
    "lokr of sd2": ({LORA_K + ".lokr_w1": (8, 8), LORA_K + ".lokr_w2_b": (4, 128)}, "lora", "sd2", "LoKr"),
    "full": ({LORA_K + ".diff": (640, 2048)}, "lora", "sdxl", "full difference"),
    "dora of lokr": ({LORA_K + ".lokr_w1": (4, 4), LORA_K + ".dora_scale": (1, 768)}, "lora", "sd1", "DoRA, LoKr"),
    "dora": (
        {LORA_K + ".lora_down.weight": (4, 768), LORA_K + ".dora_scale": (1, 768)},
        "lora",
        "sd1",
        "DoRA, LoRA",
    ),
    "embedding sd1": ({"cat": (3, 768)}, "embedding", "sd1", "3 vectors"),
    "embedding sd2": ({"emb_params": (1, 1024)}, "embedding", "sd2", "1 vectors"),
    "embedding sdxl": ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "embedding", "sdxl", "2 vectors"),
    "embedding onetrainer": (
        {"emp_params": (2, 768), "emp_params_out": (2, 768)},
        "embedding",
        "sd1",
        "2 vectors",
    ),
    "unknown": ({"a": (1,), "b": (2, 2)}, "unknown", "", ""),
}


@pytest.mark.parametrize("name", FILES)
def test_recognise(name: str) -> None:
    shapes, kind, family, variant = FILES[name]
    found = recognise({key: TensorInfo("F16", shape) for key, shape in shapes.items()})
    assert (found.kind, found.family, found.variant) == (kind, family, variant)


def test_the_parts_of_a_checkpoint() -> None:
    def parts(shapes: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
        return recognise({key: TensorInfo("F16", shape) for key, shape in shapes.items()}).parts

    assert parts({**unet(768), **VAE, **CLIP}) == ("unet", "vae", "text_encoder")
    assert parts({**unet(768), **CLIP}) == ("unet", "text_encoder")
    assert parts(unet(768)) == ("unet",)


def factors(down: torch.Tensor, up: torch.Tensor, alpha: float) -> dict[str, torch.Tensor]:
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(alpha)}


def small_layers(up: float = 1.0) -> dict[str, dict[str, torch.Tensor]]:
    return {
        LORA_K: factors(torch.ones(2, 768), torch.full((320, 2), up), 1.0),
        "lora_te_x": factors(torch.ones(4, 6), torch.full((5, 4), up), 2.0),
    }


def expected(layers: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return network_tensors(layers, torch.float32)


SHAPES = {LORA_K: (320, 768), "lora_te_x": (5, 6)}


def test_describe_a_lora(tmp_path: Path) -> None:
    tensors = network_tensors(small_layers(), torch.float16)
    metadata = {"ss_sd_model_name": "base", "ss_steps": "12", "ss_tag_frequency": "{}"}
    path = write_atomic(tmp_path / "a.safetensors", tensors, metadata)
    facts = describe_file(path)
    hashes = facts.pop("hashes")
    assert facts == {
        "file": str(path),
        "size_bytes": path.stat().st_size,
        "kind": "lora",
        "family": "sd1",
        "variant": "LoRA",
        "num_tensors": 6,
        "dtypes": {"F16": 4, "F32": 2},
        "details": {
            "num_modules": 2,
            "num_unet_modules": 1,
            "num_text_encoder_modules": 1,
            "ranks": [2, 4],
            "bundled_embeddings": [],
            "alphas": [1.0, 2.0],
        },
        "trained_on": {"ss_sd_model_name": "base", "ss_steps": "12"},
        "lineage": [],
        "made_by": [],
        "problems": [],
        "metadata": metadata,
    }
    assert hashes["data_sha256"] == data_hash(tensors)
    assert (
        hashes["in_webui"] == hashes["autov3"] == hashes["data_sha256"][:12]
        and hashes["autov2"] == hashes["sha256"][:10]
    )
    assert describe_file(path, with_hashes=False)["hashes"] == {}


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        ({"ss_v2": "True"}, "sd2"),
        ({"ss_base_model_version": "sd_v1", "ss_v2": "False"}, "sd1"),
        ({}, ""),
    ],
)
def test_metadata_says_what_shapes_leave_open(tmp_path: Path, metadata: dict[str, str], family: str) -> None:
    tensors = {f"{LORA_K}.lokr_w1": torch.ones(4, 4), f"{LORA_K}.lokr_w2": torch.ones(2, 2)}
    path = write_atomic(tmp_path / "a.safetensors", tensors, metadata)
    assert describe_file(path)["family"] == family


def test_describe_a_hypernetwork(tmp_path: Path) -> None:
    pair = ({"linear.0.weight": torch.ones(2, 2)}, {"linear.0.weight": torch.ones(2, 2)})
    content = {
        768: pair,
        320: pair,
        "name": "style",
        "step": 900,
        "layer_structure": [1, 2, 1],
        "activation_func": "relu",
    }
    torch.save(content, tmp_path / "a.pt")
    facts = describe_file(tmp_path / "a.pt")
    assert facts["kind"] == "hypernetwork"
    assert facts["details"] == {
        "widths": [320, 768],
        "name": "style",
        "step": 900,
        "layer_structure": [1, 2, 1],
        "activation_func": "relu",
    }


def test_describe_pickled_files(tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": torch.ones(3, 768)}, "name": "cat", "step": 5}, tmp_path / "e.pt")
    facts = describe_file(tmp_path / "e.pt")
    assert (facts["kind"], facts["family"], facts["variant"]) == ("embedding", "sd1", "3 vectors")
    assert facts["details"] == {"name": "cat", "step": 5, "base": None}
    torch.save({"state_dict": {name: torch.ones(shape) for name, shape in VAE.items()}}, tmp_path / "v.ckpt")
    assert describe_file(tmp_path / "v.ckpt")["kind"] == "vae"
    torch.save(network_tensors(small_layers(), torch.float16), tmp_path / "l.pt")
    assert describe_file(tmp_path / "l.pt")["details"]["ranks"] == [2, 4]


def test_a_hash_that_the_webui_would_show_and_is_wrong(tmp_path: Path) -> None:
    metadata = {"ss_v2": "False", "sshs_model_hash": "0123456789abcdef"}
    path = write_atomic(tmp_path / "a.safetensors", network_tensors(small_layers(), torch.float16), metadata)
    facts = describe_file(path)
    assert facts["hashes"]["in_webui"] == "0123456789ab"
    assert [text[:59] for text in facts["problems"]] == ["sshs_model_hash, which the WebUI shows, is 0123456789ab...,"]
    assert describe_file(path, with_hashes=False)["problems"] == []


def test_numbers_are_looked_at_when_asked(tmp_path: Path) -> None:
    layers = small_layers()
    layers["lora_te_x"]["lora_up.weight"][0, :2] = float("nan")
    path = write_atomic(tmp_path / "a.safetensors", network_tensors(layers, torch.float16), {"ss_v2": "False"})
    assert describe_file(path)["problems"] == []
    found = describe_file(path, with_numbers=True)["problems"]
    assert found == ["lora_te_x.lora_up.weight: 2 of 20 numbers are NaN or infinite."]


def test_every_description_is_json(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.safetensors", {"cat": torch.ones(1, 768)}, {"step": "3"})
    assert json.loads(json.dumps(describe_file(path))) == describe_file(path)


def test_describe_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match="is empty"):
        describe_file(tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="cannot be read"):
        describe_file(tmp_path / "b.pt")


def test_verify_a_good_file(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.safetensors", network_tensors(small_layers(), torch.float32), {})
    found = verify_lora(path, expected(small_layers()), SHAPES)
    assert (found.num_modules, found.num_unmatched, found.max_difference) == (2, 0, 0.0)
    assert found.is_finite and not found.is_zero


def test_verify_measures_rounding(tmp_path: Path) -> None:
    layers = small_layers(up=1 + 2**-12)
    path = write_atomic(tmp_path / "a.safetensors", network_tensors(layers, torch.float16), {})
    assert verify_lora(path, expected(layers), SHAPES).max_difference == 2**-12


@pytest.mark.parametrize(
    ("shapes", "num_modules"),
    [({LORA_K: (320, 768)}, 1), ({**SHAPES, LORA_K: (320, 1024)}, 1), ({}, 0)],
)
def test_verify_counts_what_fits_the_base_model(tmp_path: Path, shapes: dict, num_modules: int) -> None:
    path = write_atomic(tmp_path / "a.safetensors", network_tensors(small_layers(), torch.float32), {})
    found = verify_lora(path, expected(small_layers()), shapes)
    assert (found.num_modules, found.num_unmatched) == (num_modules, 2 - num_modules)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_verify_sees_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    layers = small_layers()
    layers[LORA_K]["lora_up.weight"][3, 1] = value
    path = write_atomic(tmp_path / "a.safetensors", network_tensors(layers, torch.float32), {})
    found = verify_lora(path, expected(small_layers()), SHAPES)
    assert not found.is_finite and found.max_difference == float("inf")


def test_verify_sees_a_file_without_effect(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.safetensors", network_tensors(small_layers(up=0.0), torch.float32), {})
    assert verify_lora(path, expected(small_layers(up=0.0)), SHAPES).is_zero


def test_verify_sees_another_file(tmp_path: Path) -> None:
    layers = small_layers()
    path = write_atomic(tmp_path / "a.safetensors", network_tensors(layers, torch.float32), {})
    assert verify_lora(path, expected({LORA_K: layers[LORA_K]}), SHAPES).max_difference == float("inf")
    wider = {**layers, "lora_te_x": factors(torch.ones(3, 6), torch.ones(5, 3), 2.0)}
    assert verify_lora(path, expected(wider), SHAPES).max_difference == float("inf")
    other_alpha = {**layers, "lora_te_x": factors(torch.ones(4, 6), torch.ones(5, 4), 5.0)}
    assert verify_lora(path, expected(other_alpha), SHAPES).max_difference == 3.0
