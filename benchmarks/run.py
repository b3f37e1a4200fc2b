"""Training at the real sizes of Stable Diffusion 1.5, on real photographs, with random weights.

    python -m benchmarks.run [--folder FOLDER] [--steps N] [--resolution PX]

Speed and memory do not depend on the values of weights. A checkpoint of the published shapes (860 M, 84 M and 123 M
parameters, fp16) is made once in FOLDER; then a LoRA and an embedding are trained for some steps through the command
line, each in a process of its own, and their files are compared with the published names and shapes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from extensions_lib.events import Event, StepCompleted
from extensions_lib.formats.checkpoint import write_checkpoint
from extensions_lib.formats.safetensors_io import read_header
from extensions_lib.jobs.store import RunFolder
from extensions_lib.models.build import build_module
from extensions_lib.models.configs import base_config
from extensions_lib.models.family import SD1
from extensions_lib.models.ldm import part_to_ldm

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg")
STANDARD_DEVIATION = 0.02
METHODS = {
    "lora": {"kind": "lora", "rank": 16, "alpha": 8.0, "train_text_encoder": False},
    "textual_inversion": {"kind": "textual_inversion", "vectors_per_token": 4, "initializer_text": "cat"},
}


def random_part(part: str, generator: torch.Generator) -> nn.Module:
    """A part at its published size with fp16 weights; norms keep gains of one."""
    module = build_module(part, base_config(part))
    tensors: dict[str, Tensor] = {}
    for name, empty in module.state_dict().items():
        if empty.ndim == 1:
            tensors[name] = torch.full(empty.shape, float(name.endswith("weight")), dtype=torch.float16)
        else:
            tensors[name] = (torch.randn(empty.shape, generator=generator) * STANDARD_DEVIATION).half()
    module.load_state_dict(tensors, assign=True)
    return module


def make_checkpoint(path: Path) -> None:
    """Write the checkpoint unless it is there."""
    if path.exists():
        return
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for part in ("unet", "vae", "text_encoder"):
        tensors |= part_to_ldm(part, random_part(part, generator), SD1)
    write_checkpoint(path, tensors, {})


def copy_photographs(folder: Path) -> None:
    """The sample photographs that ship inside scikit-image, of several sizes and shapes."""
    import skimage

    source = Path(skimage.__file__).parent / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        (folder / name).write_bytes((source / name).read_bytes())


def train(folder: Path, kind: str, steps: int, resolution_px: int) -> tuple[Path, list[StepCompleted]]:
    """Train in a process of its own. Returns the result and its steps."""
    job = {
        "name": f"real-size-{kind}",
        "base_model": str(folder / "sd15-random.safetensors"),
        "method": METHODS[kind],
        "dataset": {"folder": str(folder / "photographs"), "resolution_px": resolution_px},
        "training": {"max_train_steps": steps, "train_batch_size": 1, "state_every_steps": 1000},
        "preview": {"enabled": False},
        "output": {"folder": str(folder / "out"), "runs_folder": str(folder / "runs"), "overwrite": True},
    }
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "extensions_lib", "train", str(path)], check=True)
    newest = max((folder / "runs").glob(f"real-size-{kind}*"), key=lambda run: run.stat().st_mtime)
    events: list[Event] = list(RunFolder(newest).events())
    result = folder / "out" / f"real-size-{kind}.safetensors"
    return result, [event for event in events if isinstance(event, StepCompleted)]


def published_lora_shapes(rank: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published SD 1.5 LoRA of the UNet (kohya's 192 modules), written out from its grammar."""
    shapes: dict[str, tuple[int, ...]] = {}
    places = {f"down_blocks_{i}_attentions_{j}": 320 * 2**i for i in range(3) for j in range(2)}
    places |= {"mid_block_attentions_0": 1280}
    places |= {f"up_blocks_{i}_attentions_{j}": 320 * 2 ** (3 - i) for i in range(1, 4) for j in range(3)}
    for place, width in places.items():
        block = f"{place}_transformer_blocks_0"
        layers = {f"{place}_{name}": (width, width, 1, 1) for name in ("proj_in", "proj_out")}
        for attention, context in (("attn1", width), ("attn2", 768)):
            layers |= {f"{block}_{attention}_{name}": (width, width) for name in ("to_q", "to_out_0")}
            layers |= {f"{block}_{attention}_{name}": (width, context) for name in ("to_k", "to_v")}
        layers |= {f"{block}_ff_net_0_proj": (8 * width, width), f"{block}_ff_net_2": (width, 4 * width)}
        for name, (outputs, inputs, *kernel) in layers.items():
            shapes[f"lora_unet_{name}.lora_down.weight"] = (rank, inputs, *kernel)
            shapes[f"lora_unet_{name}.lora_up.weight"] = (outputs, rank, *kernel)
            shapes[f"lora_unet_{name}.alpha"] = ()
    return shapes


def main() -> None:
    """Make, train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "real-size")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--resolution", type=int, default=256)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    make_checkpoint(options.folder / "sd15-random.safetensors")
    copy_photographs(options.folder / "photographs")
    expected = {
        "lora": published_lora_shapes(16),
        "textual_inversion": {"real-size-textual_inversion": (4, 768)},
    }
    for kind in METHODS:
        path, steps = train(options.folder, kind, options.steps, options.resolution)
        found = {name: info.shape for name, info in read_header(path)[0].items()}
        seconds = [step.seconds for step in steps[1:]]
        print(
            f"{kind}: {statistics.median(seconds):.2f} s a step (median of {len(seconds)}, the first left out), "
            f"peak {max(step.peak_memory_gib for step in steps):.2f} GiB, {len(found)} tensors, "
            f"names and shapes as published: {found == expected[kind]}"
        )


if __name__ == "__main__":
    main()
