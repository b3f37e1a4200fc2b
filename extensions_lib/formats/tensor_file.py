"""A model file whose tensors are read one at a time, and a .safetensors file whose tensors are made as it is written.

Together they let models be combined that are larger than the memory: nothing is kept but the tensors at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import FormatError, ModelError
from .atomic import write_file_atomic
from .checkpoint import tensors_of
from .safetensors_io import DTYPES, TensorInfo, data_places, describe_tensor, encode_header, in_file_order, read_header
from .torch_file import read_torch_file

# One tensor of a file that is being written, by its name.
TensorMaker = Callable[[str], Tensor]


class TensorFile:
    """An open model file. `infos` by name in the file's order, `metadata` of its header (empty for a pickle).

    A .safetensors is read by offset into memory of its own, without mapping the file: what was read once does not
    count as memory in use afterwards, and the file may be replaced on any system when it is closed. A pickle is read
    by the safe reader; where it is a zip, its tensors come from the disk when they are used.
    Raises FormatError for damaged files and pickles with code, ModelError for missing files. A context manager.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.infos: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._tensors: dict[str, Tensor] = {}
        self._file: BinaryIO | None = None
        if path.suffix.lower() == ".safetensors":
            self.infos, self.metadata = read_header(path)
            self._places = data_places(path)
            self._file = path.open("rb", buffering=0)
        else:
            self._tensors = tensors_of(path, read_torch_file(path, mapped=True))
            self.infos = {name: describe_tensor(tensor) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU in the file's dtype. Raises KeyError for an unknown name; errors as the class."""
        if self._file is None:
            return self._tensors[name]
        info, (begin, end) = self.infos[name], self._places[name]
        if info.dtype not in DTYPES:
            raise FormatError(f"{self.path}: the tensor {name} has the type {info.dtype}, which cannot be read here.")
        data = torch.empty(end - begin, dtype=torch.uint8)
        try:
            self._fill(memoryview(data.numpy()), begin)
        except OSError as error:
            raise ModelError(f"{self.path} cannot be read: {error.strerror or error}.", "Check the disk.") from error
        return data.view(DTYPES[info.dtype]).reshape(info.shape)

    def _fill(self, view: memoryview, begin: int) -> None:
        self._file.seek(begin)
        done = 0
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                raise FormatError(f"{self.path} became shorter while it was read.", "Start again when it is complete.")
            done += count

    def close(self) -> None:
        """Forget the file."""
        if self._file is not None:
            self._file.close()
        self._tensors = {}

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def write_tensors_as_made(
    path: Path,
    infos: Mapping[str, TensorInfo],
    make: TensorMaker,
    metadata: Mapping[str, str],
    *,
    overwrite: bool = False,
) -> Path:
    """Write a .safetensors file of the tensors that `infos` announces, each made when it is its turn; returns `path`.

    The bytes are those of `write_atomic` for the same tensors. What `make` raises leaves no file. Raises ValueError
    when a tensor is not as announced, or announced with a dtype torch does not know; otherwise as `write_atomic`.
    """
    ordered = in_file_order(infos)
    header = encode_header(ordered, metadata)

    def write(file: BinaryIO) -> None:
        file.write(header)
        for name, info in ordered.items():
            tensor = make(name)
            if describe_tensor(tensor) != info:
                raise ValueError(f"the tensor {name} was announced as {info} and is {describe_tensor(tensor)}")
            flat = tensor.detach().to("cpu").contiguous().reshape(-1)
            file.write(memoryview(flat.view(torch.uint8).numpy()))

    def check(temporary: Path) -> None:
        if read_header(temporary)[0] != ordered:
            raise FormatError(f"{path} could not be written: the file read back differs.", "Check the disk.")

    return write_file_atomic(path, write, check, overwrite=overwrite)
