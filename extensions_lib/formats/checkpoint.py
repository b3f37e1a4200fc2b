"""A whole model file as flat tensors: .safetensors, .ckpt, .pt and .bin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import FormatError, OutputError
from .atomic import write_file_atomic
from .safetensors_io import TensorInfo, check_finite, describe_tensor, read_header, read_tensors, write_atomic
from .torch_file import plain_tensor, read_torch_file

_MAX_NESTING = 8  # of 'state_dict' in 'state_dict'; a damaged file may hold itself


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
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    overwrite: bool = False,
    require_finite: bool = False,
) -> Path:
    """Write a .safetensors or .ckpt model file: names, dtypes and values exactly as given. Returns `path`.

    A .ckpt has no place for `metadata`. Raises as `write_atomic`; OutputError for another ending.
    """
    if path.suffix.lower() == ".safetensors":
        return write_atomic(path, tensors, metadata, overwrite=overwrite, require_finite=require_finite)
    if path.suffix.lower() != ".ckpt":
        raise OutputError(
            f"{path.name}: models are written as .safetensors or .ckpt, not {path.suffix!r}.", "Change the ending."
        )
    own = {name: _own_memory(tensor) for name, tensor in tensors.items()}
    for name, tensor in own.items() if require_finite else ():
        check_finite(path, name, tensor)

    def write(file: BinaryIO) -> None:
        # The old serialization: the WebUI refuses the zip files of recent torch versions.
        torch.save({"state_dict": own}, file, _use_new_zipfile_serialization=False)

    return write_file_atomic(path, write, overwrite=overwrite)


def _own_memory(tensor: Tensor) -> Tensor:
    """`tensor` on the CPU as torch.save wants it: it would write all of the memory that a view is part of."""
    plain = tensor.detach().cpu().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()


def tensors_of(path: Path, content: object) -> dict[str, Tensor]:
    """The named tensors in what a pickle held; `path` is for the message. Raises FormatError when there are none."""
    for _ in range(_MAX_NESTING):
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
    entries = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name): tensor for name, value in entries if (tensor := plain_tensor(value)) is not None}
    if not tensors:
        raise FormatError(f"{path} holds no model: no tensors with names were found in it.", "Choose a model file.")
    return tensors
