"""Smaller LoRAs: what is left out is told, and nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.config.tools import load_tool
from extensions_lib.control import JobControl
from extensions_lib.errors import FormatError, MergeError, OutputError
from extensions_lib.formats.lineage import lineage
from extensions_lib.formats.network import read_network
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic
from extensions_lib.merge.lora_files import ERROR, WrittenLora
from extensions_lib.merge.recipe import own_key
from extensions_lib.merge.resize import resize

from .conftest import drawn, small_lora

LAYERS = (("lora_unet_a", 20, 30), ("lora_unet_b", 12, 7))
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


@pytest.fixture
def resizing(tmp_path: Path) -> Callable[..., WrittenLora]:
    """resizing(file, ...) -> what was written, in float32."""

    def run(network: Path, **settings: Any) -> WrittenLora:
        table = {"name": "small", "network": str(network), "folder": str(tmp_path), "dtype": "fp32"}
        return resize(load_tool("resize", {**table, **settings}), JobControl(), lambda event: event)

    return run


def test_nearest_of_the_rank_and_its_error(resizing: Callable[..., WrittenLora], tmp_path: Path) -> None:
    path = small_lora(tmp_path, "given.safetensors", *LAYERS)
    found = resizing(path, rank=1)
    small, missing, whole = read_network(found.path), 0.0, 0.0
    for name, layer in read_network(path).items():
        left, sizes, right = torch.linalg.svd(layer.undecomposed(), full_matrices=False)
        nearest = left[:, :1] * sizes[:1] @ right[:1]
        torch.testing.assert_close(small[name].undecomposed(), nearest, rtol=1e-4, atol=1e-5)
        missing, whole = missing + float(sizes[1:].square().sum()), whole + float(sizes.square().sum())
    assert found.error == pytest.approx((missing / whole) ** 0.5, rel=1e-4) and found.ranks == (1, 1)


def test_the_header(resizing: Callable[..., WrittenLora], tmp_path: Path) -> None:
    path = small_lora(tmp_path, "given.safetensors", *LAYERS)
    found = resizing(path, rank=1)
    metadata = read_header(found.path)[1]
    assert json.loads(metadata[own_key("resize")])["settings"]["network"] == "given.safetensors"
    assert float(metadata[ERROR]) == pytest.approx(found.error, abs=1e-6)
    assert metadata["ss_network_dim"] == "1" and metadata["modelspec.title"] == "given.safetensors"
    assert metadata["ss_output_name"] == "small"
    again = read_header(resizing(found.path, name="again", criterion="energy", threshold=0.5).path)[1]
    tree = lineage(again)
    assert (tree["formula"], tree["multiplier"]) == ("Resize a LoRA", "rank 16, energy 0.5")
    (parent,) = tree["models"]
    assert parent["name"] == "small" and parent["made_from"]["models"][0]["name"] == "given"
    assert [key for key in again if key.startswith("train_studio.resize")] == ["train_studio.resize"]


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 8},
        {"rank": 8, "criterion": "energy", "threshold": 1.0},
        {"rank": 8, "criterion": "frobenius", "threshold": 1.0},
        {"rank": 8, "criterion": "cumulative", "threshold": 1.0},
    ],
)
def test_all_of_it_stays_the_same(
    settings: dict[str, Any], resizing: Callable[..., WrittenLora], tmp_path: Path
) -> None:
    path = small_lora(tmp_path, "given.safetensors", *LAYERS)
    found = resizing(path, **settings)
    assert found.error < 1e-5 and found.ranks == (2, 2)
    for name, layer in read_network(path).items():
        torch.testing.assert_close(
            read_network(found.path)[name].undecomposed(), layer.undecomposed(), rtol=1e-4, atol=1e-5
        )


OTHER_KINDS = {
    "loha": {
        **{f"hada_w{n}_a": drawn(6, 2, seed=n) for n in (1, 2)},
        **{f"hada_w{n}_b": drawn(2, 36, seed=n) for n in (1, 2)},
    },
    "lokr": {"lokr_w1": drawn(2, 2), "lokr_w2": drawn(3, 2, 3, 3, seed=1), "alpha": torch.tensor(9.0)},
    "lokr of factors": {
        "lokr_w1": drawn(2, 2), "lokr_w2_a": drawn(3, 1), "lokr_w2_b": drawn(1, 18), "alpha": torch.tensor(0.5)
    },
    "tucker": {
        "lora_up.weight": drawn(6, 2, 1, 1),
        "lora_down.weight": drawn(2, 4, 1, 1),
        "lora_mid.weight": drawn(2, 2, 3, 3),
        "alpha": torch.tensor(3.0),
    },
    "full difference": {"diff": drawn(6, 4, 3, 3)},
    "scale": {"lora_up.weight": drawn(6, 2, 1, 1), "lora_down.weight": drawn(2, 4, 3, 3), "scale": torch.tensor(2.0)},
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_every_kind_whose_change_needs_no_base(kind: str, resizing: Callable[..., WrittenLora], tmp_path: Path) -> None:
    """At full rank it is the same change, as factors of a convolution; at rank 1 the error is that of its SVD."""
    tensors = {f"{CONV}.{suffix}": tensor for suffix, tensor in OTHER_KINDS[kind].items()}
    path = write_atomic(tmp_path / "given.safetensors", tensors, {"ss_network_args": "{}"})
    base = drawn(6, 4, 3, 3, seed=7)
    wanted = read_network(path)[CONV].delta(base)
    found = resizing(path, rank=6)
    change = read_network(found.path)[CONV]
    assert found.error < 1e-5 and change.algorithm == "LoRA" and change.shape == (6, 4, 3, 3)
    torch.testing.assert_close(change.delta(base), wanted, rtol=1e-4, atol=1e-4)
    assert "ss_network_args" not in read_header(found.path)[1]
    sizes = torch.linalg.svdvals(wanted.flatten(1))
    one = resizing(path, rank=1, name="one")
    assert one.error == pytest.approx(float(sizes[1:].norm() / sizes.norm()), abs=1e-4)


def test_biases_and_norms(resizing: Callable[..., WrittenLora], tmp_path: Path) -> None:
    tensors = {
        "lora_unet_n.w_norm": drawn(5),
        "lora_unet_n.b_norm": drawn(5, seed=1),
        "lora_unet_f.diff": drawn(6, 4),
        "lora_unet_f.diff_b": torch.ones(6),
        "lora_unet_g.diff": torch.ones(6, 4),
        "lora_unet_g.diff_b": torch.zeros(6),
    }
    path = write_atomic(tmp_path / "given.safetensors", tensors, {})
    kept = resizing(path, rank=6)
    found = read_tensors(kept.path)
    assert kept.error < 1e-6 and kept.ranks == (4,) and kept.num_others == 2
    for name in ("lora_unet_n.w_norm", "lora_unet_n.b_norm", "lora_unet_f.diff", "lora_unet_f.diff_b"):
        assert torch.equal(found[name], tensors[name])
    dropped = resizing(path, rank=6, biases="drop", name="dropped")
    lengths = {name: float(tensor.square().sum()) for name, tensor in tensors.items()}
    assert dropped.error == pytest.approx((lengths["lora_unet_f.diff_b"] / sum(lengths.values())) ** 0.5, rel=1e-4)
    assert read_network(dropped.path)["lora_unet_f"].algorithm == "LoRA"
    assert torch.equal(read_tensors(dropped.path)["lora_unet_n.w_norm"], tensors["lora_unet_n.w_norm"])


def test_convolutions_bundled_words_and_what_changes_nothing(
    resizing: Callable[..., WrittenLora], tmp_path: Path
) -> None:
    tensors = {
        "lora_unet_c.lora_down.weight": drawn(3, 4, 3, 3),
        "lora_unet_c.lora_up.weight": drawn(5, 3, 1, 1, seed=1),
        "lora_unet_z.lora_down.weight": torch.ones(3, 4),
        "lora_unet_z.lora_up.weight": torch.zeros(5, 3),
        "bundle_emb.word.clip_l": torch.ones(2, 8),
    }
    path = write_atomic(tmp_path / "given.safetensors", tensors, {})
    found = resizing(path, rank=3, criterion="ratio", threshold=1e6)
    assert found.error < 1e-5 and sorted(found.ranks) == [1, 3]
    written = read_network(found.path)
    torch.testing.assert_close(
        written["lora_unet_c"].undecomposed(), read_network(path)["lora_unet_c"].undecomposed(), rtol=1e-4, atol=1e-4
    )
    assert not written["lora_unet_z"].undecomposed().any()
    assert torch.equal(read_tensors(found.path)["bundle_emb.word.clip_l"], torch.ones(2, 8))


def test_what_is_refused(resizing: Callable[..., WrittenLora], tmp_path: Path) -> None:
    path = small_lora(tmp_path, "given.safetensors", *LAYERS)
    tensors = read_tensors(path)
    dora = {**tensors, "lora_unet_a.dora_scale": torch.ones(1, 30)}
    with pytest.raises(MergeError, match=r"d.safetensors is a DoRA in 1 layers \(lora_unet_a\).* convert-lora"):
        resizing(write_atomic(tmp_path / "d.safetensors", dora, {}))
    norms = {"lora_unet_n.w_norm": torch.ones(3), "lora_unet_n.b_norm": torch.ones(3)}
    with pytest.raises(MergeError, match="no layer that could have factors"):
        resizing(write_atomic(tmp_path / "n.safetensors", norms, {}))
    with pytest.raises(OutputError, match="already exists"):
        resizing(path, name="given")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FormatError, match="truncated"):
        resizing(tmp_path / "cut.safetensors")
    whole = {"lora_unet_f.diff": torch.full((2, 2), 1e6), "lora_unet_f.diff_b": torch.ones(2)}
    with pytest.raises(MergeError, match="too large for fp16: lora_unet_f.diff"):
        resizing(write_atomic(tmp_path / "large.safetensors", {**tensors, **whole}, {}), dtype="fp16")
    tensors["lora_unet_b.lora_up.weight"] = torch.full((12, 2), float("inf"))
    broken = tmp_path / "broken.pt"
    torch.save(tensors, broken)
    with pytest.raises(MergeError, match="lora_unet_b"):
        resizing(broken)
    assert not (tmp_path / "small.safetensors").exists()
