"""Files read tensor by tensor, and written while their tensors are made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from extensions_lib.errors import FormatError, ModelError, OutputError
from extensions_lib.formats.hashes import file_sha256
from extensions_lib.formats.safetensors_io import (
    TensorInfo,
    describe_tensor,
    num_bytes,
    read_header,
    read_tensors,
    write_atomic,
)
from extensions_lib.formats.tensor_file import TensorFile, write_tensors_as_made


def tensors() -> dict[str, torch.Tensor]:
    return {
        "b.half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
        "a.single": torch.tensor([1.5, -2.0]),
        "ids": torch.arange(5)[None],
        "brain": torch.ones(3, 1, dtype=torch.bfloat16),
        "v_pred": torch.tensor([]),
        "scale": torch.tensor(4.6),
    }


def written(folder: Path, kind: str) -> Path:
    path = folder / f"model.{kind.split('-')[0]}"
    if kind == "safetensors":
        return write_atomic(path, tensors(), {"format": "pt"})
    torch.save({"state_dict": tensors()}, path, _use_new_zipfile_serialization=kind == "ckpt-zip")
    return path


@pytest.mark.parametrize("kind", ["safetensors", "ckpt-zip", "ckpt-old"])
def test_every_tensor_of_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    with TensorFile(path) as file:
        assert file.metadata == ({"format": "pt"} if kind == "safetensors" else {})
        assert file.infos.keys() == tensors().keys()
        for name, expected in tensors().items():
            found = file.read(name)
            assert file.infos[name] == describe_tensor(expected)
            assert found.dtype == expected.dtype and torch.equal(found, expected), name
        with pytest.raises(KeyError):
            file.read("other")


def test_what_was_read_stays_when_the_file_is_gone(tmp_path: Path) -> None:
    path = written(tmp_path, "safetensors")
    with TensorFile(path) as file:
        found = file.read("b.half")
    path.unlink()
    assert torch.equal(found, tensors()["b.half"])


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    path = written(tmp_path, "safetensors")
    with pytest.raises(ModelError, match="cannot be read"):
        TensorFile(tmp_path / "none.safetensors")
    with TensorFile(path) as file:
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(FormatError, match="became shorter while it was read"):
            [file.read(name) for name in file.infos]
    with pytest.raises(FormatError, match="truncated"):
        TensorFile(path)


def test_a_type_that_torch_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"w":{"dtype":"U64","shape":[1],"data_offsets":[0,8]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(FormatError, match="U64; accepted are BOOL, U8"):
        TensorFile(path)


def test_written_as_made_are_the_same_bytes(tmp_path: Path) -> None:
    expected = write_atomic(tmp_path / "a.safetensors", tensors(), {"format": "pt"})
    infos = {name: describe_tensor(tensor) for name, tensor in tensors().items()}
    made = []

    def make(name: str) -> torch.Tensor:
        made.append(name)
        return tensors()[name]

    path = write_tensors_as_made(tmp_path / "b.safetensors", infos, make, {"format": "pt"})
    assert path.read_bytes() == expected.read_bytes()
    assert sorted(made) == sorted(infos), "each once"
    assert sum(map(num_bytes, infos.values())) == sum(tensor.nbytes for tensor in tensors().values())


def test_what_goes_wrong_leaves_no_file(tmp_path: Path) -> None:
    infos = {"w": TensorInfo("F32", (2,)), "x": TensorInfo("F32", (2,))}

    def fail(name: str) -> torch.Tensor:
        if name == "x":
            raise OutputError("no")
        return torch.zeros(2)

    with pytest.raises(OutputError, match="no"):
        write_tensors_as_made(tmp_path / "a.safetensors", infos, fail, {})
    with pytest.raises(ValueError, match="announced as .*F32.*and is .*F16"):
        write_tensors_as_made(tmp_path / "a.safetensors", infos, lambda name: torch.zeros(2).half(), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["safetensors", "ckpt-zip"])
@pytest.mark.parametrize("order", [list, lambda names: list(names)[::-1], lambda names: ["scale"], lambda names: []])
def test_the_hash_of_a_file_that_is_read_anyway(tmp_path: Path, kind: str, order) -> None:
    path = written(tmp_path, kind)
    told = []
    with TensorFile(path, hashed=True) as file:
        for name in order(file.infos):
            file.read(name)
        assert file.sha256(told.append) == file_sha256(path)
        assert file.sha256() == file_sha256(path), "asked again"
    assert sum(told) <= path.stat().st_size
    with TensorFile(path) as file, pytest.raises(ValueError, match="not opened to be hashed"):
        file.sha256()


def test_a_file_read_in_order_is_not_read_again(tmp_path: Path) -> None:
    path = written(tmp_path, "safetensors")
    told = []
    with TensorFile(path, hashed=True) as file:
        for name in file.infos:
            file.read(name)
        file.sha256(told.append)
    assert told == []


def test_metadata_that_is_known_at_the_end(tmp_path: Path) -> None:
    infos = {"w": TensorInfo("F32", (2,))}
    made = []

    def make(name: str) -> torch.Tensor:
        made.append(name)
        return torch.ones(2)

    def final() -> dict[str, str]:
        assert made == ["w"]
        return {"hash": "abc"}

    path = tmp_path / "a.safetensors"
    write_tensors_as_made(path, infos, make, {"hash": "0" * 30}, final_metadata=final)
    assert read_header(path) == (infos, {"hash": "abc"})
    assert torch.equal(read_tensors(path)["w"], torch.ones(2))
    with pytest.raises(ValueError, match="there is room for"):
        write_tensors_as_made(tmp_path / "b.safetensors", infos, make, {}, final_metadata=lambda: {"hash": "a" * 20})
    assert not (tmp_path / "b.safetensors").exists()
