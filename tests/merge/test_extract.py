"""A LoRA from two checkpoints, there and back again, and how many directions are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.config.tools import load_tool
from extensions_lib.control import JobControl
from extensions_lib.errors import ConfigError, MergeError
from extensions_lib.formats.lineage import lineage
from extensions_lib.formats.network import read_network
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic
from extensions_lib.merge.extract import extract
from extensions_lib.merge.layers import layer_places
from extensions_lib.merge.lora_files import ERROR, WrittenLora
from extensions_lib.merge.models import read_model
from extensions_lib.merge.ranks import RankChoice, factors_of, factors_of_product
from extensions_lib.merge.recipe import own_key
from extensions_lib.merge.writing import Merged

from ..model_families import FamilyModels
from .conftest import small_lora

LAYER = "lora_te_text_model_encoder_layers_0_mlp_fc1"
KEY = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1."
NAMES = {
    "sd1": ("lora_unet_mid_block_attentions_0_proj_in", LAYER),
    "sd2": ("lora_unet_mid_block_attentions_0_proj_in", "lora_te_text_model_encoder_layers_1_self_attn_v_proj"),
    "sdxl": ("lora_unet_middle_block_1_proj_in", "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"),
}


@pytest.fixture
def extracting(tmp_path: Path) -> Callable[..., WrittenLora]:
    """extracting(base, tuned, ...) -> what was written, in float32."""

    def run(base: Path, tuned: Path, **settings: Any) -> WrittenLora:
        table = {"name": "found", "base": str(base), "tuned": str(tuned), "folder": str(tmp_path), "dtype": "fp32"}
        return extract(load_tool("extract", {**table, **settings}), JobControl(), lambda event: event)

    return run


def layer_of(base: Path, name: str) -> tuple[str, int, int]:
    """Name, outputs and inputs of a layer."""
    outputs, inputs, *_ = layer_places(read_model(base))[name].shape
    return name, outputs, inputs


@pytest.mark.parametrize("family", NAMES)
def test_there_and_back_again(
    family: str,
    family_models: FamilyModels,
    baking: Callable[..., Merged],
    extracting: Callable[..., WrittenLora],
    tmp_path: Path,
) -> None:
    layers = [layer_of(family_models[family], name) for name in NAMES[family]]
    given = small_lora(tmp_path, "given.safetensors", *layers)
    tuned = baking(family_models[family], given).path
    found = extracting(family_models[family], tuned, rank=2)
    assert found.error < 1e-5 and [rank for rank in found.ranks if rank > 1] == [2, 2]
    lora = read_network(found.path)
    assert {name for name, change in lora.items() if not change.is_zero} == set(NAMES[family])
    again = read_tensors(baking(family_models[family], found.path, name="again").path)
    for name, tensor in read_tensors(tuned).items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("family", "part"), [("sd1", "te"), ("sd2", "te"), ("sdxl", "te2")])
def test_attentions_that_the_webui_would_skip_are_completed(
    family: str,
    part: str,
    family_models: FamilyModels,
    baking: Callable[..., Merged],
    extracting: Callable[..., WrittenLora],
    tmp_path: Path,
) -> None:
    """It changes an OpenCLIP attention only where a file has all of query, key, value and output."""
    name = f"lora_{part}_text_model_encoder_layers_0_self_attn_"
    given = small_lora(tmp_path, "given.safetensors", layer_of(family_models[family], f"{name}v_proj"))
    found = read_network(extracting(family_models[family], baking(family_models[family], given).path).path)
    parts = ("v",) if family == "sd1" else ("q", "k", "v", "out")
    assert found.keys() == {f"{name}{each}_proj" for each in parts}
    assert all(change.is_zero == (own != f"{name}v_proj") for own, change in found.items())


def test_the_error_is_what_is_missing(
    family_models: FamilyModels,
    baking: Callable[..., Merged],
    extracting: Callable[..., WrittenLora],
    tmp_path: Path,
) -> None:
    base = family_models["sd1"]
    tuned = baking(base, small_lora(tmp_path, "given.safetensors", layer_of(base, LAYER))).path
    tensors = read_tensors(tuned)
    tensors[KEY + "bias"] = tensors[KEY + "bias"] + 1.0
    write_atomic(tuned, tensors, {}, overwrite=True)
    found = extracting(base, tuned, rank=1, dtype="fp16")
    change = tensors[KEY + "weight"] - read_tensors(base)[KEY + "weight"].float()
    num_outputs = len(change)
    missing = (change - read_network(found.path)[LAYER].undecomposed()).square().sum() + num_outputs
    expected = float((missing / (change.square().sum() + num_outputs)).sqrt())
    assert found.error == pytest.approx(expected, rel=1e-3) and 0.2 < expected < 1
    metadata = read_header(found.path)[1]
    made = json.loads(metadata[own_key("extract")])
    assert [model["name"] for model in made["models"]] == [base.name, tuned.name]
    assert made["settings"]["base"] == base.name and "folder" not in made["settings"]
    assert float(metadata[ERROR]) == pytest.approx(found.error, abs=1e-6)
    assert [model["name"] for model in lineage(metadata)["models"]] == [base.stem, tuned.stem]
    assert extracting(base, tuned, name="all", rank=8, criterion="energy", threshold=0.999).ranks == (2,)


def test_what_is_refused(family_models: FamilyModels, extracting: Callable[..., WrittenLora], tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="differs in no layer"):
        extracting(family_models["sd1"], family_models["sd1"])
    with pytest.raises(MergeError, match="different families"):
        extracting(family_models["sd1"], family_models["sdxl"])
    with pytest.raises(MergeError, match="other shapes|input channels"):
        extracting(family_models["sd1-inpaint"], family_models["sd1"])
    with pytest.raises(ConfigError, match="threshold: is 2; for energy"):
        extracting(family_models["sd1"], family_models["sd1"], criterion="energy", threshold=2.0)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("criterion", "threshold", "expected"),
    [
        ("rank", 0.0, 4),
        ("ratio", 2.0, 2),
        ("ratio", 1.0, 1),
        ("cumulative", 0.75, 2),
        ("cumulative", 0.8, 3),
        ("frobenius", 0.94, 2),
        ("frobenius", 0.95, 3),
        ("energy", 0.88, 2),
        ("energy", 0.95, 3),
        ("energy", 1.0, 4),
    ],
)
def test_criteria_by_hand(criterion: str, threshold: float, expected: int) -> None:
    """Sizes 8, 4, 3, 1, 0: sums 8, 12, 15, 16; squares 64, 80, 89, 90: 0.711, 0.889, 0.989 of all."""
    sizes = torch.tensor([8.0, 4.0, 3.0, 1.0, 0.0])
    choice = RankChoice(4, criterion, threshold)
    assert choice.count(sizes) == expected
    assert RankChoice(1, criterion, threshold).count(sizes) == 1


def test_factors_of_a_product_are_those_of_the_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(20, 6, generator=generator), torch.randn(6, 30, generator=generator)
    choice = RankChoice(3)
    first, second = factors_of(up @ down, choice), factors_of_product(up, down, choice)
    torch.testing.assert_close(first[0] @ first[1], second[0] @ second[1], rtol=1e-4, atol=1e-4)
    left, sizes, right = torch.linalg.svd(up @ down, full_matrices=False)
    torch.testing.assert_close(second[0] @ second[1], left[:, :3] * sizes[:3] @ right[:3], rtol=1e-4, atol=1e-4)
