"""Merging two checkpoints at the real sizes of SDXL (or SD 1.5), filled with random numbers.

    python -m benchmarks.merge [--folder FOLDER] [--family sdxl|sd1] [--formula FORMULA ...] [--rounds N] [--keep]

Speed and memory do not depend on what the numbers are. Two fp16 files of the published shapes are made in FOLDER. Then,
each in a process of its own and with the files out of the system's cache:

* copy: one file is copied (read once, written once)
* same bytes: both files are read and one is written, as a merge must, without computing
* merge: the formulas, without and with the hashes of the models that the recipe needs

Every writer waits until its file is on the disk. Memory is the highest resident size less that after the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCK_BYTES = 16 << 20
GB = 1e9

SDXL_CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": {},
    "text_encoder": {},
    "text_encoder_2": {
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    },
}
CONFIGS = {"sdxl": SDXL_CONFIGS, "sd1": {"unet": {}, "vae": {}, "text_encoder": {}}}


def make_checkpoint(path: Path, family_name: str, seed: int) -> None:
    """Write a checkpoint of the family's shapes in fp16, unless it is there."""
    import torch

    from extensions_lib.formats.safetensors_io import TensorInfo
    from extensions_lib.formats.tensor_file import write_tensors_as_made
    from extensions_lib.merge.models import FAMILIES
    from extensions_lib.models.build import build_module
    from extensions_lib.models.configs import base_config
    from extensions_lib.models.ldm import part_to_ldm

    if path.exists():
        return
    infos: dict[str, TensorInfo] = {}
    for part, changes in CONFIGS[family_name].items():
        module = build_module(part, base_config(part.removesuffix("_2")) | changes)
        tensors = part_to_ldm(part, module, FAMILIES[family_name])
        infos |= {name: TensorInfo("F16", tuple(tensor.shape)) for name, tensor in tensors.items()}
    numbers = torch.randn(1 << 22, generator=torch.Generator().manual_seed(seed)).mul_(0.02).half()

    def make(name: str) -> torch.Tensor:
        count = torch.Size(infos[name].shape).numel()
        return numbers.repeat(count // numbers.numel() + 1)[:count].reshape(infos[name].shape)

    write_tensors_as_made(path, infos, make, {})


def forget(*paths: Path) -> None:
    """Put files out of the system's cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def copy(sources: list[Path], target: Path) -> None:
    """Read all `sources` in turns, write what the first holds, and wait until it is on the disk."""
    files = [path.open("rb", buffering=0) for path in sources]
    buffers = [bytearray(BLOCK_BYTES) for _ in sources]
    with target.open("wb", buffering=0) as out:
        while count := files[0].readinto(buffers[0]):
            for file, buffer in zip(files[1:], buffers[1:], strict=True):
                file.readinto(buffer)
            out.write(memoryview(buffers[0])[:count])
        os.fsync(out.fileno())
    for file in files:
        file.close()


def peak_bytes() -> int:
    """The highest resident size of this process so far. (What getrusage says counts the parent process too.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024


def cpu_seconds() -> float:
    """The processor time of this process so far, its own and that spent for it by the system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run_one(what: str, sources: list[Path], target: Path, with_hashes: bool) -> dict[str, float]:
    """Do one thing and measure: seconds, those of the processors, and bytes above the interpreter with its imports."""
    from extensions_lib.config.tools import load_tool
    from extensions_lib.control import JobControl
    from extensions_lib.merge.execute import execute
    from extensions_lib.merge.plan import plan_merge

    table = {"name": target.stem, "folder": str(target.parent), "models": [str(path) for path in sources]}
    work: Callable[[], object]
    if what == "copy":
        work = lambda: copy(sources[:1], target)  # noqa: E731
    elif what == "same bytes":
        work = lambda: copy(sources, target)  # noqa: E731
    else:
        plan = plan_merge(load_tool("merge", {**table, "formula": what}))
        hash_of = (lambda path: None) if with_hashes else (lambda path: "0" * 64)
        work = lambda: execute(plan, JobControl(), lambda event: event, hash_of=hash_of)  # noqa: E731
    before, cpu_before, start = peak_bytes(), cpu_seconds(), time.monotonic()
    work()
    seconds, cpu = time.monotonic() - start, cpu_seconds() - cpu_before
    return {"seconds": seconds, "cpu": cpu, "bytes": peak_bytes() - before}


def measure(what: str, sources: list[Path], with_hashes: bool = False) -> dict[str, float]:
    """`run_one` in a process of its own; its file is deleted."""
    target = sources[0].with_name("benchmark-result.safetensors")
    target.unlink(missing_ok=True)
    forget(*sources)
    options = json.dumps([what, [str(path) for path in sources], str(target), with_hashes])
    command = [sys.executable, "-m", "benchmarks.merge", "--one", options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    target.unlink()
    return json.loads(done.stdout)


def main() -> None:
    """Make, measure, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "merge")
    parser.add_argument("--family", choices=tuple(CONFIGS), default="sdxl")
    parser.add_argument("--formula", nargs="+", default=["weighted_sum"])
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--keep", action="store_true", help="leave the two files")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, sources, target, with_hashes = json.loads(options.one)
        print(json.dumps(run_one(what, [Path(source) for source in sources], Path(target), with_hashes)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    sources = [options.folder / f"{options.family}-{letter}.safetensors" for letter in "ab"]
    for seed, path in enumerate(sources):
        make_checkpoint(path, options.family, seed)
    size = sources[0].stat().st_size
    print(f"two files of {size / GB:.2f} GB; load average before {os.getloadavg()[0]:.1f}")
    report(sources, options.formula, size, options.rounds)
    if not options.keep:
        shutil.rmtree(options.folder)


def report(sources: list[Path], formulas: list[str], size: int, num_rounds: int) -> None:
    """Measure everything once a round, so that a slow moment of the disk meets all alike; print a line of medians each.

    Speeds are of the bytes of one file.
    """
    kinds = [("copy", False), ("same bytes", False)]
    kinds += [(formula, with_hashes) for formula in formulas for with_hashes in (False, True)]
    rounds = [{kind: measure(kind[0], sources, kind[1]) for kind in kinds} for _ in range(num_rounds)]
    median = {kind: _median([found[kind] for found in rounds]) for kind in kinds}
    for (what, with_hashes), found in median.items():
        shares = [f"{median[other]['seconds'] / found['seconds']:.0%} of {other[0]}" for other in kinds[:2]]
        print(
            f"{what}{' with hashes' if with_hashes else ''}: {_times(found, size)}, {', '.join(shares)}, "
            f"peak {found['bytes'] / GB:.2f} GB above the interpreter",
            flush=True,
        )


def _median(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(each[key] for each in found) for key in found[0]}


def _times(found: dict[str, float], size: int) -> str:
    return f"{found['seconds']:.1f} s ({size / GB / found['seconds']:.2f} GB/s), processors {found['cpu']:.1f} s"


if __name__ == "__main__":
    main()
