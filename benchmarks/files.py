"""Pruning and converting a checkpoint of the real size of SDXL (or SD 1.5), filled with random numbers.

    python -m benchmarks.files [--folder FOLDER] [--family sdxl|sd1]

A fp16 file of the published shapes is made, and one in fp32 from it. Then, each in a process of its own and with its
file out of the system's cache: fp32 pruned to fp16, fp16 to a diffusers folder, the folder back to a file. Whether the
files are the same bytes in the end is printed. Memory is the highest resident size less that after the imports.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .merge import CONFIGS, GB, cpu_seconds, forget, make_checkpoint, peak_bytes


def run_one(tool: str, table: dict[str, Any]) -> dict[str, float]:
    """Use a tool and measure: seconds, those of the processors, and bytes above the interpreter with its imports."""
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    from extensions_lib.config.tools import load_tool
    from extensions_lib.control import JobControl
    from extensions_lib.merge.tools import run_tool

    config = load_tool(tool, table)
    before, cpu_before, start = peak_bytes(), cpu_seconds(), time.monotonic()
    run_tool(config, JobControl(), lambda event: event)
    return {"seconds": time.monotonic() - start, "cpu": cpu_seconds() - cpu_before, "bytes": peak_bytes() - before}


def measure(title: str, tool: str, source: Path, name: str, **settings: str) -> Path:
    """`run_one` in a process of its own; prints a line and returns what was written."""
    forget(*(path for path in ([source] if source.is_file() else source.rglob("*")) if path.is_file()))
    table = {"name": name, "model": str(source), "folder": str(source.parent), **settings}
    command = [sys.executable, "-m", "benchmarks.files", "--one", json.dumps([tool, table])]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(
        f"{title}: {found['seconds']:.1f} s, processors {found['cpu']:.1f} s, "
        f"peak {found['bytes'] / GB:.2f} GB above the interpreter",
        flush=True,
    )
    made = source.parent / name
    return made if made.is_dir() else made.with_suffix(".safetensors")


def main() -> None:
    """Make, measure, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "files")
    parser.add_argument("--family", choices=tuple(CONFIGS), default="sdxl")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(*json.loads(options.one))))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    half = options.folder / f"{options.family}.safetensors"
    make_checkpoint(half, options.family, 0)
    print(f"a file of {half.stat().st_size / GB:.2f} GB; load average before {os.getloadavg()[0]:.1f}")
    try:
        report(half)
    finally:
        shutil.rmtree(options.folder)


def report(half: Path) -> None:
    """Print one line a measurement."""
    wide = measure("fp16 to fp32", "prune", half, "wide", dtype="fp32", vae_dtype="fp32")
    print(f"a file of {wide.stat().st_size / GB:.2f} GB", flush=True)
    small = measure("prune fp32 to fp16", "prune", wide, "small", vae_dtype="fp16")
    wide.unlink()
    folder = measure("convert to a diffusers folder", "convert", small, "folder", to="diffusers")
    back = measure("convert back", "convert", folder, "back", to="safetensors")
    print(f"the same bytes: {filecmp.cmp(small, back, shallow=False)}")


if __name__ == "__main__":
    main()
