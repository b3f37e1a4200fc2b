"""Whether a path names a file at all, before it is opened: opening a pipe waits for its writer, maybe forever."""

from __future__ import annotations

import stat
from pathlib import Path

from ..errors import FormatError, ModelError


def check_regular(path: Path) -> None:
    """Raises ModelError for what is not there or cannot be named, FormatError for folders, pipes and devices."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ModelError(f"{path} cannot be read: {why}.", "Check the name and the folder.") from error
    if stat.S_ISDIR(mode):
        raise FormatError(f"{path} is a folder; a file is needed.", "Choose a file in it, or another.")
    if not stat.S_ISREG(mode):
        raise FormatError(f"{path} is a device or a pipe; a file is needed.", "Choose a file.")
