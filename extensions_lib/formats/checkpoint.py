"""A whole model file as flat tensors: .safetensors, .ckpt, .pt and .bin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import FormatError, OutputError
from .safetensors_io import TensorInfo, describe_tensor, read_header, read_tensors, write_atomic
from .torch_file import plain_tensor, read_torch_file


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a model file by name, on the CPU in the file's own dtypes; metadata is empty for pickles."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    path: Path


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a model file by its ending. What is nested under 'state_dict' is unwrapped; numbers and text are dropped.

    Raises FormatError for damaged files, pickles with code (never run) and files without tensors; ModelError for a
    missing file.
    """
    if path.suffix.lower() == ".safetensors":
        return Checkpoint(read_tensors(path), read_header(path)[1], path)
    return Checkpoint(tensors_of(path, read_torch_file(path)), {}, path)


def checkpoint_header(path: Path) -> dict[str, TensorInfo]:
    """Names, dtypes and shapes. Cheap for .safetensors; a pickle has to be read whole. Raises as `read_checkpoint`."""
    if path.suffix.lower() == ".safetensors":
        return read_header(path)[0]
    return {name: describe_tensor(tensor) for name, tensor in read_checkpoint(path).tensors.items()}


def write_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, overwrite: bool = False
) -> Path:
    """Write a .safetensors model file: names, dtypes and values exactly as given. Returns `path`.

    Raises as `write_atomic`; OutputError for another ending.
    """
    if path.suffix.lower() != ".safetensors":
        raise OutputError(
            f"{path.name}: models are written as .safetensors, not {path.suffix!r}.", "Change the ending."
        )
    return write_atomic(path, tensors, metadata, overwrite=overwrite)


def tensors_of(path: Path, content: object) -> dict[str, Tensor]:
    """The named tensors in what a pickle held; `path` is for the message. Raises FormatError when there are none."""
    while isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    entries = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name): tensor for name, value in entries if (tensor := plain_tensor(value)) is not None}
    if not tensors:
        raise FormatError(f"{path} holds no model: no tensors with names were found in it.", "Choose a model file.")
    return tensors
