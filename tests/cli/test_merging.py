"""merge, rebuild, and the lineage that inspect shows."""

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
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic

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
    assert f"written: {path} (0.00 GB)" in capsys.readouterr().out
    found = read_tensors(path)
    assert (found[INPUT] == 0.25).all()
    assert main(command) == 6
    assert "already exists" in capsys.readouterr().err

    again = out / "again.safetensors"
    rebuild = ["rebuild", str(path), "--models", str(tmp_path), "--output", str(again)]
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
    with pytest.raises(SystemExit, match="1 weights for 3 models; one for each after A"):
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
