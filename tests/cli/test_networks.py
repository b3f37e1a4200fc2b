"""bake, extract and resize on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from extensions_lib.cli.main import main
from extensions_lib.formats.network import network_tensors
from extensions_lib.formats.safetensors_io import read_tensors, write_atomic

from ..model_families import FamilyModels

LAYER = "lora_te_text_model_encoder_layers_0_mlp_fc1"
KEY = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"


@pytest.fixture
def network(tmp_path: Path, family_models: FamilyModels) -> Path:
    outputs, inputs = read_tensors(family_models["sd1"])[KEY].shape
    factors = {"lora_up.weight": torch.ones(outputs, 1), "lora_down.weight": torch.ones(1, inputs)}
    return write_atomic(tmp_path / "net.safetensors", network_tensors({LAYER: factors}, torch.float32), {})


def test_bake(tmp_path: Path, network: Path, family_models: FamilyModels, capsys: pytest.CaptureFixture[str]) -> None:
    base = family_models["sd1"]
    command = ["bake", str(network), str(network), "--base", str(base), "--folder", str(tmp_path), "--dtype", "fp32"]
    assert main([*command, "--name", "baked", "--strengths", "1", "0, TE=0.5"]) == 0
    assert "baked.safetensors" in capsys.readouterr().out
    added = read_tensors(tmp_path / "baked.safetensors")[KEY] - read_tensors(base)[KEY].float()
    torch.testing.assert_close(added, torch.full_like(added, 1.5))
    settings = tmp_path / "bake.toml"
    settings.write_text(f'name = "two"\nbase = "{base.as_posix()}"\nnetworks = ["{network.as_posix()}"]\n', "utf-8")
    assert main(["bake", "--settings", str(settings), "--strengths", "2", "--folder", str(tmp_path)]) == 0
    with pytest.raises(SystemExit, match="1 strengths for 2 files"):
        main([*command, "--name", "x", "--strengths", "1"])


def test_mistakes(network: Path, family_models: FamilyModels, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bake", "--base", "b", "--name", "x"]) == 2
    assert "networks: is missing" in capsys.readouterr().err
    assert main(["bake", str(network), "--base", str(family_models["sdxl"]), "--name", "x"]) == 4
    assert f"does not have: {LAYER}" in capsys.readouterr().err


def test_extract(
    tmp_path: Path, network: Path, family_models: FamilyModels, capsys: pytest.CaptureFixture[str]
) -> None:
    base, folder = str(family_models["sd1"]), ["--folder", str(tmp_path)]
    assert main(["bake", str(network), "--base", base, "--name", "baked", "--dtype", "fp32", *folder]) == 0
    command = ["extract", base, str(tmp_path / "baked.safetensors"), "--name", "found", "--rank", "1", *folder]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "1 layers of rank 1" in said and "left out: 0.0" in said
    assert main(command) == 6


def test_resize(tmp_path: Path, network: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["resize", str(network), "--name", "small", "--rank", "1", "--folder", str(tmp_path)]
    assert main(command) == 0
    assert "1 layers of rank 1" in capsys.readouterr().out and (tmp_path / "small.safetensors").is_file()
    assert main([*command, "--criterion", "ratio"]) == 2
    assert "threshold: is 0; for ratio it must be 1 or more" in capsys.readouterr().err
