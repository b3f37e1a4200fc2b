"""The hashes by which the WebUI and model sites know a file (formats they share, not ours)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

_BLOCK = 1 << 20
_AUTOV1_OFFSET = 0x100000
_AUTOV1_LENGTH = 0x10000


def file_sha256(path: Path, on_read: Callable[[int], None] | None = None) -> str:
    """64 hex digits over the whole file; the first 10 are AutoV2. Raises OSError when it cannot be read.

    `on_read` is told how many bytes were read each time; what it raises ends the reading.
    """
    return _sha256_from(path, 0, on_read)


def autov1(path: Path) -> str:
    """The oldest 'model hash', 8 hex digits over 64 KiB at offset 1 MiB; of nothing when the file is shorter."""
    with path.open("rb") as file:
        file.seek(_AUTOV1_OFFSET)
        return hashlib.sha256(file.read(_AUTOV1_LENGTH)).hexdigest()[:8]


def data_section_sha256(path: Path) -> str:
    """64 hex digits over a .safetensors file after its header (AutoV3, 'Lora hashes'): metadata does not change it."""
    with path.open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
    return _sha256_from(path, 8 + header_length)


def _sha256_from(path: Path, offset: int, on_read: Callable[[int], None] | None = None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while block := file.read(_BLOCK):
            digest.update(block)
            if on_read is not None:
                on_read(len(block))
    return digest.hexdigest()
