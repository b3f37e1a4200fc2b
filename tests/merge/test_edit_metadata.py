"""The metadata tool: other words over the same bytes, in a new file or in place."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.cli.main import main
from extensions_lib.config.tools import load_tool
from extensions_lib.control import JobControl
from extensions_lib.errors import ConfigError, DiskFullError, FormatError, JobStopped, OutputError
from extensions_lib.events import Warned
from extensions_lib.formats import atomic
from extensions_lib.formats.hashes import data_section_sha256
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic
from extensions_lib.merge.tools import ToolResult, run_tool

from .conftest import small_model

ABOUT = {"ss_v2": "False", "ss_training_comment": "private", "sshs_model_hash": "wrong", "note": "x"}
TENSORS = {"lora_unet_a.lora_down.weight": torch.ones(2, 3), "lora_unet_a.lora_up.weight": torch.zeros(3, 2).half()}


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return write_atomic(tmp_path / "cat.safetensors", TENSORS, ABOUT)


def edit(path: Path, events: Any = None, control: Any = None, **settings: Any) -> ToolResult:
    table = {"name": "new", "file": str(path), "folder": str(path.parent / "out"), **settings}
    emit = (events if events is not None else []).append
    return run_tool(load_tool("metadata", table), control or JobControl(), emit)


def test_fields_pairs_and_removal_over_the_same_bytes(lora: Path) -> None:
    result = edit(
        lora, title="Cat", license="CC0", tags="cat, pet", trigger_phrase="zcat", remove="note, ss_training_*",
        pairs="url=https://a.example/?b=c\n\n ss_v2 = True ",
    )  # fmt: skip
    assert read_header(result.path)[1] == {
        "ss_v2": "True",
        "sshs_model_hash": data_section_sha256(lora),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": "Cat",
        "modelspec.license": "CC0",
        "modelspec.tags": "cat, pet",
        "modelspec.trigger_phrase": "zcat",
        "url": "https://a.example/?b=c",
    }
    assert data_section_sha256(result.path) == data_section_sha256(lora) and result.kind == "lora"
    assert "Changed: ss_v2, sshs_model_hash." in result.text and "Taken out: note, ss_training_comment." in result.text
    written = read_header(result.path)[1]
    again = write_atomic(lora.parent / "again.safetensors", TENSORS, written)
    assert again.read_bytes() == result.path.read_bytes()


def test_private_first_then_what_is_given(lora: Path) -> None:
    found = read_header(edit(lora, private=True, description="a cat").path)[1]
    assert set(found) == {"ss_v2", "sshs_model_hash", "modelspec.description", "modelspec.sai_model_spec"}


def test_in_place_only_when_allowed(lora: Path) -> None:
    before = lora.read_bytes()
    with pytest.raises(OutputError, match="already exists and was not touched"):
        edit(lora, name="cat", folder=str(lora.parent), title="x")
    assert lora.read_bytes() == before
    assert edit(lora, name="cat", folder=str(lora.parent), overwrite=True, title="x").path == lora
    assert read_header(lora)[1]["modelspec.title"] == "x" and set(read_tensors(lora)) == set(TENSORS)


def test_a_file_of_another_order_keeps_its_bytes(tmp_path: Path) -> None:
    """Another program's: names in an order of their own, a header without blanks."""
    header = (
        b'{"z":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}'
    )
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(range(12)))
    result = edit(path, title="x")
    assert result.path.read_bytes().endswith(bytes(range(12)))
    assert list(read_header(result.path)[0]) == ["z", "a"]
    assert torch.equal(read_tensors(result.path)["a"], read_tensors(path)["a"])


def test_nothing_to_take_out_is_said(lora: Path) -> None:
    events: list[Any] = []
    result = edit(lora, events, remove="ss_epoch, note")
    assert [e.text for e in events if isinstance(e, Warned)] == ["There was nothing to take out for ss_epoch."]
    assert "Nothing changed." in edit(result.path, name="same").text


def test_mistakes(lora: Path, tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "a.pt")
    with pytest.raises(FormatError, match="only .safetensors files have"):
        edit(tmp_path / "a.pt")
    (tmp_path / "cut.safetensors").write_bytes(lora.read_bytes()[:-1])
    with pytest.raises(FormatError, match="is truncated"):
        edit(tmp_path / "cut.safetensors")
    with pytest.raises(ConfigError, match=r"pairs: has 'no sign', accepted are lines key=value"):
        edit(lora, pairs="a=b\nno sign")
    assert not (tmp_path / "out").exists()


def test_stop_and_a_full_disk_leave_the_old_file(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, control = lora.read_bytes(), JobControl()
    control.request_stop()
    with pytest.raises(JobStopped):
        edit(lora, control=control, name="cat", folder=str(lora.parent), overwrite=True, title="x")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "_write_through", full)
    with pytest.raises(DiskFullError):
        edit(lora, name="cat", folder=str(lora.parent), overwrite=True, title="x")
    assert lora.read_bytes() == before and [each.name for each in lora.parent.iterdir()] == ["cat.safetensors"]


def test_the_command(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["metadata", str(lora), "--name", "pub", "--folder", str(lora.parent), "--private", "--title", "Cat"]
    assert main(command) == 0
    assert "Taken out: note, ss_training_comment." in capsys.readouterr().out
    assert main(command) == 6


def test_a_checkpoint_takes_its_description_along(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.safetensors", small_model(0), {})
    path.with_suffix(".yaml").write_text("model: {}")
    result = edit(path, title="A")
    assert result.beside == (tmp_path / "out" / "new.yaml",) and result.beside[0].read_text() == "model: {}"
    assert edit(path, title="A", name="a", folder=str(tmp_path), overwrite=True).beside == ()
