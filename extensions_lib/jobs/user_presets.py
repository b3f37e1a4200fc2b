"""The user's own presets: partial jobs like the built-in ones, one JSON file each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.codec import FORBIDDEN_IN_NAMES, check_partial
from ..config.presets import PRESETS
from ..errors import ConfigError, OutputError, Problem
from ..formats.atomic import write_bytes_atomic
from .access import check_name


class UserPresets:
    """The presets in one folder, which is made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted((file.stem for file in self.folder.glob("*.json")), key=str.casefold))

    def load(self, name: str) -> dict[str, Any]:
        """The partial job called `name`. Raises ConfigError when there is none or it is damaged."""
        path = self._path(name)
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise _problem(f"is {name!r}, accepted are {', '.join(self.names()) or 'none yet'}") from error
        except (OSError, ValueError) as error:
            raise _problem(f"{name!r} cannot be read: {error}") from error
        check_preset(table)
        return table

    def save(self, name: str, table: Mapping[str, Any]) -> None:
        """Write a preset; one of that name is replaced. Raises ConfigError, OutputError or DiskFullError."""
        path = self._path(name)
        if name in PRESETS:
            raise _problem(f"is {name!r}, which is a built-in preset; choose another name")
        check_preset(table)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"The folder {self.folder} cannot be made: {error.strerror or error}.") from error
        text = json.dumps(table, indent=2, ensure_ascii=False)
        write_bytes_atomic(path, f"{text}\n".encode(), overwrite=True)

    def delete(self, name: str) -> None:
        """Delete a preset. Raises ConfigError when there is none."""
        try:
            self._path(name).unlink()
        except FileNotFoundError as error:
            raise _problem(f"is {name!r}, accepted are {', '.join(self.names()) or 'none yet'}") from error
        except OSError as error:
            raise OutputError(f"The preset {name} cannot be deleted: {error.strerror or error}.") from error

    def _path(self, name: str) -> Path:
        if not name.strip() or name != name.strip() or any(sign in name for sign in FORBIDDEN_IN_NAMES):
            raise _problem(f"is {name!r}, accepted are file names without any of {FORBIDDEN_IN_NAMES}")
        check_name(name)
        return self.folder / f"{name}.json"


def check_preset(table: Any) -> None:
    """Refuse what no job could start from. Raises ConfigError with every mistake."""
    if not isinstance(table, Mapping):
        raise _problem("must be a table of settings")
    check_partial(table)


def _problem(text: str) -> ConfigError:
    return ConfigError([Problem("preset", text)])
