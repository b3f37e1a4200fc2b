"""Pictures and captions dropped on the page become a folder of ours."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError, OutputError, Problem
from ..jobs.access import DEVICES

MAX_NAME = 80
HINT = "Drop pictures and, beside them, text files of the same names with their captions."


def keep_uploads(files: Sequence[Path], place: Path, name: str) -> Path:
    """Copy dropped files to `<place>/<name>-<digest>` and return that folder; the same files give the same folder.

    Raises ConfigError when one is neither a picture nor a caption or two have one name, OutputError when the folder
    cannot be written.
    """
    named = _named(files)
    folder = place / f"{safe_name(name) or 'pictures'}-{_digest(named)}"
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        if not folder.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for target, source in named.items():
                shutil.copyfile(source, temporary / target)
            os.replace(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        message = f"The dropped pictures cannot be kept in {folder}: {error.strerror or error}."
        raise OutputError(message, "Make room, or name a folder with pictures.") from error
    return folder


def safe_name(name: str) -> str:
    """`name` as a plain file name on every system: letters, digits, space and . _ - ( ); '' if nothing is left."""
    text = re.sub(r"[^\w .()-]", "_", unicodedata.normalize("NFKC", name))[:MAX_NAME].strip(" .")
    return f"_{text}" if text.split(".")[0].lower() in DEVICES else text


def _named(files: Sequence[Path]) -> dict[str, Path]:
    from ..data.images import EXTENSIONS

    problems: list[Problem] = []
    named: dict[str, Path] = {}
    taken = set()
    for path in files:
        target = safe_name(path.stem) + path.suffix.lower()
        if path.suffix.lower() not in EXTENSIONS | {".txt"}:
            problems.append(Problem("dataset.folder", f"'{path.name}' is neither a picture nor a caption (.txt)"))
        elif target.lower() in taken or target.startswith("."):
            problems.append(Problem("dataset.folder", f"'{path.name}' is there twice, or has no name"))
        taken.add(target.lower())
        named[target] = path
    if not any(Path(target).suffix in EXTENSIONS for target in named) and not problems:
        problems.append(Problem("dataset.folder", "no picture is among the dropped files"))
    if problems:
        raise ConfigError(problems, HINT)
    return dict(sorted(named.items()))


def _digest(named: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for target, source in named.items():
        digest.update(target.encode("utf-8") + b"\0")
        with source.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:10]
