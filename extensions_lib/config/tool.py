"""What the settings of every tool for checkpoints and LoRAs have in common."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import Problem
from .codec import name_problems
from .field import option

TOOL_SCHEMA_VERSION = 1
# Number formats of results.
DTYPES = ("fp16", "bf16", "fp32")


@dataclass(frozen=True, kw_only=True)
class ToolConfig:
    """The name of the result and where it goes."""

    schema_version: int = option(
        TOOL_SCHEMA_VERSION, help="Version of this format.", min=1, max=TOOL_SCHEMA_VERSION, advanced=True
    )
    name: str = option(help="Name of the result.")
    folder: str = option("outputs", help="Folder for the result; in a WebUI the one for its kind.", file="folder")
    overwrite: bool = option(False, help="Replace a file of the same name.")

    def problems(self) -> list[Problem]:
        """Mistakes that only several settings together make, or that a single one's declaration cannot say."""
        return name_problems("name", self.name)
