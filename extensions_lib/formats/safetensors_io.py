"""The .safetensors container: header, tensors, atomic writing, hash of the data section.

The writer is ours and gives the bytes of the safetensors library (a test compares them): it streams tensor by tensor,
so a 4 GB checkpoint needs no second copy in memory, and a full disk is an OSError with its number.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config.json_text import parse_json
from ..errors import FormatError, ModelError, NonFiniteLossError, OutputError
from .atomic import write_bytes_atomic as write_bytes_atomic
from .atomic import write_file_atomic
from .hashes import autov1 as autov1
from .hashes import data_section_sha256 as data_section_sha256
from .hashes import file_sha256 as file_sha256
from .regular import check_regular

# Name in the file -> bytes per number, in the library's order: the data section is sorted from the last to the first.
_ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}
_DTYPE_RANK = {name: rank for rank, name in enumerate(_ITEM_BYTES)}
_DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_DAMAGED_HINT = "Download or copy the file again."


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor: dtype as safetensors names it ('F16', 'F32', 'I64', ...), and the shape."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Names, dtypes and shapes of all tensors, and the metadata; no tensor is read.

    Raises FormatError for a file that is empty, truncated, damaged or not .safetensors; ModelError when it is missing.
    """
    header, places, metadata = _read_checked(path)
    return {name: TensorInfo(str(header[name]["dtype"]), tuple(header[name]["shape"])) for name in places}, metadata


def data_places(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor begins and ends in the file, in bytes from its start. Raises as `read_header` does."""
    return _read_checked(path)[1]


def _read_checked(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[int, int]], dict[str, str]]:
    """The header's entries of tensors, their places in the file, and its metadata."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            header = _parse_header(path, file, length)
            begin = file.tell()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror or error}.", "Check the name and the folder."
        ) from error
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise _damaged(path, "its metadata is not a table")
    places = {name: _place(path, name, entry) for name, entry in header.items()}
    if not places:
        raise FormatError(f"{path} holds no tensors.", _DAMAGED_HINT)
    _check_places(path, places, begin, length)
    places = {name: (begin + first, begin + end) for name, (first, end) in places.items()}
    return header, places, {str(key): str(value) for key, value in metadata.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file, on the CPU, with their own memory: the file may be replaced afterwards.

    Raises as `read_header` does.
    """
    infos, _ = read_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name).clone() for name in infos}
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def write_atomic(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    overwrite: bool = False,
    require_finite: bool = False,
) -> Path:
    """Write a .safetensors file that is either complete under its name or not there at all; returns `path`.

    Tensors may be on any device, tied or non-contiguous. The temporary file is opened again and compared (names,
    shapes, dtypes) before it gets the name. With `require_finite` a NaN or infinity raises NonFiniteLossError and no
    file appears. Raises OutputError, DiskFullError as `write_file_atomic`; OutputError for a dtype no file can hold.
    """
    infos = _infos_in_file_order(path, tensors)
    header = encode_header(infos, metadata)

    def write(file: BinaryIO) -> None:
        file.write(header)
        for name, data in _payloads(tensors, infos):
            if require_finite:
                check_finite(path, name, tensors[name])
            file.write(data)

    def check(temporary: Path) -> None:
        if read_header(temporary)[0] != infos:
            raise OutputError(f"{path} could not be written: the file read back differs.", "Check the disk.")

    return write_file_atomic(path, write, check, overwrite=overwrite)


def data_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 (64 hex digits) of the data section these tensors will have in a file, whatever its metadata.

    The WebUI's 'Lora hashes' (first 12 digits), `sshs_model_hash`, AutoV3.
    """
    digest = hashlib.sha256()
    for _, data in _payloads(tensors, _infos_in_file_order(Path("tensors"), tensors)):
        digest.update(data)
    return digest.hexdigest()


def describe_tensor(tensor: Tensor) -> TensorInfo:
    """What a header would say of `tensor`; a dtype that no file can hold is named as torch names it."""
    return TensorInfo(_DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))


def _parse_header(path: Path, file: BinaryIO, length: int) -> dict[str, Any]:
    if length == 0:
        raise FormatError(f"{path} is empty (0 bytes).", _DAMAGED_HINT)
    header_bytes = int.from_bytes(file.read(8), "little")
    if length < 8 or header_bytes > min(length - 8, _MAX_HEADER_BYTES):
        raise _damaged(path, "it is truncated, or another kind of file under this name")
    try:
        header = parse_json(file.read(header_bytes).decode("utf-8"))
    except ValueError as error:
        raise _damaged(path, "its header cannot be read") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a table")
    return header


def _place(path: Path, name: str, entry: object) -> tuple[int, int]:
    """Begin and end of a tensor in the data section. Its entry is looked at: type, sizes, and that they agree."""
    try:
        shape, (begin, end), dtype = entry["shape"], entry["data_offsets"], str(entry["dtype"])
        name.encode("utf-8")
        are_counts = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(path, f"the entry of tensor {name!r} is wrong") from error
    if not are_counts:
        raise _damaged(path, f"the entry of tensor {name!r} has other numbers than whole ones from 0")
    item_bytes = _ITEM_BYTES.get(dtype)
    if item_bytes is not None and end - begin != item_bytes * math.prod(shape):
        raise _damaged(
            path, f"the tensor {name!r} has {end - begin} bytes, its shape needs {item_bytes * math.prod(shape)}"
        )
    return begin, end


def _check_places(path: Path, places: Mapping[str, tuple[int, int]], begin: int, length: int) -> None:
    """The tensors must fill the rest of the file, one behind the other, as the library of the format asks."""
    needed = begin + max(end for _, end in places.values())
    if length < needed:
        raise FormatError(f"{path} is truncated: it has {length} of {needed} bytes.", _DAMAGED_HINT)
    done = 0
    for first, end in sorted(places.values()):
        if first != done or end < first:
            raise _damaged(path, "its tensors overlap, or there are gaps between them")
        done = end
    if length > needed:
        raise _damaged(path, f"{length - needed} bytes follow its last tensor")


def _infos_in_file_order(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    if not tensors:
        raise OutputError(f"{path} was not written: there are no tensors to write.")
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPE_NAMES or tensor.is_meta:
            raise OutputError(
                f"{path} was not written: the tensor {name} ({tensor.dtype}, {tensor.device}) has no form in a file."
            )
    return in_file_order({name: describe_tensor(tensor) for name, tensor in tensors.items()})


def in_file_order(infos: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Sorted as the safetensors library writes them: dtype from largest to smallest, then name."""
    return dict(sorted(infos.items(), key=lambda item: (-_DTYPE_RANK[item[1].dtype], item[0].encode("utf-8"))))


def header_with_metadata(path: Path, metadata: Mapping[str, str]) -> bytes:
    """The start of the file `path` (8 bytes length, then JSON) with another metadata: what follows it may stay.

    Raises as `read_header` does.
    """
    read_header(path)
    with path.open("rb") as file:
        entries = _parse_header(path, file, path.stat().st_size)
    entries.pop("__metadata__", None)
    return _encoded({**_metadata_entry(metadata), **entries})


def num_bytes(info: TensorInfo) -> int:
    """The size of a tensor's data in a file."""
    return _ITEM_BYTES[info.dtype] * math.prod(info.shape)


def encode_header(infos: Mapping[str, TensorInfo], metadata: Mapping[str, str], min_bytes: int = 0) -> bytes:
    """The start of a file with tensors in this order: 8 bytes length, then JSON, then blanks to a multiple of 8 and to
    `min_bytes`, which must be a multiple of 8 too.
    """
    header = _metadata_entry(metadata)
    begin = 0
    for name, info in infos.items():
        end = begin + num_bytes(info)
        header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [begin, end]}
        begin = end
    return _encoded(header, min_bytes)


def _metadata_entry(metadata: Mapping[str, str]) -> dict[str, object]:
    entry = {_text(key): _text(value) for key, value in metadata.items()}
    return {"__metadata__": entry} if entry else {}


def _encoded(header: Mapping[str, object], min_bytes: int = 0) -> bytes:
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    encoded = encoded.ljust(min_bytes - 8)
    return len(encoded).to_bytes(8, "little") + encoded


def _text(value: str) -> str:
    """Text that UTF-8 can hold: a file name the system could not decode carries lone surrogates."""
    if not isinstance(value, str):
        raise TypeError(f"metadata must be text, not {type(value).__name__}: {value!r}")
    return value.encode("utf-8", "replace").decode("utf-8")


def _payloads(tensors: Mapping[str, Tensor], infos: Mapping[str, TensorInfo]) -> Iterator[tuple[str, memoryview]]:
    """The bytes of each tensor, one at a time; a copy is made only for those not contiguous or not on the CPU."""
    for name in infos:
        flat = tensors[name].detach().to("cpu").contiguous().reshape(-1)
        yield name, memoryview(flat.view(torch.uint8).numpy())


def check_finite(path: Path, name: str, tensor: Tensor) -> None:
    """Raises NonFiniteLossError when `tensor`, which was to be written to `path`, holds NaN or infinity."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise NonFiniteLossError(
            f"{path.name} was not written: the tensor {name} holds NaN or infinite values.",
            "Use the last good save, and a lower learning rate.",
        )


def _damaged(path: Path, why: str) -> FormatError:
    return FormatError(f"{path} is not a sound .safetensors file: {why}.", _DAMAGED_HINT)
