"""Baking: the baked checkpoint predicts what its base predicts with the files applied to its modules."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from extensions_lib.config.tools import load_tool
from extensions_lib.control import JobControl
from extensions_lib.errors import ConfigError, MergeError, OutputError
from extensions_lib.events import Event, Warned
from extensions_lib.formats.embedding import bundled_tensors, read_embedding
from extensions_lib.formats.lineage import lineage
from extensions_lib.formats.metadata import ArtefactInfo
from extensions_lib.formats.network import read_network
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic
from extensions_lib.merge.extract import extract
from extensions_lib.merge.layers import layer_places
from extensions_lib.merge.models import read_model
from extensions_lib.merge.rebuild import rebuild
from extensions_lib.merge.writing import Merged
from extensions_lib.methods.lora import Lora
from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.load import load_bundle
from extensions_lib.models.predict import predict
from extensions_lib.models.text import batch_chunks, encode_prompts
from extensions_lib.practice.families import CLIP_FOLDER

from ..model_families import FamilyModels
from .conftest import small_lora

FAMILIES = ("sd1", "sd2", "sdxl")
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"conv_rank": 2},
    "loha": {"algorithm": "loha", "conv_rank": 2},
    "lokr": {"algorithm": "lokr", "lokr_factor": 4},
    "dora": {"dora": True, "conv_rank": 2},
    "full difference with norms": {"algorithm": "full", "train_norms": True},
}
SIZES = torch.tensor([[64, 64, 0, 0, 64, 64]])
Written = tuple[Path, Path]


@torch.no_grad()
def outcome(bundle: ModelBundle) -> list[Tensor]:
    """Text states, pooled state and the UNet's prediction."""
    ids = batch_chunks([bundle.tokenizer.chunks("a badge on a red background")], bundle.tokenizer)
    told = encode_prompts(bundle, ids)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    found = predict(bundle, noise, torch.tensor([400]), told, SIZES)
    return [told.hidden_states, *([] if told.pooled is None else [told.pooled]), found]


def trained(bundle: ModelBundle, folder: Path, **settings: Any) -> tuple[Path, list[Tensor]]:
    """A file of a network with values far from its start, and what the model predicts with it attached."""
    bundle.freeze()
    method = Lora(rank=2, alpha=1.0, dtype=torch.float32, layers="full", train_text_encoder=True, **settings)
    generator = torch.Generator().manual_seed(1)
    with method.attach(bundle, "", generator) as trainable:
        with torch.no_grad():
            for parameter in trainable.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        exported = method.export(trainable, ArtefactInfo(output_name="net", steps=1))
        return write_atomic(folder / "net.safetensors", exported.tensors, {}), outcome(bundle)


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_bake_equals_apply(
    family: str, kind: str, family_models: FamilyModels, baking: Callable[..., Merged], tmp_path: Path
) -> None:
    base = load_bundle(family_models[family])
    before = outcome(base)
    path, expected = trained(base, tmp_path, **SETTINGS[kind])
    baked = baking(family_models[family], path).path
    for folder in family_models[family].parent.glob(CLIP_FOLDER):
        shutil.copytree(folder, baked.parent / CLIP_FOLDER)
    found = outcome(load_bundle(baked))
    for own, wanted, without in zip(found, expected, before, strict=True):
        difference = (wanted - without).abs().max()
        assert difference > 1e-2 and (own - wanted).abs().max() < 2e-4 * max(1.0, float(wanted.abs().max()))


def test_extract_finds_every_layer_that_was_baked(
    family_models: FamilyModels, baking: Callable[..., Merged], tmp_path: Path
) -> None:
    """3x3 convolutions, thirds of OpenCLIP's matrices and all: rank 2 is found again, and bakes to the same file."""
    base = family_models["sdxl"]
    path, _ = trained(load_bundle(base), tmp_path, conv_rank=2)
    tuned = baking(base, path, name="tuned").path
    table = {"name": "found", "base": str(base), "tuned": str(tuned), "folder": str(tmp_path), "dtype": "fp32"}
    found = extract(load_tool("extract", {**table, "rank": 2}), JobControl(), lambda event: event)
    assert found.error < 1e-3
    assert {name for name, change in read_network(path).items() if not change.is_zero} == set(read_network(found.path))
    again = read_tensors(baking(base, found.path, name="again").path)
    for name, tensor in read_tensors(tuned).items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_third_of_a_joined_matrix_by_hand(
    family_models: FamilyModels, baking: Callable[..., Merged], tmp_path: Path
) -> None:
    layer = "lora_te_text_model_encoder_layers_1_self_attn_k_proj"
    path = small_lora(tmp_path, "k.safetensors", (layer, 128, 128))
    found = read_tensors(baking(family_models["sd2"], {"path": str(path), "strength": "0.5"}).path)
    base = read_tensors(family_models["sd2"])
    key = "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"
    added = found[key] - base[key].float()
    tensors = read_tensors(path)
    expected = 0.5 * 0.5 * tensors[f"{layer}.lora_up.weight"] @ tensors[f"{layer}.lora_down.weight"]
    torch.testing.assert_close(added[128:256], expected, rtol=1e-5, atol=1e-5)
    assert not added[:128].any() and not added[256:].any()
    assert all(torch.equal(found[name].to(tensor.dtype), tensor) for name, tensor in base.items() if name != key)


def test_several_files_and_block_strengths(
    family_models: FamilyModels, baking: Callable[..., Merged], tmp_path: Path
) -> None:
    base = family_models["sd1"]
    places = layer_places(read_model(base))
    names = [
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    ]
    layers = [(name, *places[name].shape) for name in names]
    first = small_lora(tmp_path, "first.safetensors", *layers)
    second = small_lora(tmp_path, "second.safetensors", *layers[:1], seed=1)
    strength = "0.5, M00=2, TE=0"
    found = read_tensors(baking(base, {"path": str(first), "strength": strength}, second).path)
    before, changes, more = read_tensors(base), read_network(first), read_network(second)
    for name, factor in zip(names, (2.0, 0.5, 0.0), strict=True):
        key = places[name].weight
        expected = before[key].float() + changes[name].delta(before[key], factor)
        expected += more[name].delta(before[key]) if name in more else 0.0
        torch.testing.assert_close(found[key], expected, rtol=1e-5, atol=1e-5)


def test_schedules_and_markers_keep_their_numbers(
    family_models: FamilyModels, baking: Callable[..., Merged], tmp_path: Path
) -> None:
    further = {"alphas_cumprod": torch.linspace(0.9991, 0.0047, 1000), "v_pred": torch.tensor([])}
    base = write_atomic(tmp_path / "base.safetensors", {**read_tensors(family_models["sd1"]), **further}, {})
    known = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    baked = baking(base, small_lora(tmp_path, "a.safetensors", (known, 64, 64)), dtype="fp16", name="half")
    found = read_tensors(baked.path)
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in further.items()
    )


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_bundled_words_are_written_beside(
    family: str, family_models: FamilyModels, baking: Callable[..., Merged], tmp_path: Path
) -> None:
    base = family_models[family]
    layer = {"sd1": "lora_te", "sdxl": "lora_te1"}[family] + "_text_model_encoder_layers_0_self_attn_q_proj"
    lora = read_tensors(small_lora(tmp_path, "a.safetensors", (layer, 64, 64)))
    keys = {"sd1": {"": 768}, "sdxl": {"clip_l": 768, "clip_g": 1280}}[family]
    vectors = {key: torch.randn(2, width, generator=torch.Generator().manual_seed(1)) for key, width in keys.items()}
    path = write_atomic(tmp_path / "both.safetensors", lora | bundled_tensors("zcat", vectors), {})
    words = tmp_path / "words"
    merged = baking(base, path, name="baked", embeddings_folder=str(words))
    assert merged.beside[-1] == words / "zcat.safetensors"
    found = read_embedding(merged.beside[-1]).vectors
    assert found.keys() == vectors.keys() and all(torch.equal(found[key], vectors[key]) for key in vectors)
    alone = baking(base, tmp_path / "a.safetensors", name="alone")
    same = read_tensors(alone.path)
    assert all(torch.equal(tensor, same[name]) for name, tensor in read_tensors(merged.path).items())

    with pytest.raises(OutputError, match=r"zcat.safetensors already exists"):
        baking(base, path, name="again", embeddings_folder=str(words))
    with pytest.raises(MergeError, match="both bring the word 'zcat'"):
        baking(base, path, path, name="again", embeddings_folder=str(tmp_path / "other"))
    assert baking(base, path, path, name="dropped", embeddings="drop").words == ()
    assert not (tmp_path / "out" / "again.safetensors").exists() and not (tmp_path / "other").exists()
    result = rebuild(merged.path, [tmp_path, base.parent], tmp_path / "rebuilt.safetensors", JobControl(), lambda e: e)
    assert result.is_same is True


def test_unknown_layers(family_models: FamilyModels, baking: Callable[..., Merged], tmp_path: Path) -> None:
    known = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    path = small_lora(tmp_path, "a.safetensors", (known, 64, 64), ("lora_unet_nowhere", 4, 4))
    with pytest.raises(MergeError, match="1 of 2 layers .* does not have: lora_unet_nowhere"):
        baking(family_models["sd1"], path)
    events: list[Event] = []
    baking(family_models["sd1"], path, ignore_unknown=True, events=events)
    assert any("lora_unet_nowhere" in event.text for event in events if isinstance(event, Warned))
    alone = small_lora(tmp_path, "b.safetensors", ("lora_unet_nowhere", 4, 4))
    with pytest.raises(MergeError, match="1 of 1 layers"):
        baking(family_models["sd1"], alone, ignore_unknown=True, name="other")


def test_what_is_refused(family_models: FamilyModels, baking: Callable[..., Merged], tmp_path: Path) -> None:
    name, base = "lora_te_text_model_encoder_layers_0_self_attn_q_proj", family_models["sd1"]
    with pytest.raises(MergeError, match="another shape"):
        baking(base, small_lora(tmp_path, "a.safetensors", (name, 64, 60)))
    good = small_lora(tmp_path, "c.safetensors", (name, 64, 64))
    with pytest.raises(MergeError, match="too large"):
        baking(base, {"path": str(good), "strength": "1e6"}, dtype="fp16")
    outer = read_tensors(good) | {f"{name}.dora_scale": torch.ones(64, 1)}
    with pytest.raises(MergeError, match="outer.safetensors has 1 layers with a length for each output"):
        baking(base, write_atomic(tmp_path / "outer.safetensors", outer, {}))
    other = small_lora(tmp_path, "xl.safetensors", ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", 64, 64))
    with pytest.raises(MergeError, match="xl.safetensors is for sdxl, sd1.safetensors is sd1"):
        baking(base, other, ignore_unknown=True)
    with pytest.raises(OutputError, match="one of the files"):
        baking(base, good, folder=str(base.parent), overwrite=True)
    with pytest.raises(ConfigError, match="networks"):
        baking(base)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_recipe_lineage_and_rebuilding(
    dtype: str, family_models: FamilyModels, baking: Callable[..., Merged], tmp_path: Path
) -> None:
    base = family_models["sd2"]
    path = small_lora(tmp_path, "k.safetensors", ("lora_te_text_model_encoder_layers_0_mlp_fc1", 512, 128))
    merged = baking(base, {"path": str(path), "strength": "0.7, TE=0.2"}, dtype=dtype, name="baked")
    tree = lineage(read_header(merged.path)[1])
    assert tree["formula"] == "Bake LoRA" and [model["name"] for model in tree["models"]] == ["sd2", "k"]
    path.rename(tmp_path / "renamed.safetensors")
    result = rebuild(
        merged.path, [tmp_path, base.parent], tmp_path / "again.safetensors", JobControl(), lambda event: event
    )
    assert result.is_same is True
