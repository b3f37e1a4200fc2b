"""Small checkpoints with the names of real ones, and a merge of them in one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.config.tools import load_tool
from extensions_lib.control import JobControl
from extensions_lib.events import Event
from extensions_lib.formats.network import network_tensors
from extensions_lib.formats.safetensors_io import write_atomic
from extensions_lib.merge.bake import bake, plan_bake
from extensions_lib.merge.execute import execute
from extensions_lib.merge.plan import plan_merge
from extensions_lib.merge.writing import Merged

UNET = "model.diffusion_model."
SHAPES = {
    UNET + "input_blocks.0.0.weight": (2, 4, 3, 3),
    UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (6, 768),
    UNET + "middle_block.0.in_layers.0.weight": (5,),
    UNET + "output_blocks.3.0.out_layers.0.bias": (4,),
    UNET + "out.2.bias": (4,),
    "first_stage_model.decoder.conv_in.weight": (3, 4, 3, 3),
    "first_stage_model.quant_conv.weight": (4, 4, 1, 1),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (9, 8),
}
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"

Tensors = dict[str, torch.Tensor]


def small_model(seed: int, dtype: torch.dtype = torch.float16, **shapes: tuple[int, ...]) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    changed = {**SHAPES, **shapes}
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in changed.items()}
    return {**tensors, POSITIONS: torch.arange(5)[None], "betas": torch.linspace(0.1 + seed, 1.0, 4)}


def stored(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors}, path)
        return path
    return write_atomic(path, tensors, metadata or {})


@pytest.fixture
def abc(tmp_path: Path) -> list[Path]:
    """Models A, B and C."""
    folder = tmp_path / "models"
    folder.mkdir()
    return [stored(folder / f"{letter}.safetensors", small_model(i)) for i, letter in enumerate("abc")]


@pytest.fixture
def merge(tmp_path: Path) -> Callable[..., Merged]:
    """merge(models, formula=..., ...) -> what was written."""

    def run(models: list[Path], name: str = "mixed", **settings: Any) -> Merged:
        paths = [{"path": str(model)} if isinstance(model, Path) else model for model in models]
        config = load_tool("merge", {"name": name, "models": paths, "folder": str(tmp_path / "out"), **settings})
        return execute(plan_merge(config), JobControl(), lambda event: event)

    return run


@pytest.fixture
def baking(tmp_path: Path) -> Callable[..., Merged]:
    """baking(base, files, ...) -> what was written, in float32."""

    def run(base: Path, *networks: Any, events: list[Event] | None = None, **settings: Any) -> Merged:
        entries = [{"path": str(each)} if isinstance(each, Path) else each for each in networks]
        table = {"name": base.stem, "base": str(base), "networks": entries, "folder": str(tmp_path / "out")}
        plan = plan_bake(load_tool("bake", {**table, "dtype": "fp32", **settings}))
        return bake(plan, JobControl(), (events if events is not None else []).append)

    return run


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small_lora(folder: Path, name: str, *layers: tuple[str, int, int], seed: int = 0) -> Path:
    """A LoRA of rank 2 with layers (name, outputs, inputs)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        layer: {
            "lora_up.weight": torch.randn(outputs, 2, generator=generator),
            "lora_down.weight": torch.randn(2, inputs, generator=generator),
            "alpha": torch.tensor(1.0),
        }
        for layer, outputs, inputs in layers
    }
    return write_atomic(folder / name, network_tensors(tensors, torch.float32), {"modelspec.title": name})
