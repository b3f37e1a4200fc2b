from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from extensions_lib.errors import KeyMismatchError, ModelError, UnsupportedModelError
from extensions_lib.formats.safetensors_io import read_tensors, write_atomic
from extensions_lib.models.ldm import bundle_to_ldm
from extensions_lib.models.load import load_bundle, outline_bundle
from extensions_lib.models.vocabulary import find_bpe_file, read_bpe

from .conftest import TinyModel

pytestmark = pytest.mark.usefixtures("shared_tokenizer")
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def folder(tiny: TinyModel, tmp_path: Path) -> Path:
    """The tiny model as its libraries save it."""
    folder = tmp_path / "tiny-diffusers"
    for part, module in tiny.parts.items():
        module.save_pretrained(folder / part, safe_serialization=True)
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    return folder


def change_json(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def test_a_folder_is_the_same_model_as_a_file(folder: Path, tiny: TinyModel, tiny_path: Path) -> None:
    bundle = load_bundle(folder)
    for part, module in bundle.parts.items():
        expected = tiny.parts[part].state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())
        assert not any(parameter.requires_grad for parameter in module.parameters())
    from_file = load_bundle(tiny_path)
    assert (bundle.family, bundle.source.name, bundle.source.is_folder) == (from_file.family, "tiny-diffusers", True)
    assert torch.equal(bundle.alphas_cumprod, from_file.alphas_cumprod)
    written = bundle_to_ldm(bundle)
    assert written.keys() == tiny.tensors.keys()
    assert all(torch.equal(tensor, tiny.tensors[name]) for name, tensor in written.items())


def test_folders_keep_their_dtypes_and_old_forms(folder: Path, tiny: TinyModel) -> None:
    """fp16 variant, pickled weights, and the attention names of old VAEs."""
    half = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    write_atomic(half, {name: t.half() for name, t in tiny.parts["unet"].state_dict().items()}, {})
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "text_encoder" / "model.safetensors").unlink()
    torch.save(tiny.parts["text_encoder"].state_dict(), folder / "text_encoder" / "pytorch_model.bin")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    write_atomic(path, old_attention_names(read_tensors(path)), {}, overwrite=True)
    written = bundle_to_ldm(load_bundle(folder))
    for name, tensor in written.items():
        expected = tiny.tensors[name].half() if name.startswith("model.diffusion_model.") else tiny.tensors[name]
        assert tensor.dtype == expected.dtype and torch.equal(tensor, expected)


def old_attention_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in names.items():
            name = name.replace(new, old)
        renamed[name] = tensor
    assert any(".query." in name for name in renamed)
    return renamed


def test_the_folders_tokenizer_is_used(folder: Path) -> None:
    tokens, merges = read_bpe(find_bpe_file())
    tokens["cat</w>"], tokens["dog</w>"] = tokens["dog</w>"], tokens["cat</w>"]
    write_json(folder / "tokenizer" / "vocab.json", tokens)
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    assert load_bundle(folder).tokenizer.tokenize("cat") == [1929]


def test_a_separate_vae(folder: Path, tiny_path: Path) -> None:
    change_json(folder / "vae" / "config.json", scaling_factor=0.5)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    bundle = load_bundle(folder, vae_path=tiny_path)
    assert bundle.family.latent_scale == bundle.vae.config.scaling_factor == 0.5
    assert "first_stage_model.quant_conv.weight" in bundle_to_ldm(bundle)


def test_scheduler_settings_are_honoured(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    change_json(path, prediction_type="v_prediction", beta_schedule="linear")
    bundle = load_bundle(folder)
    assert bundle.family.prediction_type == "v_prediction"
    betas = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    assert bundle.alphas_cumprod[1].item() == pytest.approx(float((1 - betas[0]) * (1 - betas[1])), abs=1e-7)
    assert not bundle.has_zero_terminal_snr
    change_json(path, rescale_betas_zero_snr=True)
    rescaled = load_bundle(folder)
    assert rescaled.has_zero_terminal_snr and rescaled.alphas_cumprod[999] == 0
    assert rescaled.alphas_cumprod[0] == pytest.approx(float(bundle.alphas_cumprod[0]))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "is a FluxPipeline; StableDiffusionPipeline, "),
        ("unet/config.json", {"in_channels": 8}, "takes 8 channels; accepted are 4, and 9 of an inpainting model"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type is 'sample'; accepted"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "squaredcos_cap_v2"}, "'squaredcos_cap_v2'"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "or own betas"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 50}, "50 timesteps; only models with 1000"),
    ],
)
def test_other_models_are_refused(folder: Path, file: str, changes: dict[str, Any], message: str) -> None:
    change_json(folder / file, **changes)
    with pytest.raises(UnsupportedModelError, match=message):
        load_bundle(folder)


def test_incomplete_folders_are_explained(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = read_tensors(weights)
    del tensors["conv_in.bias"]
    write_atomic(weights, tensors, {}, overwrite=True)
    with pytest.raises(KeyMismatchError, match=r"unet: conv_in.bias needs a tensor of shape \(32,\), found nothing"):
        load_bundle(folder)
    weights.unlink()
    with pytest.raises(ModelError, match="unet holds no weights; looked for diffusion_pytorch_model.safetensors, "):
        load_bundle(folder)
    shutil.rmtree(folder / "unet")
    with pytest.raises(ModelError, match="config.json cannot be read"):
        load_bundle(folder)
    (folder / "model_index.json").unlink()
    with pytest.raises(ModelError, match="no model_index.json"):
        load_bundle(folder)


def test_the_outline_of_a_folder(folder: Path) -> None:
    outline, bundle = outline_bundle(folder), load_bundle(folder)
    for part, module in outline.parts.items():
        assert {name: p.shape for name, p in module.named_parameters()} == {
            name: p.shape for name, p in bundle.parts[part].named_parameters()
        }
        assert {p.device.type for p in module.parameters()} == {"meta"}
    for file in (folder / "vae").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        outline_bundle(folder)
