"""The Check of a tool: what it would write, and what would stop it. Does no work, writes nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.tool import ToolConfig
from ..config.tools import TOOLS, kind_of
from ..ports import Host
from .check_report import CheckProblem, Findings
from .clashes import same_names


@dataclass(frozen=True)
class ToolReport:
    """All that is known of a tool's job before it starts.

    `path` is the file it would write and `num_bytes` its size; '' and None where only the work itself shows it.
    """

    problems: tuple[CheckProblem, ...]
    warnings: tuple[str, ...]
    path: str = ""
    num_bytes: int | None = None

    @property
    def can_start(self) -> bool:
        """Whether nothing would stop the start."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**dataclasses.asdict(self), "can_start": self.can_start}


def check_tool(config: ToolConfig, host: Host) -> ToolReport:
    """Look at the files as far as their headers go. What would stop the start is reported, never raised."""
    from ..merge.tools import Outlook
    from ..training.tools import foresee

    findings = Findings()
    outlook = findings.attempt("", lambda: foresee(config)) or Outlook()
    warnings = (*outlook.warnings, *name_clashes(config, outlook.path, host))
    return ToolReport(tuple(findings.problems), warnings, str(outlook.path or ""), outlook.num_bytes)


def name_clashes(config: ToolConfig, path: Path | None, host: Host) -> tuple[str, ...]:
    """A warning for each file of the host that would be mixed up with the result `path`, where that is known."""
    kind = TOOLS[kind_of(config)].makes
    if path is None or not kind:
        return ()
    return tuple(same_names(path.stem, kind, {path.absolute()}, host.folders().results))
