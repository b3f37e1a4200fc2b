"""A LoRA file as factors per layer. R rank, in/out width of the base layer, kh kw its kernel.

The change of a weight is alpha / R * up @ down. Names and suffixes are kohya's, which every WebUI reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FormatError
from .checkpoint import read_checkpoint

# What marks an algorithm in a tensor's last name parts; the first that matches names it. LoRA itself comes last.
_MARKS = (
    ("dora_scale", "DoRA"),
    ("lora_mid.weight", "LoCon (CP)"),
    ("hada_w1_a", "LoHa"),
    ("hada_w1_b", "LoHa"),
    ("lokr_w1", "LoKr"),
    ("lokr_w1_a", "LoKr"),
    ("lokr_w1_b", "LoKr"),
    ("on_input", "IA3"),
    ("a1.weight", "GLoRA"),
    ("oft_blocks", "OFT"),
    ("oft_diag", "OFT"),
    ("diff", "full difference"),
    ("diff_b", "full difference"),
    ("w_norm", "norm difference"),
    ("lora_down.weight", "LoRA"),
    ("lora_A.weight", "LoRA"),
    ("lora_A.default.weight", "LoRA"),
    ("lora.down.weight", "LoRA"),
)
_DOWN = (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", ".lora.down.weight")
_UP = (".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight", ".lora.up.weight")
_ALPHA = (".alpha",)
_BUNDLED_EMBEDDING = "bundle_emb."
# peft's and diffusers' dotted paths -> kohya's prefix.
_DOTTED_PREFIXES = {"unet.": "lora_unet_", "text_encoder.": "lora_te_", "text_encoder_2.": "lora_te2_"}


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
        tensors[f"{name}.lora_down.weight"] = layer.down.detach().to("cpu", dtype).contiguous()
        tensors[f"{name}.lora_up.weight"] = layer.up.detach().to("cpu", dtype).contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
    return tensors


def read_lora(path: Path) -> dict[str, LoraLayer]:
    """The factors of a LoRA or LoCon file by layer name, float32 on the CPU; without alpha it is the rank.

    Reads kohya's names and suffixes, and peft's `lora_A`/`lora_B` under kohya's or diffusers' names. An embedding
    bundled with it is left out. Raises FormatError for LoHa, LoKr and other algorithms, incomplete layers, and damage.
    """
    tensors = {k: v for k, v in read_checkpoint(path).tensors.items() if not k.startswith(_BUNDLED_EMBEDDING)}
    _refuse_other_algorithms(path, tensors)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, part = _split(path, key)
        parts.setdefault(name, {})[part] = tensor
    return {name: _layer(path, name, found) for name, found in parts.items()}


def lora_algorithms(names: Iterable[str]) -> list[str]:
    """The algorithms a LoRA or LyCORIS file uses, sorted, such as ['LoHa', 'LoRA']; empty for other files."""
    return sorted({algorithm for name in names if (algorithm := _algorithm(name)) is not None})


def _algorithm(name: str) -> str | None:
    for mark, algorithm in _MARKS:
        if name.endswith("." + mark):
            return algorithm
    return None


def _refuse_other_algorithms(path: Path, names: Iterable[str]) -> None:
    algorithms = lora_algorithms(names)
    others = [algorithm for algorithm in algorithms if algorithm != "LoRA"]
    if others:
        raise FormatError(
            f"{path} is made with {', '.join(others)}, not supported yet.", "Choose a plain LoRA or LoCon file."
        )
    if not algorithms:
        raise FormatError(f"{path} is not a LoRA: it has no lora_down/lora_up tensors.", "Choose a LoRA file.")


def _split(path: Path, key: str) -> tuple[str, str]:
    """('lora_unet_x', 'down') of 'lora_unet_x.lora_down.weight'."""
    for part, suffixes in (("down", _DOWN), ("up", _UP), ("alpha", _ALPHA)):
        for suffix in suffixes:
            if key.endswith(suffix):
                return _layer_name(key[: -len(suffix)]), part
    raise FormatError(f"{path} holds the tensor {key!r}, which no LoRA has.", "Choose a plain LoRA or LoCon file.")


def _layer_name(path: str) -> str:
    """kohya's layer name of a module; peft writes dotted paths."""
    path = path.removeprefix("base_model.model.")
    for dotted, prefix in _DOTTED_PREFIXES.items():
        if path.startswith(dotted):
            path = prefix + path[len(dotted) :]
    return path.replace(".", "_")


def _layer(path: Path, name: str, parts: Mapping[str, Tensor]) -> LoraLayer:
    missing = [f"lora_{part}" for part in ("down", "up") if part not in parts]
    if missing:
        raise FormatError(f"{path}: the layer {name} lacks {' and '.join(missing)}.", "The file is incomplete.")
    down, up = parts["down"].float(), parts["up"].float()
    if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1] or down.shape[0] == 0:
        shapes = f"{tuple(up.shape)} and {tuple(down.shape)}"
        raise FormatError(
            f"{path}: up and down of the layer {name} do not fit together: {shapes}.", "The file is damaged."
        )
    alpha = float(parts["alpha"].float().reshape(-1)[0]) if "alpha" in parts else float(down.shape[0])
    return LoraLayer(down, up, alpha)
