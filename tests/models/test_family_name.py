from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from extensions_lib.errors import ModelError
from extensions_lib.formats.safetensors_io import write_atomic
from extensions_lib.models.family_name import family_name

UNET = "model.diffusion_model."
INPUT = {UNET + "input_blocks.0.0.weight": (8, 4, 3, 3)}
SD2_TEXT = {"cond_stage_model.model.token_embedding.weight": (4, 4)}
SDXL_TEXT = {"conditioner.embedders.1.model.token_embedding.weight": (4, 4)}
V_YAML = "model:\n  params:\n    parameterization: v\n"
EPS_YAML = "model:\n  params:\n    parameterization: eps\n"


@pytest.mark.parametrize(
    ("shapes", "yaml", "name"),
    [
        (INPUT, None, "sd1"),
        (INPUT, V_YAML, "sd1_v"),
        ({**INPUT, **SD2_TEXT}, None, "sd2_v"),
        ({**INPUT, **SD2_TEXT}, V_YAML, "sd2_v"),
        ({**INPUT, **SD2_TEXT}, EPS_YAML, "sd2"),
        ({**INPUT, **SDXL_TEXT}, None, "sdxl"),
        ({**INPUT, **SDXL_TEXT, "v_pred": (0,)}, None, "sdxl_v"),
        ({**INPUT, UNET + "label_emb.0.0.weight": (4, 4)}, None, "sdxl"),
    ],
)
def test_a_header_a_marker_and_a_yaml_tell_it(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], yaml: str | None, name: str
) -> None:
    path = write_atomic(tmp_path / "m.safetensors", {key: torch.zeros(size) for key, size in shapes.items()}, {})
    if yaml:
        path.with_suffix(".yaml").write_text(yaml, encoding="utf-8")
    assert family_name(path) == name


def test_a_yaml_that_changes_is_seen(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "m.safetensors", {key: torch.zeros(size) for key, size in INPUT.items()}, {})
    assert family_name(path) == "sd1"
    path.with_suffix(".yaml").write_text(V_YAML, encoding="utf-8")
    assert family_name(path) == "sd1_v"


@pytest.mark.parametrize(("text", "name"), [({}, "sd1"), (SD2_TEXT, "sd2_v"), (SDXL_TEXT, "sdxl")])
def test_a_pickle_is_told_by_its_names_and_not_unpickled(
    tmp_path: Path, text: dict[str, tuple[int, ...]], name: str
) -> None:
    path = tmp_path / "m.ckpt"
    torch.save({"state_dict": {key: torch.zeros(size) for key, size in {**INPUT, **text}.items()}}, path)
    assert family_name(path) == name
    with zipfile.ZipFile(tmp_path / "evil.ckpt", "w") as archive:
        archive.writestr("evil/data.pkl", b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    assert family_name(tmp_path / "evil.ckpt") == "sd1"


def test_what_is_no_base_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.ckpt").write_bytes(b"\x80\x04.")
    embedding = write_atomic(tmp_path / "e.safetensors", {"e": torch.zeros(2, 768)}, {})
    for path in (tmp_path / "m.ckpt", tmp_path / "none.safetensors", embedding):
        with pytest.raises(ModelError):
            family_name(path)


def test_the_practice_model_is_of_the_first_family(practice_model: Path) -> None:
    assert family_name(practice_model) == "sd1"
