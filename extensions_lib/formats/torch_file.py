"""Reading .ckpt, .pt and .bin: pickles, of which only plain tensors and containers are ever built."""

from __future__ import annotations

import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import torch.serialization
from torch import Tensor

from ..errors import FormatError, ModelError
from .regular import check_regular

# What torch.save has written first since its beginnings: the pickled number 0x1950a86a20f9469cfc6c.
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_DAMAGE = (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, ImportError, struct.error)
_SAFE_HINT = "Convert it to .safetensors with the program that made it, or look for a .safetensors version."


def read_torch_file(path: Path, *, mapped: bool = False) -> object:
    """What `torch.save` wrote, on the CPU: tensors, numbers, text and containers.

    With `mapped` the tensors of a zip file stay on the disk until they are used: the file must not change meanwhile.
    No code of the file runs: anything else in it raises FormatError, as do damaged files; ModelError when missing.
    """
    check_regular(path)
    try:
        _refuse_odd_containers(path)
        mapped = mapped and zipfile.is_zipfile(path)
        # Not torch.load: WebUIs replace that name by one that answers None, or renames the file to *.corrupted.
        return torch.serialization.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror or error}.", "Check the name and the folder."
        ) from error
    except pickle.UnpicklingError as error:
        raise FormatError(
            f"{path} holds Python objects other than tensors; they were not loaded.", _SAFE_HINT
        ) from error
    except _DAMAGE as error:
        raise FormatError(
            f"{path} is damaged, or was not written by PyTorch: {error}.", "Download it again."
        ) from error


def plain_tensor(value: object) -> Tensor | None:
    """`value` as a plain tensor when it is a tensor or a parameter, otherwise None."""
    return value.detach() if isinstance(value, Tensor) else None


def _refuse_odd_containers(path: Path) -> None:
    """Old torch versions unpack tar files and TorchScript archives on paths that `weights_only` does not guard."""
    with path.open("rb") as file:
        start = file.read(len(_LEGACY_MAGIC))
    if start.startswith(b"PK\x03\x04"):
        _refuse_torchscript(path)
    elif not start.startswith(_LEGACY_MAGIC):
        raise FormatError(f"{path} was not written by PyTorch.", "Check that its ending is right.")
    elif tarfile.is_tarfile(path):
        raise FormatError(f"{path} is a tar archive, which may hide code; it was not loaded.", _SAFE_HINT)


def _refuse_torchscript(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise FormatError(f"{path} is truncated or damaged.", "Download it again.") from error
    if any(name.rsplit("/", 1)[-1] == "constants.pkl" for name in names):
        raise FormatError(f"{path} is a TorchScript program, not weights; it was not loaded.", _SAFE_HINT)
