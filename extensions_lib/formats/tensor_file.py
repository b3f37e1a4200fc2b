"""A model file whose tensors are read one at a time, and a .safetensors file whose tensors are made as it is written.

Together they let models be combined that are larger than the memory: nothing is kept but the tensors at hand.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
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

_BLOCK = 1 << 20
_MAX_GAP_BYTES = 16 << 20
_MAX_WAITING = 2  # tensors that were read and are not hashed yet

# One tensor of a file that is being written, by its name.
TensorMaker = Callable[[str], Tensor]


class TensorFile:
    """An open model file. `infos` by name in the file's order, `metadata` of its header (empty for a pickle).

    A .safetensors is read by offset into memory of its own, without mapping the file: what was read once does not
    count as memory in use afterwards, and the file may be replaced on any system when it is closed. A pickle is read
    by the safe reader; where it is a zip, its tensors come from the disk when they are used. With `hashed` what is read
    in the order of the file counts for `sha256` at once, in a thread of its own, so that the file need not be read
    again for it; such a tensor must not be changed in place.
    Raises FormatError for damaged files and pickles with code, ModelError for missing files. A context manager; one
    thread may read at a time.
    """

    def __init__(self, path: Path, *, hashed: bool = False) -> None:
        self.path = path
        self._digest = hashlib.sha256() if hashed else None
        self._hashed_to = 0
        self._hasher = ThreadPoolExecutor(1) if hashed else None
        self._waiting: deque[Future[None]] = deque()
        self.infos: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._tensors: dict[str, Tensor] = {}
        self._file: BinaryIO | None = None
        if path.suffix.lower() == ".safetensors":
            self.infos, self.metadata = read_header(path)
            _check_dtypes(path, self.infos)
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
        data = torch.empty(end - begin, dtype=torch.uint8)
        view = memoryview(data.numpy())
        try:
            self._fill(view, begin)
            self._hash(view, begin, end)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return data.view(DTYPES[info.dtype]).reshape(info.shape)

    def sha256(self, on_read: Callable[[int], None] | None = None) -> str:
        """The sha256 of the whole file, 64 digits. What was not yet read in order is read; `on_read` is told of it.

        Needs `hashed` (ValueError). Raises ModelError when the file cannot be read.
        """
        if self._digest is None:
            raise ValueError("the file was not opened to be hashed")
        self._wait_for_hashes(0)
        try:
            with self.path.open("rb") as file:
                file.seek(self._hashed_to)
                while block := file.read(_BLOCK):
                    self._digest.update(block)
                    self._hashed_to += len(block)
                    if on_read is not None:
                        on_read(len(block))
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return self._digest.hexdigest()

    def _hash(self, view: memoryview, begin: int, end: int) -> None:
        """Count a part that follows what was counted, together with a short gap before it."""
        if self._digest is None or not 0 <= begin - self._hashed_to <= _MAX_GAP_BYTES:
            return
        gap = bytearray(begin - self._hashed_to)
        self._fill(memoryview(gap), self._hashed_to)
        for part in (gap, view):
            self._waiting.append(self._hasher.submit(self._digest.update, part))
        self._hashed_to = end
        self._wait_for_hashes(2 * _MAX_WAITING)

    def _wait_for_hashes(self, allowed: int) -> None:
        while len(self._waiting) > allowed:
            self._waiting.popleft().result()

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
        if self._hasher is not None:
            self._hasher.shutdown()
        self._tensors = {}

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _check_dtypes(path: Path, infos: Mapping[str, TensorInfo]) -> None:
    for name, info in infos.items():
        if info.dtype not in DTYPES:
            raise FormatError(
                f"{path}: the tensor {name} has the type {info.dtype}; accepted are {', '.join(DTYPES)}.",
                "Convert it with the program that made it.",
            )


def _unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError(f"{path} cannot be read: {error.strerror or error}.", "Check the disk.")


def write_tensors_as_made(
    path: Path,
    infos: Mapping[str, TensorInfo],
    make: TensorMaker,
    metadata: Mapping[str, str],
    *,
    final_metadata: Callable[[], Mapping[str, str]] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a .safetensors file of the tensors that `infos` announces, each made when it is its turn; returns `path`.

    The bytes are those of `write_atomic` for the same tensors. `final_metadata` is asked after the last tensor and
    replaces `metadata`, which must not be shorter. What `make` and `final_metadata` raise leaves no file. Raises
    ValueError when a tensor is not as announced, or the metadata too long; otherwise as `write_atomic`.
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
        if final_metadata is not None:
            final = encode_header(ordered, final_metadata(), len(header))
            if len(final) != len(header):
                raise ValueError(f"the final metadata needs {len(final)} bytes, there is room for {len(header)}")
            file.seek(0)
            file.write(final)

    def check(temporary: Path) -> None:
        if read_header(temporary)[0] != ordered:
            raise FormatError(f"{path} could not be written: the file read back differs.", "Check the disk.")

    return write_file_atomic(path, write, check, overwrite=overwrite)
