"""Whole model files: the same tensors after reading and writing, and no pickle that runs code."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from extensions_lib.errors import FormatError, ModelError, NonFiniteLossError, OutputError
from extensions_lib.formats.checkpoint import checkpoint_header, read_checkpoint, write_checkpoint
from extensions_lib.formats.safetensors_io import TensorInfo, write_atomic
from extensions_lib.formats.torch_file import read_torch_file


def small_model() -> dict[str, torch.Tensor]:
    return {
        "model.diffusion_model.out.2.bias": torch.tensor([1.5, -2.0]),
        "first_stage_model.quant_conv.weight": torch.arange(4, dtype=torch.float16).reshape(2, 2, 1, 1),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


class Malicious:
    """Unpickled by Python's own reader, it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_read_write_is_the_same_file(tmp_path: Path) -> None:
    first = write_atomic(tmp_path / "a.safetensors", small_model(), {"modelspec.title": "A"})
    checkpoint = read_checkpoint(first)
    assert checkpoint.metadata == {"modelspec.title": "A"} and checkpoint.path == first
    assert_same(checkpoint.tensors, small_model())
    second = write_checkpoint(tmp_path / "b.safetensors", checkpoint.tensors, checkpoint.metadata)
    assert second.read_bytes() == first.read_bytes()


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_pickled_checkpoints(tmp_path: Path, is_zip: bool, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    content = {"state_dict": {**small_model(), "note": "text"}, "epoch": 3, "global_step": 875000}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, small_model())
    assert checkpoint.metadata == {}
    assert checkpoint_header(path)["model.diffusion_model.out.2.bias"] == TensorInfo("F32", (2,))


def test_parameters_become_plain_tensors(tmp_path: Path) -> None:
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "a.pt")
    tensor = read_checkpoint(tmp_path / "a.pt").tensors["w"]
    assert type(tensor) is torch.Tensor and not tensor.requires_grad


def test_both_headers_agree(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", small_model(), {})
    torch.save(small_model(), tmp_path / "a.ckpt")
    assert checkpoint_header(tmp_path / "a.safetensors") == checkpoint_header(tmp_path / "a.ckpt")


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_pickle_never_runs(tmp_path: Path, is_zip: bool) -> None:
    target = tmp_path / "executed"
    path = tmp_path / "evil.ckpt"
    torch.save({"w": torch.ones(1), "x": Malicious(target)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(FormatError, match="Python objects other than tensors; they were not loaded"):
        read_checkpoint(path)
    assert not target.exists()


def test_the_malicious_file_would_really_run(tmp_path: Path) -> None:
    """The test above is worth nothing otherwise."""
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_a_bare_pickle_never_runs(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Malicious(target)))
    with pytest.raises(FormatError, match="not written by PyTorch"):
        read_checkpoint(tmp_path / "evil.pt")
    assert not target.exists()


@pytest.mark.parametrize("name", ["pickle", "\ufffd"])
def test_tar_archives_are_refused(tmp_path: Path, name: str) -> None:
    """Old torch versions unpack them; one may even begin like a torch file, by the name of its first member."""
    path = tmp_path / "evil.pt"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(name))
    if name != "pickle":
        _rename_first_member(path, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")
        assert tarfile.is_tarfile(path)
    with pytest.raises(FormatError, match="tar archive|not written by PyTorch"):
        read_torch_file(path)


def _rename_first_member(path: Path, name: bytes) -> None:
    header = bytearray(path.read_bytes())
    header[:100] = name.ljust(100, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path.write_bytes(bytes(header))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_programs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "program.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    with pytest.raises(FormatError, match="TorchScript program"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no zip", b"<html></html>", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."]
)
def test_damaged_pickles(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(FormatError, match="a.ckpt"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("is_zip", [True, False])
def test_truncated_pickles(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(small_model(), path, _use_new_zipfile_serialization=is_zip)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match="a.ckpt"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(1)], torch.ones(1), {"state_dict": {}}])
def test_pickles_without_a_model(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(FormatError, match="holds no model"):
        read_checkpoint(tmp_path / "a.pt")


def test_missing_files(tmp_path: Path) -> None:
    for name in ("a.ckpt", "a.safetensors"):
        with pytest.raises(ModelError, match="cannot be read"):
            read_checkpoint(tmp_path / name)


def test_models_are_written_as_safetensors_or_ckpt_only(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not '.pt'"):
        write_checkpoint(tmp_path / "a.pt", small_model(), {})


def test_a_ckpt_is_in_the_old_serialization_without_what_lies_beside_a_view(tmp_path: Path) -> None:
    large = torch.arange(100_000.0)
    tensors = {**small_model(), "view": large[5:8]}
    path = write_checkpoint(tmp_path / "a.ckpt", tensors, {"ignored": "there is no place for it"})
    assert not path.read_bytes().startswith(b"PK")
    assert path.stat().st_size < 100_000
    assert_same(read_checkpoint(path).tensors, tensors)
    with pytest.raises(NonFiniteLossError, match=r"b\.ckpt was not written: the tensor x holds NaN"):
        write_checkpoint(tmp_path / "b.ckpt", {"x": torch.tensor([float("nan")])}, {}, require_finite=True)
    assert not (tmp_path / "b.ckpt").exists()


def test_the_webuis_replaced_torch_load_is_not_asked(monkeypatch, tmp_path: Path) -> None:
    """There, torch.load answers None for files of a newer torch, or renames them."""
    torch.save(small_model(), tmp_path / "a.ckpt")
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: None)
    assert_same(read_checkpoint(tmp_path / "a.ckpt").tensors, small_model())
