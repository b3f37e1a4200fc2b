"""The practice model for a WebUI: the checkpoint, its yaml, and the folder that yaml names.

The WebUI builds a text encoder of another width than CLIP-L's only from a folder with its config and vocabulary.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import OutputError
from . import practice_checkpoint

CLIP_FOLDER = "practice-clip"


def export_practice_model(folder: Path) -> list[Path]:
    """Copy everything to `folder`, a WebUI's models/Stable-diffusion. Raises OutputError when it cannot be written."""
    checkpoint = practice_checkpoint()
    files = (checkpoint, checkpoint.with_suffix(".yaml"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source in files:
            shutil.copyfile(source, folder / source.name)
        shutil.copytree(checkpoint.parent / CLIP_FOLDER, folder / CLIP_FOLDER, dirs_exist_ok=True)
    except OSError as error:
        message = f"{folder} cannot be written: {error.strerror or error}."
        raise OutputError(message, "Choose another folder.") from error
    return [*(folder / source.name for source in files), folder / CLIP_FOLDER]
