"""A LoRA file as factors per layer. R rank, in/out width of the base layer, kh kw its kernel.

The change of a weight is alpha / R * up @ down. Files of the other algorithms are read by `formats.network`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FormatError
from .checkpoint import read_checkpoint
from .suffixes import BUNDLED_EMBEDDING, lora_algorithms, tensors_by_layer

DOWN, UP, ALPHA, SCALE = "lora_down.weight", "lora_up.weight", "alpha", "scale"


@dataclass
class LoraLayer:
    """The factors of one layer: `down` (R, in) or (R, in, kh, kw), `up` (out, R) or (out, R, 1, 1), `alpha` > 0."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """R, the number of directions the layer is changed in."""
        return self.down.shape[0]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the base weight these factors fit: (out, in) or (out, in, kh, kw)."""
        return (self.up.shape[0], *self.down.shape[1:])

    def delta(self) -> Tensor:
        """What is added to the base weight at strength 1, float32, of shape `weight_shape`."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (product * (self.alpha / self.rank)).reshape(self.weight_shape)


def lora_tensors(layers: Mapping[str, LoraLayer], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a LoRA file: factors in `dtype` on the CPU, one float32 scalar alpha per layer.

    `layers` is keyed by layer name (no dots), see `keys.lora_layer_name`.
    """
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{name}.{DOWN}"] = layer.down.detach().to("cpu", dtype).contiguous()
        tensors[f"{name}.{UP}"] = layer.up.detach().to("cpu", dtype).contiguous()
        tensors[f"{name}.{ALPHA}"] = torch.tensor(layer.alpha, dtype=torch.float32)
    return tensors


def read_lora(path: Path) -> dict[str, LoraLayer]:
    """The factors of a LoRA or LoCon file by layer name, float32 on the CPU; without alpha it is the rank.

    Reads kohya's names and suffixes, and peft's `lora_A`/`lora_B` under kohya's or diffusers' names. An embedding
    bundled with it is left out. Raises FormatError for LoHa, LoKr and other algorithms, incomplete layers, and damage.
    """
    tensors = {k: v for k, v in read_checkpoint(path).tensors.items() if not k.startswith(BUNDLED_EMBEDDING)}
    _refuse_other_algorithms(path, tensors)
    return {name: _layer(path, name, found) for name, found in tensors_by_layer(path, tensors).items()}


def _refuse_other_algorithms(path: Path, names: Iterable[str]) -> None:
    algorithms = lora_algorithms(names)
    others = [algorithm for algorithm in algorithms if algorithm != "LoRA"]
    if others:
        raise FormatError(
            f"{path} is made with {', '.join(others)}; accepted here are plain factors.",
            "Choose a plain LoRA or LoCon file.",
        )
    if not algorithms:
        raise FormatError(f"{path} is not a LoRA: it has no lora_down/lora_up tensors.", "Choose a LoRA file.")


def _layer(path: Path, name: str, parts: Mapping[str, Tensor]) -> LoraLayer:
    missing = [suffix.removesuffix(".weight") for suffix in (DOWN, UP) if suffix not in parts]
    if missing:
        raise FormatError(f"{path}: the layer {name} lacks {' and '.join(missing)}.", "The file is incomplete.")
    down, up = parts[DOWN].float(), parts[UP].float()
    if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1] or down.shape[0] == 0:
        shapes = f"{tuple(up.shape)} and {tuple(down.shape)}"
        raise FormatError(
            f"{path}: up and down of the layer {name} do not fit together: {shapes}.", "The file is damaged."
        )
    rank = float(down.shape[0])
    alpha = _number(parts[ALPHA]) if ALPHA in parts else rank
    return LoraLayer(down, up, _number(parts[SCALE]) * rank if SCALE in parts else alpha)


def _number(tensor: Tensor) -> float:
    return float(tensor.float().reshape(-1)[0])
