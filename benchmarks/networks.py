"""Baking, extracting, combining and resizing LoRAs at the real sizes of SD 1.5 (or SDXL), filled with random numbers.

    python -m benchmarks.networks [--folder FOLDER] [--family sd1|sdxl] [--rank RANK]

Two fp16 checkpoints of the published shapes and two LoRAs of RANK in every linear layer and convolution of UNet and
text encoders are made in FOLDER. Then each tool, in a process of its own, hashes of the models included. Memory is the
highest resident size less that after the imports; speed does not depend on what the numbers are, but a difference of
random numbers has no low rank.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .merge import GB, cpu_seconds, forget, make_checkpoint, peak_bytes


def make_lora(path: Path, base: Path, rank: int, seed: int) -> None:
    """Write a LoRA for all layers of the checkpoint that can have factors."""
    import torch

    from extensions_lib.formats.network import changes_tensors, lora_change
    from extensions_lib.formats.safetensors_io import write_atomic
    from extensions_lib.merge.layers import layer_places
    from extensions_lib.merge.models import read_model

    generator = torch.Generator().manual_seed(seed)
    changes = []
    for name, place in layer_places(read_model(base)).items():
        if place.has_factors:
            outputs, *inputs = place.shape
            up = torch.randn(outputs, rank, generator=generator) * 0.02
            down = torch.randn(rank, torch.Size(inputs).numel(), generator=generator) * 0.02
            changes.append(lora_change(name, up, down, place.shape))
    write_atomic(path, changes_tensors(changes, torch.float16), {"ss_base_model_version": "sd_v1"}, overwrite=True)


def run_one(table: dict[str, Any]) -> dict[str, Any]:
    """Run a tool and measure: seconds, those of the processors, bytes above the interpreter, and what it says."""
    from extensions_lib.config.tools import load_any_tool
    from extensions_lib.control import JobControl
    from extensions_lib.merge.tools import run_tool

    config = load_any_tool(table)
    before, cpu_before, start = peak_bytes(), cpu_seconds(), time.monotonic()
    result = run_tool(config, JobControl(), lambda event: event)
    seconds, cpu = time.monotonic() - start, cpu_seconds() - cpu_before
    size = result.path.stat().st_size
    return {"seconds": seconds, "cpu": cpu, "bytes": peak_bytes() - before, "size": size, "text": result.text}


def tables(checkpoints: list[Path], loras: list[Path], rank: int) -> dict[str, dict[str, Any]]:
    """Settings of each measurement by what it is called."""
    base, tuned = map(str, checkpoints)
    files = [{"path": str(path)} for path in loras]
    return {
        "bake": {"tool": "bake", "base": base, "networks": files[:1]},
        "extract": {"tool": "extract", "base": base, "tuned": tuned, "rank": rank},
        "combine, svd": {"tool": "combine", "networks": files, "rank": rank},
        "combine, concat": {"tool": "combine", "networks": files, "formula": "concat"},
        "resize": {"tool": "resize", "network": files[0]["path"], "rank": max(1, rank // 4)},
    }


def main() -> None:
    """Make, measure, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "networks")
    parser.add_argument("--family", choices=("sd1", "sdxl"), default="sd1")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(json.loads(options.one))))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoints = [options.folder / f"{letter}.safetensors" for letter in "ab"]
    loras = [options.folder / f"lora-{letter}.safetensors" for letter in "ab"]
    for seed, path in enumerate(checkpoints):
        make_checkpoint(path, options.family, seed)
        make_lora(loras[seed], checkpoints[0], options.rank, seed)
    sizes = " and ".join(f"{path.stat().st_size / GB:.2f}" for path in (checkpoints[0], loras[0]))
    print(f"a checkpoint and a LoRA of {sizes} GB; load average before {os.getloadavg()[0]:.1f}", flush=True)
    for what, table in tables(checkpoints, loras, options.rank).items():
        place = {"name": "result", "folder": str(options.folder)}
        forget(*checkpoints, *loras)
        command = [sys.executable, "-m", "benchmarks.networks", "--one", json.dumps({**table, **place})]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        (options.folder / "result.safetensors").unlink()
        print(
            f"{what}: {found['seconds']:.1f} s, processors {found['cpu']:.1f} s, peak {found['bytes'] / GB:.2f} GB "
            f"above the interpreter, {found['size'] / GB:.2f} GB written. {found['text']}",
            flush=True,
        )
    shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
