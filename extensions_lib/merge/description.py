"""The description (`<stem>.yaml`) beside a written checkpoint: there where it needs one, and none where it does not."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import OutputError
from ..formats.atomic import write_bytes_atomic
from ..models.sibling import sibling_path


def check_description(output: Path, content: bytes | None, *, overwrite: bool) -> None:
    """Before any work: whether `output` can have the description `content` beside it; None where it needs none.

    Raises OutputError for a name that is taken, and for a description that the result would be mixed up with.
    """
    path = sibling_path(output)
    if not os.path.lexists(path):
        return
    if content is None:
        raise OutputError(
            f"{path} would be read as the description of {output.name}, which needs none.",
            "Choose another name, or remove that file.",
        )
    if not path.is_file() or not (overwrite or path.read_bytes() == content):
        raise OutputError(
            f"{path}, the description that {output.name} needs beside it, already exists and was not touched.",
            "Choose another name, or allow overwriting.",
        )


def write_description(output: Path, content: bytes | None, *, overwrite: bool) -> Path | None:
    """Write it. Where that fails, a new result is taken back; one that replaced another stays, as that is gone.

    Raises OutputError, DiskFullError.
    """
    if content is None:
        return None
    path = sibling_path(output)
    if path.is_file() and path.read_bytes() == content:
        return path
    try:
        return write_bytes_atomic(path, content, overwrite=overwrite)
    except BaseException:
        if not overwrite:
            output.unlink(missing_ok=True)
        raise
