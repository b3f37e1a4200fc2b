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
from extensions_lib.errors import FormatError, MergeError
from extensions_lib.formats.lora import read_lora
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic
from extensions_lib.merge.ranks import Reduced
from extensions_lib.merge.resize import OWN_RESIZE, resize

from .conftest import small_lora

LAYERS = (("lora_unet_a", 20, 30), ("lora_unet_b", 12, 7))


@pytest.fixture
def resizing(tmp_path: Path) -> Callable[..., Reduced]:
    """resizing(file, ...) -> what was written, in float32."""

    def run(network: Path, **settings: Any) -> Reduced:
        table = {"name": "small", "network": str(network), "folder": str(tmp_path), "dtype": "fp32"}
        return resize(load_tool("resize", {**table, **settings}), JobControl(), lambda event: event)

    return run


def test_nearest_of_the_rank_and_its_error(resizing: Callable[..., Reduced], tmp_path: Path) -> None:
    path = small_lora(tmp_path, "given.safetensors", *LAYERS)
    found = resizing(path, rank=1)
    small, missing, whole = read_lora(found.path), 0.0, 0.0
    for name, layer in read_lora(path).items():
        left, sizes, right = torch.linalg.svd(layer.delta(), full_matrices=False)
        nearest = left[:, :1] * sizes[:1] @ right[:1]
        torch.testing.assert_close(small[name].delta(), nearest, rtol=1e-4, atol=1e-5)
        missing, whole = missing + float(sizes[1:].square().sum()), whole + float(sizes.square().sum())
    assert found.error == pytest.approx((missing / whole) ** 0.5, rel=1e-4) and found.ranks == (1, 1)
    metadata = read_header(found.path)[1]
    assert json.loads(metadata[OWN_RESIZE])["error"] == found.error
    assert metadata["ss_network_dim"] == "1" and metadata["modelspec.title"] == "given.safetensors"


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 8},
        {"rank": 8, "criterion": "energy", "threshold": 1.0},
        {"rank": 8, "criterion": "frobenius", "threshold": 1.0},
        {"rank": 8, "criterion": "cumulative", "threshold": 1.0},
    ],
)
def test_all_of_it_stays_the_same(settings: dict[str, Any], resizing: Callable[..., Reduced], tmp_path: Path) -> None:
    path = small_lora(tmp_path, "given.safetensors", *LAYERS)
    found = resizing(path, **settings)
    assert found.error < 1e-5 and found.ranks == (2, 2)
    for name, layer in read_lora(path).items():
        torch.testing.assert_close(read_lora(found.path)[name].delta(), layer.delta(), rtol=1e-4, atol=1e-5)


def test_convolutions_bundled_words_and_what_changes_nothing(resizing: Callable[..., Reduced], tmp_path: Path) -> None:
    tensors = {
        "lora_unet_c.lora_down.weight": torch.randn(3, 4, 3, 3, generator=torch.Generator().manual_seed(0)),
        "lora_unet_c.lora_up.weight": torch.randn(5, 3, 1, 1, generator=torch.Generator().manual_seed(1)),
        "lora_unet_z.lora_down.weight": torch.ones(3, 4),
        "lora_unet_z.lora_up.weight": torch.zeros(5, 3),
        "bundle_emb.word.clip_l": torch.ones(2, 8),
    }
    path = write_atomic(tmp_path / "given.safetensors", tensors, {})
    found = resizing(path, rank=3, criterion="ratio", threshold=1e6)
    assert found.error < 1e-5 and sorted(found.ranks) == [1, 3]
    written = read_lora(found.path)
    torch.testing.assert_close(written["lora_unet_c"].delta(), read_lora(path)["lora_unet_c"].delta())
    assert not written["lora_unet_z"].delta().any()
    assert torch.equal(read_tensors(found.path)["bundle_emb.word.clip_l"], torch.ones(2, 8))


def test_what_is_refused(resizing: Callable[..., Reduced], tmp_path: Path) -> None:
    other = write_atomic(tmp_path / "full.safetensors", {"lora_unet_a.diff": torch.ones(3, 3)}, {})
    with pytest.raises(FormatError, match="full difference"):
        resizing(other)
    path = small_lora(tmp_path, "given.safetensors", *LAYERS)
    tensors = read_tensors(path)
    tensors["lora_unet_b.lora_up.weight"] = torch.full((12, 2), float("inf"))
    broken = tmp_path / "broken.pt"
    torch.save(tensors, broken)
    with pytest.raises(MergeError, match="lora_unet_b"):
        resizing(broken)
    assert not (tmp_path / "small.safetensors").exists()
