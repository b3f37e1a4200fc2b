"""What clients may send, checked by hand: the hosts have pydantic 1 or 2, and strictness must not depend on it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, Problem
from .answers import NotFoundError

PICTURE_NAME = re.compile(r"[\w-]+\.png")


def read_object(body: Any, accepted: tuple[str, ...] | None = None) -> Mapping[str, Any]:
    """The body when it is an object with no keys but `accepted` (None: any). Raises ConfigError."""
    if not isinstance(body, dict):
        raise ConfigError([Problem("body", f"must be a JSON object, is {_name(body)}")])
    if accepted is not None:
        known = f"accepted are {', '.join(accepted)}" if accepted else "accepted is an empty object, {}"
        problems = [Problem(str(key), f"is not known, {known}") for key in body if key not in accepted]
        if problems:
            raise ConfigError(problems)
    return body


def read_word(body: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> str:
    """One of `choices`. Raises ConfigError."""
    word = body.get(key)
    if not isinstance(word, str) or word not in choices:
        given = "is missing" if key not in body else f"is {_shown(word)}"
        raise ConfigError([Problem(key, f"{given}, accepted are {', '.join(choices)}")])
    return word


def read_text(body: Mapping[str, Any], key: str) -> str:
    """A text that is not empty. Raises ConfigError."""
    text = body.get(key)
    if not isinstance(text, str) or not text.strip():
        given = "is missing" if key not in body else f"is {_shown(text)}"
        raise ConfigError([Problem(key, f"{given}, accepted is a text")])
    return text.strip()


def read_count(body: Mapping[str, Any], key: str, minimum: int) -> int:
    """A whole number from `minimum` on. Raises ConfigError."""
    value = body.get(key)
    if type(value) is not int or not minimum <= value <= 10_000_000:
        given = "is missing" if key not in body else f"is {_shown(value)}"
        raise ConfigError([Problem(key, f"{given}, accepted are whole numbers from {minimum} to 10000000")])
    return value


def read_picture(run: Path, name: str) -> tuple[bytes, str]:
    """A preview picture of a run and its ETag. Raises NotFoundError for any other file, whatever its name.

    Read at once, because a running job may replace the file while it is sent.
    """
    path = run.resolve() / "previews" / name
    if not PICTURE_NAME.fullmatch(name) or name not in _names(path.parent) or path.resolve() != path:
        raise NotFoundError(f"The run has no preview picture {name!r}.", "Their names are in the PreviewReady events.")
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            return file.read(), f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
    except OSError as error:
        raise NotFoundError(f"The preview picture {name!r} cannot be read: {error.strerror}.") from error


def _names(folder: Path) -> set[str]:
    """Listed rather than asked for: Windows says of every folder that it has a CON.png."""
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else _name(value)


def _name(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
