"""SD 2.1 and SDXL at their published sizes, with random weights: the way there and back, and a step of an SDXL LoRA.

    python -m benchmarks.families [--folder FOLDER] [--families sd2 sdxl] [--steps N] [--resolution PX] [--keep]

For each family a half-precision checkpoint is made in FOLDER (SDXL: 7 GB), loaded as training loads it, and written
again from memory tensor by tensor; then a LoRA is trained for some steps with gradient checkpointing, through the
command line. Peak memory is that of the whole training process, loading included.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from extensions_lib.events import StepCompleted
from extensions_lib.formats.checkpoint import write_checkpoint
from extensions_lib.formats.safetensors_io import read_header
from extensions_lib.jobs.store import RunFolder
from extensions_lib.models.ldm import POSITION_IDS, bundle_to_ldm
from extensions_lib.models.load import load_bundle
from extensions_lib.practice.real_sizes import real_tensors

from .run import STANDARD_DEVIATION, copy_photographs

NUM_RANDOM = 2**22


def random_values(empty: Tensor, name: str, block: Tensor) -> Tensor:
    """Gains of one, biases of zero, and for the rest a short run of random numbers over and over."""
    if name.endswith(POSITION_IDS):
        return torch.arange(empty.shape[-1])[None]
    if empty.ndim < 2:
        return torch.full(empty.shape, float(name.endswith("weight")), dtype=empty.dtype)
    repeats = -(-empty.numel() // len(block))
    return block.repeat(repeats)[: empty.numel()].reshape(empty.shape)


def make_checkpoint(path: Path, family: str) -> None:
    """Write the checkpoint unless it is there."""
    if path.exists():
        return
    block = (torch.randn(NUM_RANDOM, generator=torch.Generator().manual_seed(0)) * STANDARD_DEVIATION).half()
    tensors = {name: random_values(empty, name, block) for name, empty in real_tensors(family).items()}
    write_checkpoint(path, tensors, {})


def there_and_back(path: Path) -> None:
    """Load in the file's own number format, write again from memory, compare every tensor with the file's, print."""
    start = time.monotonic()
    bundle = load_bundle(path, dtype=torch.float16)
    seconds = time.monotonic() - start
    written = bundle_to_ldm(bundle)
    with safe_open(path, framework="pt") as file:
        num_equal = sum(torch.equal(tensor, file.get_tensor(name)) for name, tensor in written.items())
    is_same_order = list(written) == list(read_header(path)[0])
    print(
        f"{path.stem}: {bundle.family.name}, {bundle.family.prediction_type}, loaded in {seconds:.0f} s; of "
        f"{len(written)} tensors {num_equal} are written as they were; names and order the same: {is_same_order}",
        flush=True,
    )


def in_own_process(function: Callable[..., None], *arguments: object) -> None:
    """Call `function` where its memory is not that of what follows."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed")


def train(folder: Path, checkpoint: Path, steps: int, resolution_px: int) -> tuple[Path, list[StepCompleted]]:
    """A LoRA in a process of its own. Returns the result and its steps."""
    name = f"lora-{checkpoint.stem}"
    job = {
        "name": name,
        "base_model": str(checkpoint),
        "method": {"kind": "lora", "rank": 16, "alpha": 8.0, "train_text_encoder": False},
        "dataset": {"folder": str(folder / "photographs"), "resolution_px": resolution_px},
        "training": {
            "max_train_steps": steps,
            "train_batch_size": 1,
            "state_every_steps": 1000,
            "gradient_checkpointing": True,
        },
        "preview": {"enabled": False},
        "output": {"folder": str(folder / "out"), "runs_folder": str(folder / "runs"), "overwrite": True},
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "extensions_lib", "train", str(path)], check=True)
    newest = max((folder / "runs").glob(f"{name}*"), key=lambda run: run.stat().st_mtime)
    events = [event for event in RunFolder(newest).events() if isinstance(event, StepCompleted)]
    return folder / "out" / f"{name}.safetensors", events


def main() -> None:
    """Make, load, write, compare, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "real-size")
    parser.add_argument("--families", nargs="+", choices=("sd2", "sdxl"), default=("sd2", "sdxl"))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    copy_photographs(options.folder / "photographs")
    for family in options.families:
        checkpoint = options.folder / f"{family}-random.safetensors"
        in_own_process(make_checkpoint, checkpoint, family)
        in_own_process(there_and_back, checkpoint)
        path, steps = train(options.folder, checkpoint, options.steps, options.resolution)
        print(
            f"{family} LoRA at {options.resolution} px: {', '.join(f'{step.seconds:.1f}' for step in steps)} s for the "
            f"steps, peak {max(step.peak_memory_gib for step in steps):.2f} GiB, {len(read_header(path)[0])} tensors",
            flush=True,
        )
        if not options.keep:
            checkpoint.unlink()


if __name__ == "__main__":
    main()
