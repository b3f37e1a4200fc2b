"""The container, against the safetensors library, and damaged in every way."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file

from extensions_lib.errors import DiskFullError, FormatError, ModelError, NonFiniteLossError, OutputError
from extensions_lib.formats import safetensors_io
from extensions_lib.formats.safetensors_io import (
    TensorInfo,
    autov1,
    data_hash,
    data_section_sha256,
    file_sha256,
    read_header,
    read_tensors,
    write_atomic,
)


def every_dtype() -> dict[str, torch.Tensor]:
    values = torch.arange(6.0).reshape(2, 3)
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int16]
    dtypes += [torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]
    tensors = {f"t.{str(dtype).split('.')[1]}": values.to(dtype) for dtype in dtypes}
    return {
        **tensors,
        "scalar": torch.tensor(8.0),
        "v_pred": torch.tensor([]),
        "z.last": values.clone(),
        "a.first": values.half(),
    }


def test_the_bytes_are_the_librarys(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.safetensors", every_dtype(), {"format": "pt"})
    assert path.read_bytes() == save(every_dtype(), {"format": "pt"})


def test_read_back(tmp_path: Path) -> None:
    tensors = every_dtype()
    path = write_atomic(tmp_path / "a.safetensors", tensors, {"key": "value"})
    back = read_tensors(path)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        assert torch.equal(back[name].double(), tensor.double()), name


def test_the_header_alone(tmp_path: Path) -> None:
    tensors = {"w": torch.zeros(2, 3, dtype=torch.float16), "alpha": torch.tensor(4.0)}
    path = write_atomic(tmp_path / "a.safetensors", tensors, {"ss_v2": "False"})
    infos, metadata = read_header(path)
    assert infos == {"w": TensorInfo("F16", (2, 3)), "alpha": TensorInfo("F32", ())}
    assert metadata == {"ss_v2": "False"}


def test_a_file_without_metadata(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, {})
    assert read_header(path)[1] == {}
    assert path.read_bytes()[8:].startswith(b'{"w"')


def test_tied_sliced_and_transposed_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "base": base,
        "tied": base,
        "slice": base[1:],
        "transposed": base.T,
        "grad": base.clone().requires_grad_(),
    }
    back = read_tensors(write_atomic(tmp_path / "a.safetensors", tensors, {}))
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor), name


def test_tensors_do_not_depend_on_the_file(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.safetensors", {"w": torch.ones(4)}, {})
    tensor = read_tensors(path)["w"]
    with path.open("r+b") as file:
        file.seek(-16, os.SEEK_END)
        file.write(bytes(16))
    assert torch.equal(tensor, torch.ones(4))


def test_text_that_utf8_cannot_hold_becomes_a_question_mark(tmp_path: Path) -> None:
    """A file name on Linux may be no valid text; it must not cost the user the result."""
    metadata = {"ss_dataset_dirs": "10_caf\udce9", "plain": "\u00e9"}
    path = write_atomic(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, metadata)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"ss_dataset_dirs": "10_caf?", "plain": "\u00e9"}


def test_metadata_must_be_text(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="must be text, not bool"):
        write_atomic(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, {"ss_v2": False})


def test_existing_names_are_kept(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, {})
    with pytest.raises(OutputError, match="already exists"):
        write_atomic(path, {"w": torch.ones(1)}, {})
    assert read_tensors(path)["w"] == 0
    write_atomic(path, {"w": torch.ones(1)}, {}, overwrite=True)
    assert read_tensors(path)["w"] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    tensors = {"good": torch.ones(2), "steps": torch.ones(2, dtype=torch.int64), "lora_up": torch.tensor([1.0, value])}
    with pytest.raises(NonFiniteLossError, match="the tensor lora_up holds NaN or infinite"):
        write_atomic(tmp_path / "a.safetensors", tensors, {}, require_finite=True)
    assert list(tmp_path.iterdir()) == []
    write_atomic(tmp_path / "a.safetensors", tensors, {})


def test_a_full_disk(monkeypatch, tmp_path: Path) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DiskFullError, match="no room left"):
        write_atomic(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_reads_back_differently_gets_no_name(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(safetensors_io, "read_header", lambda path: ({"w": TensorInfo("F32", (2,))}, {}))
    with pytest.raises(OutputError, match="read back differs"):
        write_atomic(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, {})
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_form_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(OutputError, match="the tensor c \\(torch.complex64, cpu\\)"):
        write_atomic(path, {"c": torch.zeros(1, dtype=torch.complex64)}, {})
    with pytest.raises(OutputError, match="the tensor m \\(torch.float32, meta\\)"):
        write_atomic(path, {"m": torch.zeros(1, device="meta")}, {})
    with pytest.raises(OutputError, match="no tensors"):
        write_atomic(path, {}, {})


def good_bytes() -> bytes:
    return save({"w": torch.zeros(4), "v": torch.ones(2, 2)}, {"a": "b"})


def with_header(header: object, data: bytes = bytes(16)) -> bytes:
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


DAMAGE = {
    "empty": (b"", "is empty"),
    "short": (b"\x08\x00", "truncated, or another kind"),
    "header cut": (good_bytes()[:40], "truncated, or another kind"),
    "data cut": (good_bytes()[:-1], "is truncated: it has"),
    "html": (b"<!doctype html><html>not found</html>", "truncated, or another kind"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "truncated, or another kind"),
    "no json": ((16).to_bytes(8, "little") + b"\xff" * 16, "header cannot be read"),
    "list": (with_header([1, 2]), "header is not a table"),
    "no shape": (with_header({"w": {"dtype": "F32"}}), "entry of tensor 'w'"),
    "text": (with_header({"w": "F32"}), "entry of tensor 'w'"),
    "wrong size": (with_header({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}}), "has 16 bytes"),
    "bad metadata": (
        with_header({"__metadata__": 3, "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        "metadata is not a table",
    ),
    "negative": (with_header({"w": {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}}), "other numbers than"),
    "text offsets": (with_header({"w": {"dtype": "F32", "shape": [4], "data_offsets": ["0", "16"]}}), "other numbers"),
    "infinity": (with_header({"w": {"dtype": "F32", "shape": [math.inf], "data_offsets": [0, 16]}}), "other numbers"),
    "fractions": (with_header({"w": {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}}), "other numbers"),
    "gap": (with_header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}), "overlap, or there are gaps"),
    "overlap": (
        with_header({name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "wv"}),
        "overlap, or there are gaps",
    ),
    "bytes behind": (
        with_header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
        "8 bytes follow its last tensor",
    ),
    "deep": ((8 * 10_000).to_bytes(8, "little") + b"[" * 8 * 10_000, "header cannot be read"),
    "no tensors": (with_header({"__metadata__": {}}), "holds no tensors"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files(tmp_path: Path, damage: str) -> None:
    content, text = DAMAGE[damage]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    for read in (read_header, read_tensors):
        with pytest.raises(FormatError, match=text) as caught:
            read(path)
        assert str(path) in caught.value.message and caught.value.hint


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_tensors(tmp_path / "a.safetensors")


def test_the_data_hash_is_independent_of_metadata(tmp_path: Path) -> None:
    tensors = every_dtype()
    digest = data_hash(tensors)
    first = write_atomic(tmp_path / "a.safetensors", tensors, {"sshs_model_hash": digest})
    save_file(tensors, tmp_path / "b.safetensors", {"other": "text of another length"})
    assert data_section_sha256(first) == data_section_sha256(tmp_path / "b.safetensors") == digest
    assert file_sha256(first) != file_sha256(tmp_path / "b.safetensors")
    assert data_hash({**tensors, "scalar": torch.tensor(8.5)}) != digest


def test_known_hashes(tmp_path: Path) -> None:
    """sha256 of 'abc' is in FIPS 180-2; AutoV1 looks at 64 KiB from 1 MiB on, or at nothing."""
    small = tmp_path / "small"
    small.write_bytes(b"abc")
    assert file_sha256(small) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert autov1(small) == "e3b0c442"
    large = tmp_path / "large"
    large.write_bytes(bytes(0x100000) + b"abc")
    assert autov1(large) == "ba7816bf"
    large.write_bytes(b"x" * 0x100000 + b"y" * 0x10000 + b"tail")
    block = tmp_path / "block"
    block.write_bytes(b"y" * 0x10000)
    assert autov1(large) == file_sha256(block)[:8]
