"""The tools on the command line, and the lineage that inspect shows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from extensions_lib.cli.flags import add_setting_flags, given_settings
from extensions_lib.cli.main import main
from extensions_lib.config.field import settings_of
from extensions_lib.config.merge import MergeConfig
from extensions_lib.config.tools import load_any_tool
from extensions_lib.formats.network import network_tensors
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic
from extensions_lib.jobs.store import create_run_folder

from ..model_families import FamilyModels

LAYER = "lora_te_text_model_encoder_layers_0_mlp_fc1"
KEY = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
SUFFIXES = ("lora_up.weight", "lora_down.weight", "alpha")
INPUT = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    paths = []
    for index, letter in enumerate("abc"):
        tensors = {
            INPUT: torch.full((2, 4, 3, 3), float(index)).half(),
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.ones(6, 768).half(),
            "first_stage_model.quant_conv.weight": torch.ones(4, 4, 1, 1).half(),
            "cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.full((8,), index).half(),
        }
        paths.append(str(write_atomic(tmp_path / f"{letter}.safetensors", tensors, {})))
    return paths


def test_every_setting_but_lists_has_a_flag() -> None:
    parser = argparse.ArgumentParser()
    add_setting_flags(parser, MergeConfig)
    flags = {option for action in parser._actions for option in action.option_strings}
    names = [s.name for s in settings_of(MergeConfig) if s.name not in ("models", "schema_version")]
    assert {f"--{name.replace('_', '-')}" for name in names} <= flags
    assert given_settings(parser.parse_args([]), MergeConfig) == {}
    given = given_settings(parser.parse_args(["--alpha", "0.3", "--seed", "4", "--overwrite"]), MergeConfig)
    assert given == {"alpha": "0.3", "seed": 4, "overwrite": True}


def test_merge_rebuild_and_lineage(tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["merge", *models[:2], "--name", "mixed", "--alpha", "0.25, TE=1", "--folder", str(out)]
    assert main(command) == 0
    path = out / "mixed.safetensors"
    assert f"written: {path} (" in capsys.readouterr().out
    found = read_tensors(path)
    assert (found[INPUT] == 0.25).all()
    assert main(command) == 6
    assert "already exists" in capsys.readouterr().err

    again = out / "again.safetensors"
    rebuild = ["rebuild", str(path), "--models", str(tmp_path), "--name", "again", "--folder", str(out)]
    assert main(rebuild) == 0
    assert f"The bytes are those of {path}." in capsys.readouterr().out
    write_atomic(path, {name: tensor + 1 for name, tensor in found.items()}, read_header(path)[1], overwrite=True)
    assert main([*rebuild, "--overwrite"]) == 7
    assert f"The bytes are not those of {path}." in capsys.readouterr().err

    assert main(["inspect", str(again)]) == 0
    lines = json.loads(capsys.readouterr().out)["lineage"]
    assert [line.split(" [")[0] for line in lines] == ["again: Weighted sum, 0.25, TE=1", "|-- a", "`-- b"]


def test_weights_and_a_settings_file(tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "merge.toml"
    listed = json.dumps(models)
    settings.write_text(f'name = "x"\nmodels = {listed}\nfolder = "{tmp_path.as_posix()}"\ndtype = "bf16"\n', "utf-8")
    assert main(["merge", "--settings", str(settings), "--weights", "0.5", "0.25", "--dtype", "fp32"]) == 0
    found = read_tensors(tmp_path / "x.safetensors")[INPUT]
    assert found.dtype == torch.float32 and (found == 1.0).all()
    with pytest.raises(SystemExit, match="1 weights for 3 models; give one for each after"):
        main(["merge", *models, "--weights", "0.5"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--name", "x"], 2, "models: are 1; weighted_sum takes 2 or more"),
        (["b", "--name", "x", "--density", "2"], 2, "density: is 2.0, accepted are 0.001 to 1"),
        (["none.safetensors", "--name", "x"], 4, "none.safetensors cannot be read"),
        (["b", "--name", "x", "--alpha", "IN12=1"], 4, "names no blocks"),
    ],
)
def test_mistakes(
    arguments: list[str], code: int, said: str, tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [models[1] if argument == "b" else argument for argument in arguments]
    assert main(["merge", models[0], *arguments, "--folder", str(tmp_path)]) == code
    assert said in capsys.readouterr().err


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
    with pytest.raises(SystemExit, match="1 strengths for 2 networks"):
        main([*command, "--name", "x", "--strengths", "1"])


def test_mistakes_of_bake(network: Path, family_models: FamilyModels, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bake", "--base", "b", "--name", "x"]) == 2
    assert "networks: is missing" in capsys.readouterr().err
    assert main(["bake", str(network), "--base", str(family_models["sd2"]), "--name", "x"]) == 4
    assert f"1 layers have another shape ({LAYER})" in capsys.readouterr().err


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


def test_a_run_of_a_tool_begins_again(models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"tool": "merge", "name": "mixed", "models": models[:2], "folder": str(tmp_path / "out")}
    folder = create_run_folder(tmp_path / "runs", load_any_tool(settings))
    assert main(["resume", str(folder.path)]) == 0
    assert "completed in " in capsys.readouterr().out
    assert (tmp_path / "out" / "mixed.safetensors").exists()
    assert main(["resume", str(folder.path)]) != 0
    assert "The job mixed is finished: " in capsys.readouterr().err
    assert main(["resume", str(folder.path), "--max-train-steps", "3"]) == 2
    assert main(["preview", str(folder.path), "--output", str(tmp_path / "x.png")]) != 0
    assert "is the run of 'merge', no training." in capsys.readouterr().err


def test_combine(tmp_path: Path, network: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["combine", str(network), str(network), "--folder", str(tmp_path), "--dtype", "fp32", "--name"]
    assert main([*command, "both", "--weights", "1", "-0.25", "--formula", "concat"]) == 0
    assert "1 layers of rank 2." in capsys.readouterr().out
    assert main([*command, "summed", "--rank", "1"]) == 0
    assert "1 layers of rank 1; left out: 0.00 % of the difference's length." in capsys.readouterr().out
    up, down, alpha = (read_tensors(tmp_path / "both.safetensors")[f"{LAYER}.{s}"] for s in SUFFIXES)
    torch.testing.assert_close(up @ down * alpha / 2, torch.full((len(up), down.shape[1]), 0.75))
    assert main(["inspect", str(tmp_path / "both.safetensors")]) == 0
    lines = json.loads(capsys.readouterr().out)["lineage"]
    assert [line.split(" [")[0] for line in lines] == ["both: Combine LoRAs, 1 | -0.25, concat", "|-- net", "`-- net"]


def test_files(tmp_path: Path, family_models: FamilyModels, capsys: pytest.CaptureFixture[str]) -> None:
    """Pruned, converted to a folder, and looked at."""
    base, folder = str(family_models["sd1"]), ["--folder", str(tmp_path)]
    assert main(["prune", base, "--name", "small", "--vae-dtype", "fp16", *folder]) == 0
    assert "MB became" in capsys.readouterr().out
    assert main(["convert", base, "--name", "made", "--to", "diffusers", *folder]) == 0
    assert f"written: {tmp_path / 'made'} (" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "small.safetensors"), "--check"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["made_by"][0].endswith("(prune)") and facts["problems"] == []
    assert main(["convert", base, "--name", "x", *folder]) == 4
    assert "is a .safetensors file already" in capsys.readouterr().err


def test_convert_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    factors = {f"{name}.lora_A.weight": torch.ones(2, 4), f"{name}.lora_B.weight": torch.ones(6, 2)}
    path = write_atomic(tmp_path / "peft.safetensors", factors, {})
    command = ["convert-lora", str(path), "--name", "own", "--folder", str(tmp_path)]
    assert main(command) == 4
    assert "peft.safetensors does not tell for which models it is" in capsys.readouterr().err
    assert main([*command, "--family", "sd1", "--scale", "0.5"]) == 0
    assert "1 layers of rank 2." in capsys.readouterr().out
    assert set(read_tensors(tmp_path / "own.safetensors")) == {f"{LAYER}.{suffix}" for suffix in SUFFIXES}


def test_paths_that_no_system_takes(tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    long = str(tmp_path / ("x" * 1000))
    assert main(["merge", models[0], models[1], "--name", "x", "--folder", long]) == 6
    assert "File name too long" in capsys.readouterr().err
    assert main(["merge", models[0], "", "--name", "x", "--folder", str(tmp_path)]) == 2
    assert "models[1].path: names no file or folder" in capsys.readouterr().err


def test_files_that_are_not_given_are_called_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extract", "--name", "x"]) == 2
    said = capsys.readouterr().err
    assert "base: is missing" in said and "tuned: is missing" in said
