"""What inspect finds wrong, from headers and from numbers."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from extensions_lib.formats.checkpoint import write_checkpoint
from extensions_lib.formats.inspect import describe_file
from extensions_lib.formats.problems import header_problems, number_problems
from extensions_lib.formats.recognise import recognise
from extensions_lib.formats.safetensors_io import TensorInfo, write_atomic

from ..model_families import FAMILY_MODELS, FamilyModels

UNET = "model.diffusion_model."
CLIP = "cond_stage_model.transformer.text_model."
MODEL = {
    UNET + "input_blocks.0.0.weight": ("F16", (320, 4, 3, 3)),
    UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": ("F16", (320, 768)),
    "first_stage_model.decoder.conv_in.weight": ("F32", (512, 4, 3, 3)),
    CLIP + "embeddings.token_embedding.weight": ("F16", (49408, 768)),
    CLIP + "embeddings.position_ids": ("I64", (1, 77)),
}
LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
KNOWN = {"ss_v2": "False", "ss_base_model_version": "sd_v1"}


def problems(tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str] | None = None) -> list[str]:
    header = {name: TensorInfo(dtype, shape) for name, (dtype, shape) in tensors.items()}
    return header_problems(Path("none/x.safetensors"), header, metadata or {}, recognise(header))


def without(*ends: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: value for name, value in MODEL.items() if not name.endswith(ends)}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({**MODEL, "model_ema.diffusion_modelinput_blocks00weight": ("F32", (9,))}, "1 tensors (0.00 GB) are averaged"),
        ({**MODEL, "optimizer.x": ("F32", (9,))}, "1 tensors (0.00 GB) are leftovers of a training"),
        (without("conv_in.weight"), "It holds no VAE"),
        (without("position_ids"), "position_ids is missing, which older programs need"),
        ({**MODEL, CLIP + "embeddings.position_ids": ("F16", (1, 77))}, "position_ids is F16, not whole numbers"),
        (
            {name: ("F32", shape) if shape != (1, 77) else ("I64", shape) for name, (_, shape) in MODEL.items()},
            "half as",
        ),
        ({**MODEL, "v_pred": ("F32", (0,))}, "the .yaml by which the WebUI knows that is not beside it"),
    ],
)
def test_checkpoints(tensors: dict[str, tuple[str, tuple[int, ...]]], said: str) -> None:
    (found,) = problems(tensors)
    assert said in found
    assert problems(MODEL) == []


@pytest.mark.parametrize(
    ("suffix", "dtype", "shape", "metadata", "said"),
    [
        ("lora_down.weight", "F16", (4, 768), {}, "has no metadata"),
        ("lora_down.weight", "F16", (4, 2048), KNOWN, "ss_base_model_version does not say 'sdxl_'"),
        ("lora_down.weight", "F16", (4, 1024), KNOWN, "ss_v2 does not say 'True'"),
        ("dora_scale", "F16", (320, 1), KNOWN, "1 layers are DoRA by outputs"),
        ("diff", "BF16", (320, 768), KNOWN, "full difference in bf16"),
    ],
)
def test_loras(suffix: str, dtype: str, shape: tuple[int, ...], metadata: dict[str, str], said: str) -> None:
    (found,) = problems({f"{LAYER}.{suffix}": (dtype, shape)}, metadata)
    assert said in found
    assert problems({f"{LAYER}.lora_down.weight": ("BF16", (4, 768))}, KNOWN) == []


def test_names_of_peft_and_embeddings() -> None:
    (found,) = problems({"unet.down_blocks.0.attentions.0.attn2.to_k.lora_A.weight": ("F16", (4, 768))}, KNOWN)
    assert "1 tensors have diffusers' or peft's names" in found
    (found,) = problems({"emp_params": ("F32", (2, 768)), "emp_params_out": ("F32", (2, 768))})
    assert "the WebUI refuses more than one" in found
    assert problems({"clip_l": ("F32", (2, 768)), "clip_g": ("F32", (2, 1280))}) == []


def test_a_format_that_is_not_known_is_no_obstacle() -> None:
    assert problems({**MODEL, UNET + "x": ("F4_NEW", (3,))}) == []


def test_numbers(tmp_path: Path) -> None:
    tensors = {
        "a": torch.tensor([1.0, float("nan"), float("-inf")]).half(),
        "b": torch.ones(3).to(torch.float8_e4m3fn),
        "x.position_ids": torch.tensor([[0, 1, 1]]),
        "y.position_ids": torch.tensor([[0.0, 1.0, 2.0]]).half(),
    }
    found = number_problems(write_atomic(tmp_path / "a.safetensors", tensors, {}))
    assert sorted(found) == [
        "a: 2 of 3 numbers are NaN or infinite.",
        "x.position_ids are not whole numbers from 0: prompts are read wrongly; prune writes them anew.",
    ]


def test_pickles_that_the_webui_refuses(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(2, 4, 3, 3) for name in ("decoder.conv_in.weight", "encoder.conv_in.weight")}
    write_checkpoint(tmp_path / "old.ckpt", tensors, {})
    assert describe_file(tmp_path / "old.ckpt")["problems"] == []
    torch.save(tensors, tmp_path / "new.ckpt")
    found = describe_file(tmp_path / "new.ckpt")["problems"]
    with zipfile.ZipFile(tmp_path / "new.ckpt") as archive:
        is_new = any(name.endswith(".format_version") for name in archive.namelist())
    assert [text[:21] for text in found] == (["It was written by a t"] if is_new else [])


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_a_sound_model_of_every_family(name: str, family_models: FamilyModels) -> None:
    assert describe_file(family_models[name], with_hashes=False, with_numbers=True)["problems"] == []
