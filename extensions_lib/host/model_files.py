"""The files of a kind below some folders, as a list to choose from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..config.artefacts import ARTEFACTS
from ..ports import BaseModel

SUFFIXES = {kind: artefact.suffixes for kind, artefact in ARTEFACTS.items()} | {"vae": (".safetensors", ".ckpt", ".pt")}


def files_below(folders: Iterable[Path], kind: str) -> tuple[BaseModel, ...]:
    """The files with the endings of `kind`, by name, called as they lie below their folder: 'people/cat.safetensors'.

    Links to folders are followed, as the WebUI does; hidden files and folders are left out, and folders that are not
    there.
    """
    found: dict[str, Path] = {}
    for folder in dict.fromkeys(folders):
        for parent, names, files in os.walk(folder, followlinks=True):
            names[:] = [name for name in names if not name.startswith(".")]
            for name in files:
                path = Path(parent, name)
                if path.suffix.lower() in SUFFIXES[kind] and not name.startswith("."):
                    found.setdefault(path.relative_to(folder).as_posix(), path)
    return tuple(BaseModel(title, found[title]) for title in sorted(found, key=str.casefold))
