"""`demo`: the practice subject from pictures to report."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from ..control import JobControl
from .console import ConsoleDisplay


def show_demo(folder: Path, control: JobControl) -> int:
    """Run the demonstration, print its report, and return the exit code."""
    from ..practice.demo import run_demo

    with closing(ConsoleDisplay(sys.stdout)) as display:
        report = run_demo(folder, control, (display,))
    for line in report.lines():
        print(line)
    print(f"Look at {folder / 'demo.png'}; the files are {' and '.join(report.files)}")
    return 0
