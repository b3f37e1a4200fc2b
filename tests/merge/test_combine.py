"""Several LoRAs as one: the sum of what they add, whatever they are called and made with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from extensions_lib.config.tools import load_tool
from extensions_lib.control import JobControl
from extensions_lib.errors import ConfigError, FormatError, MergeError, OutputError
from extensions_lib.events import Event, Warned
from extensions_lib.formats.keys import SD1_LAYOUT, unet_to_ldm
from extensions_lib.formats.lineage import lineage, lineage_lines
from extensions_lib.formats.network import network_tensors, read_network
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic
from extensions_lib.merge.combine import combine
from extensions_lib.merge.layers import layer_places
from extensions_lib.merge.lora_files import WrittenLora
from extensions_lib.merge.models import read_model
from extensions_lib.merge.rebuild import rebuild
from extensions_lib.merge.writing import Merged

from ..model_families import FamilyModels
from .conftest import drawn, small_lora

LINEAR = "lora_unet_mid_block_attentions_0_proj_in"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
SD1 = {"ss_base_model_version": "sd_v1"}
Combining = Callable[..., WrittenLora]


@pytest.fixture
def combining(tmp_path: Path) -> Combining:
    """combining(files, ...) -> what was written, in float32."""

    def run(*networks: Any, events: list[Event] | None = None, **settings: Any) -> WrittenLora:
        entries = [{"path": str(each)} if isinstance(each, Path) else each for each in networks]
        table = {"name": "both", "networks": entries, "folder": str(tmp_path / "out"), "dtype": "fp32"}
        emit = (events if events is not None else []).append
        return combine(load_tool("combine", {**table, **settings}), JobControl(), emit)

    return run


def weighted(path: Path, weight: str) -> dict[str, str]:
    return {"path": str(path), "weight": weight}


def stored(folder: Path, name: str, layers: dict[str, dict[str, Tensor]], **more: Any) -> Path:
    tensors = {**network_tensors(layers, torch.float32), **more.get("words", {})}
    return write_atomic(folder / f"{name}.safetensors", tensors, more.get("metadata", SD1))


def factors(rank: int, shape: tuple[int, ...], alpha: float | None = None, seed: int = 0) -> dict[str, Tensor]:
    kernel = shape[2:]
    found = {
        "lora_up.weight": drawn(shape[0], rank, *(1 for _ in kernel), seed=seed),
        "lora_down.weight": drawn(rank, shape[1], *kernel, seed=seed + 100),
    }
    return found if alpha is None else {**found, "alpha": torch.tensor(alpha)}


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Files of other ranks and alphas that share one layer of three."""
    a = {LINEAR: factors(2, (12, 9), 1.0), CONV: factors(3, (8, 4, 3, 3), seed=1)}
    b = {LINEAR: factors(1, (12, 9), 4.0, seed=2), TEXT: factors(2, (7, 5), 1.0, seed=3)}
    return [stored(tmp_path, "a", a), stored(tmp_path, "b", b)]


def sums(paths: list[Path], weights: tuple[float, ...]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path, weight in zip(paths, weights, strict=True):
        for name, change in read_network(path).items():
            found[name] = found.get(name, 0.0) + weight * change.undecomposed()
    return found


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.4), (-2.0, 0.25)])
@pytest.mark.parametrize("method", ["svd", "concat"])
def test_the_result_is_the_sum(method: str, weights: tuple[float, ...], two: list[Path], combining: Combining) -> None:
    """sd-scripts' own concat loses strength, and its plain merge goes with the square of the weights."""
    found = combining(*(weighted(path, str(w)) for path, w in zip(two, weights, strict=True)), formula=method)
    changes = read_network(found.path)
    assert changes.keys() == {LINEAR, CONV, TEXT}
    for name, wanted in sums(two, weights).items():
        torch.testing.assert_close(changes[name].undecomposed(), wanted, rtol=1e-5, atol=2e-5)
    assert changes[CONV].tensors["lora_down.weight"].shape[2:] == (3, 3)
    if method == "concat":
        assert found.error is None and {name: change.rank for name, change in changes.items()} == {
            LINEAR: 3,
            CONV: 3,
            TEXT: 2,
        }
    else:
        assert found.error < 1e-5


def test_concat_by_hand(tmp_path: Path, combining: Combining) -> None:
    """1 * [[2], [3]] [[1, 10]] of alpha 1 and -0.5 * [[4], [0]] [[0, 1]] of alpha 2: strengths 1 and -1."""
    first = {"lora_up.weight": torch.tensor([[2.0], [3.0]]), "lora_down.weight": torch.tensor([[1.0, 10.0]])}
    second = {"lora_up.weight": torch.tensor([[4.0], [0.0]]), "lora_down.weight": torch.tensor([[0.0, 1.0]])}
    a = stored(tmp_path, "a", {LINEAR: {**first, "alpha": torch.tensor(1.0)}})
    b = stored(tmp_path, "b", {LINEAR: {**second, "alpha": torch.tensor(2.0)}})
    found = read_tensors(combining(a, weighted(b, "-0.5"), formula="concat").path)
    assert torch.equal(found[f"{LINEAR}.lora_up.weight"], torch.tensor([[2.0, -4.0], [3.0, 0.0]]))
    assert torch.equal(found[f"{LINEAR}.lora_down.weight"], torch.tensor([[1.0, 10.0], [0.0, 1.0]]))
    assert float(found[f"{LINEAR}.alpha"]) == 2.0
    change = read_network(tmp_path / "out" / "both.safetensors")[LINEAR]
    assert torch.equal(change.delta(torch.zeros(2, 2)), torch.tensor([[2.0, 16.0], [3.0, 30.0]]))


def test_concat_of_very_different_strengths_in_half_precision(tmp_path: Path, combining: Combining) -> None:
    """alpha 1 at rank 128 beside alpha = rank: scaled in one factor alone, small numbers would lose their digits."""
    weak = {suffix: tensor * 2e-3 for suffix, tensor in factors(128, (12, 9)).items()} | {"alpha": torch.tensor(1.0)}
    paths = [stored(tmp_path, "a", {LINEAR: factors(2, (12, 9))}), stored(tmp_path, "b", {TEXT: weak, LINEAR: weak})]
    found = read_tensors(combining(*paths, formula="concat", dtype="fp16").path)
    up, down = (found[f"{LINEAR}.lora_{side}.weight"].float() for side in ("up", "down"))
    wanted = read_network(paths[1])[LINEAR].undecomposed()
    assert (up[:, 2:] @ down[2:] - wanted).norm() < 4e-4 * wanted.norm()


def test_concat_of_one_file_is_the_file(two: list[Path], combining: Combining) -> None:
    found, given = read_tensors(combining(two[1], formula="concat").path), read_tensors(two[1])
    assert found.keys() == given.keys() and all(torch.equal(found[name], given[name]) for name in given)
    halved = read_tensors(combining(weighted(two[1], "0.5"), formula="concat", name="half").path)
    assert float(halved[f"{LINEAR}.alpha"]) == 2.0
    assert all(torch.equal(halved[name], given[name]) for name in given if not name.endswith("alpha"))


def test_a_lower_rank_and_its_error(two: list[Path], combining: Combining) -> None:
    found, missing, whole = combining(*two, rank=1), 0.0, 0.0
    changes = read_network(found.path)
    for name, wanted in sums(two, (1.0, 1.0)).items():
        left, sizes, right = torch.linalg.svd(wanted.flatten(1), full_matrices=False)
        nearest = (left[:, :1] * sizes[:1] @ right[:1]).reshape(wanted.shape)
        torch.testing.assert_close(changes[name].undecomposed(), nearest, rtol=1e-4, atol=1e-4)
        missing, whole = missing + float(sizes[1:].square().sum()), whole + float(sizes.square().sum())
    assert found.error == pytest.approx((missing / whole) ** 0.5, rel=1e-4) and set(found.ranks) == {1}


@pytest.mark.parametrize("method", ["svd", "concat"])
def test_combine_then_bake_is_bake_of_both(
    method: str,
    family_models: FamilyModels,
    baking: Callable[..., Merged],
    combining: Combining,
    tmp_path: Path,
) -> None:
    """With block weights, in the family with thirds of joined matrices, and one file under checkpoint names."""
    base = family_models["sdxl"]
    places = layer_places(read_model(base))
    names = [
        "lora_unet_input_blocks_4_1_proj_in",
        "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_0_self_attn_v_proj",
    ]
    layers = [(name, *places[name].shape[:2]) for name in names]
    first = small_lora(tmp_path, "first.safetensors", *layers)
    diffusers = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    second = small_lora(tmp_path, "second.safetensors", (diffusers, *layers[1][1:]), layers[3], seed=1)
    strengths = ("0.5, M00=2, TE1=0, attn2=0.3", "-1, TE2=0.25")
    entries = [{"path": str(path), "strength": each} for path, each in zip((first, second), strengths, strict=True)]
    wanted = read_tensors(baking(base, *entries, name="wanted").path)
    given = [weighted(path, each) for path, each in zip((first, second), strengths, strict=True)]
    both = combining(*given, formula=method)
    assert not any("te1" in name for name in read_network(both.path)), "its weight is 0"
    found = read_tensors(baking(base, both.path, name="found").path)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=2e-5)


def test_every_kind_is_summed_and_names_of_other_programs_too(tmp_path: Path, combining: Combining) -> None:
    ldm = "lora_unet_" + unet_to_ldm("down_blocks.0.resnets.0.conv1", SD1_LAYOUT).replace(".", "_")
    a = {CONV: {"diff": drawn(6, 4, 3, 3), "diff_b": torch.ones(6)}, "lora_unet_mid_block_resnets_0_norm1": norm(1)}
    b = {
        ldm: {"lokr_w1": drawn(2, 2), "lokr_w2": drawn(3, 2, 3, 3, seed=1)},
        "lora_unet_middle_block_0_in_layers_0": norm(2),
    }
    paths = [stored(tmp_path, "a", a), stored(tmp_path, "b", b)]
    found = read_network(combining(*(weighted(path, "0.5") for path in paths)).path)
    first, second = (read_network(path) for path in paths)
    assert found.keys() == {CONV, "lora_unet_mid_block_resnets_0_norm1"}
    wanted = 0.5 * first[CONV].undecomposed() + 0.5 * second[ldm].undecomposed().reshape(6, 4, 3, 3)
    assert found[CONV].algorithm == "full difference", "it changes a bias"
    torch.testing.assert_close(found[CONV].undecomposed(), wanted)
    assert torch.equal(found[CONV].bias_delta(), torch.full((6,), 0.5))
    assert torch.equal(found["lora_unet_mid_block_resnets_0_norm1"].tensors["w_norm"], torch.full((5,), 1.5))
    dropped = combining(*paths, biases="drop", rank=6, name="dropped")
    assert read_network(dropped.path)[CONV].algorithm == "LoRA" and 0 < dropped.error < 1


def norm(value: float) -> dict[str, Tensor]:
    return {"w_norm": torch.full((5,), value), "b_norm": torch.full((5,), value)}


def test_words_and_header(tmp_path: Path, combining: Combining) -> None:
    paths = [
        stored(
            tmp_path,
            each,
            {LINEAR: factors(1, (4, 3))},
            words={f"bundle_emb.{each}.string_to_param.*": torch.full((1, 768), 0.1).half()},
            metadata={**SD1, "modelspec.trigger_phrase": each},
        )
        for each in ("cat", "dog")
    ]
    path = combining(*paths).path
    found, metadata = read_tensors(path), read_header(path)[1]
    assert {name for name in found if name.startswith("bundle_emb")} == {
        "bundle_emb.cat.string_to_param.*",
        "bundle_emb.dog.string_to_param.*",
    }
    assert metadata["modelspec.trigger_phrase"] == "cat, dog" and metadata["ss_output_name"] == "both"
    assert metadata["modelspec.merged_from"] == "cat, dog" and metadata["ss_base_model_version"] == "sd_v1"
    again = stored(
        tmp_path, "again", {LINEAR: factors(1, (4, 3))}, words={"bundle_emb.cat.string_to_param.*": torch.ones(1, 768)}
    )
    with pytest.raises(MergeError, match=r"cat.safetensors and again.safetensors both bring the word 'cat'"):
        combining(*paths, again, name="three")


@pytest.mark.parametrize("method", ["svd", "concat"])
def test_lineage_and_rebuilding(method: str, two: list[Path], combining: Combining, tmp_path: Path) -> None:
    first = combining(weighted(two[0], "0.5"), two[1], formula=method, dtype="fp16").path
    second = combining(first, two[1], name="second", formula=method, rank=2, dtype="bf16").path
    tree = lineage(read_header(second)[1])
    lines = lineage_lines("second", tree)
    assert [line.split(" [")[0] for line in lines] == [
        f"second: Combine LoRAs, 1 | 1, {'concat' if method == 'concat' else 'rank 2'}",
        "|-- both",
        "|   |-- a",
        "|   `-- b",
        "`-- b",
    ]
    two[1].rename(tmp_path / "renamed.safetensors")
    for path in (first, second):
        again = tmp_path / f"again {path.name}"
        result = rebuild(path, [tmp_path], again, JobControl(), lambda event: event)
        assert result.is_same is True and result.tool == "combine" and again.read_bytes() == path.read_bytes()


def test_a_file_that_does_not_tell_its_family(tmp_path: Path, two: list[Path], combining: Combining) -> None:
    silent = stored(tmp_path, "silent", {LINEAR: factors(1, (12, 9))}, metadata={})
    events: list[Event] = []
    combining(two[0], silent, events=events)
    assert [event.text for event in events if isinstance(event, Warned)] == [
        "silent.safetensors does not tell for which models it is; taken for sd1."
    ]


def refused(folder: Path) -> dict[str, tuple[Path, str, str]]:
    """name: (file, method, message)."""
    dora = {**factors(1, (12, 9)), "dora_scale": torch.ones(1, 9)}
    loha = {f"hada_w{n}_{part}": torch.ones(1, 1) for n in (1, 2) for part in "ab"}
    nan = {**factors(1, (12, 9)), "alpha": torch.tensor(float("nan"))}
    cut = stored(folder, "cut", {LINEAR: factors(1, (12, 9))})
    cut.write_bytes(cut.read_bytes()[:-5])
    return {
        "dora": (stored(folder, "dora", {LINEAR: dora}), "svd", "dora.safetensors is a DoRA in 1 layers"),
        "loha": (stored(folder, "loha", {LINEAR: loha}), "concat", "loha.safetensors holds LoHa, which has no factors"),
        "nan": (stored(folder, "nan", {LINEAR: nan}), "svd", "nan.safetensors holds NaN or infinite values"),
        "cut": (cut, "svd", "truncated"),
        "family": (
            stored(folder, "family", {LINEAR: factors(1, (12, 9))}, metadata={"ss_v2": "True"}),
            "svd",
            "different families of models: a.safetensors is sd1, family.safetensors is sd2",
        ),
        "shape": (
            stored(folder, "shape", {LINEAR: factors(1, (12, 8))}),
            "concat",
            r"the layer .*_proj_in has the shapes \(12, 9\), \(12, 8\)",
        ),
        "layer": (
            stored(folder, "layer", {"lora_unet_nowhere": factors(1, (2, 2))}),
            "svd",
            "layer.safetensors has 1 layers that models of sd1 do not have: lora_unet_nowhere",
        ),
        "twice": (
            stored(
                folder, "twice", {name: factors(1, (12, 9)) for name in (LINEAR, "lora_unet_middle_block_1_proj_in")}
            ),
            "svd",
            "twice, under two names",
        ),
    }


@pytest.mark.parametrize("what", ["dora", "loha", "nan", "cut", "family", "shape", "layer", "twice"])
def test_what_is_refused(what: str, two: list[Path], combining: Combining, tmp_path: Path) -> None:
    path, method, message = refused(tmp_path)[what]
    with pytest.raises((MergeError, FormatError), match=message):
        combining(two[0], path, formula=method)
    assert not (tmp_path / "out").exists()


def test_mistakes_in_settings(two: list[Path], combining: Combining, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="networks: are none"):
        combining()
    with pytest.raises(MergeError, match="The weights are 0 everywhere"):
        combining(weighted(two[0], "0"))
    with pytest.raises(MergeError, match="names no blocks"):
        combining(weighted(two[0], "1, IN12=0"))
    with pytest.raises(OutputError, match="already exists"):
        combining(two[0], name="a", folder=str(tmp_path))
    with pytest.raises(OutputError, match="one of the files"):
        combining(two[0], name="a", folder=str(tmp_path), overwrite=True)
