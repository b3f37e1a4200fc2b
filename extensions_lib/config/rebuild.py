"""Making a file again from its recipe: the settings of this command."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import Problem
from .field import option
from .tool import ToolConfig


@dataclass(frozen=True, kw_only=True)
class SearchFolder:
    """A folder in which models are looked for."""

    path: str = option(help="The folder; those in it are searched too.", file="folder")


@dataclass(frozen=True, kw_only=True)
class RebuildConfig(ToolConfig):
    """A file made again from its recipe and its models."""

    file: str = option(help="A file made here, or its recipe (.json).", file="model")
    models: tuple[SearchFolder, ...] = option(
        help="Folders to look for its models in.", item=SearchFolder, of_line=lambda path: {"path": path}
    )

    def problems(self) -> list[Problem]:
        """Mistakes that only several settings together make."""
        missing = [] if self.models else [Problem("models", "are none; give one folder or more")]
        return [*missing, *super().problems()]
