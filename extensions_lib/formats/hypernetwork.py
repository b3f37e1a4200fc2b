"""Hypernetworks in the one file the WebUI lists: a `.pt` of state dicts by width, and what it needs to build them.

Letters: W width of what an attention takes its keys from, B batch, T places.
Source of the layout: AUTOMATIC1111 1.10, `modules/hypernetworks/hypernetwork.py` (read, not copied).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import FormatError
from .torch_file import plain_tensor, read_torch_file

Tensors = Mapping[str, Tensor]

_HINT = "Choose a hypernetwork (.pt) of the WebUI."
_OLD_NAMES = {"linear1": "linear.0", "linear2": "linear.1"}
_LINEAR = "linear"
_FUNCTIONS = {
    "relu": torch.relu,
    "leakyrelu": functional.leaky_relu,
    "elu": functional.elu,
    "swish": functional.hardswish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": functional.softsign,
    "mish": functional.mish,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "selu": torch.selu,
    "celu": torch.celu,
    "relu6": functional.relu6,
    "hardtanh": functional.hardtanh,
    "logsigmoid": functional.logsigmoid,
    "tanhshrink": functional.tanhshrink,
}


@dataclass(frozen=True)
class HypernetworkDesign:
    """How all networks of a file are built. `layer_structure` and `dropout_structure` have as many entries.

    Behind each layer come the activation (not behind the last one unless `activate_output`), the layer norm, dropout.
    """

    layer_structure: tuple[float, ...] = (1.0, 2.0, 1.0)
    activation: str = _LINEAR
    weight_init: str = "Normal"
    layer_norm: bool = False
    activate_output: bool = False
    dropout_structure: tuple[float, ...] = (0.0, 0.0, 0.0)

    def entries(self, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """What stands in the sequence 'linear' for W = `width`, in order: kind, and the shape of its weight."""
        sizes = [int(width * multiple) for multiple in self.layer_structure]
        for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
            yield "dense", (outputs, inputs)
            is_last = number == len(sizes) - 1
            if self.activation != _LINEAR and (self.activate_output or not is_last):
                yield "activation", ()
            if self.layer_norm:
                yield "norm", (outputs,)
            if self.dropout_structure[number] > 0:
                yield "dropout", ()

    def tensor_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of one network; entries without parameters take a number all the same."""
        shapes = {}
        for index, (_, shape) in enumerate(self.entries(width)):
            if shape:
                shapes[f"linear.{index}.weight"] = shape
                shapes[f"linear.{index}.bias"] = shape[:1]
        return shapes


@dataclass(frozen=True)
class HypernetworkFile:
    """`networks` holds for each width the tensors of the network before the keys and of that before the values."""

    design: HypernetworkDesign
    networks: Mapping[int, tuple[Tensors, Tensors]]
    name: str
    step: int = 0
    base: str | None = None

    def apply(self, states: Tensor, part: int, multiplier: float = 1.0) -> Tensor:
        """`states` (B, T, W) as the WebUI hands them to the keys (`part` 0) or values (1), float32.

        Widths without networks pass unchanged. Computed from the tensors alone, without dropout.
        """
        width = states.shape[-1]
        if width not in self.networks:
            return states
        tensors, hidden = self.networks[width][part], states.float()
        for index, (kind, shape) in enumerate(self.design.entries(width)):
            if kind == "dense":
                hidden = functional.linear(hidden, *_weights(tensors, index))
            elif kind == "norm":
                hidden = functional.layer_norm(hidden, shape, *_weights(tensors, index))
            elif kind == "activation":
                hidden = _FUNCTIONS[self.design.activation](hidden)
        return states.float() + multiplier * hidden


def _weights(tensors: Tensors, index: int) -> tuple[Tensor, Tensor]:
    return tensors[f"linear.{index}.weight"].float(), tensors[f"linear.{index}.bias"].float()


def hypernetwork_bytes(
    networks: Mapping[int, tuple[Tensors, Tensors]],
    design: HypernetworkDesign,
    *,
    name: str,
    step: int,
    checkpoint_hash: str | None = None,
    checkpoint_name: str | None = None,
    optional_info: str | None = None,
) -> bytes:
    """The file's content. `name` must be its stem, or the WebUI reads it again for every picture.

    `checkpoint_hash` is 10 hex digits (AutoV2), `optional_info` free text. Everything the WebUI has a default for is
    written, because its defaults for reading are others than for making. In torch's old serialization: the WebUI
    refuses zip files of recent torch versions.
    """
    content: dict[int | str, Any] = {
        width: tuple({key: tensor.detach().cpu().contiguous() for key, tensor in part.items()} for part in parts)
        for width, parts in networks.items()
    }
    content |= {
        "step": step,
        "name": name,
        "layer_structure": [_plain(multiple) for multiple in design.layer_structure],
        "activation_func": design.activation,
        "is_layer_norm": design.layer_norm,
        "weight_initialization": design.weight_init,
        "sd_checkpoint": checkpoint_hash,
        "sd_checkpoint_name": checkpoint_name,
        "activate_output": design.activate_output,
        "use_dropout": any(design.dropout_structure),
        "dropout_structure": [_plain(share) for share in design.dropout_structure],
        "last_layer_dropout": design.dropout_structure[-2] != 0,
        "optional_info": optional_info,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _plain(number: float) -> int | float:
    return int(number) if float(number).is_integer() else float(number)


def read_hypernetwork(path: Path) -> HypernetworkFile:
    """Read a `.pt`, as strictly as the WebUI does: each network has exactly the tensors its design asks for.

    Raises FormatError for anything else, damaged files and pickles with code (never run); ModelError when missing.
    """
    content = read_torch_file(path)
    if not isinstance(content, Mapping) or not any(isinstance(key, int) for key in content):
        raise FormatError(f"{path} is not a hypernetwork: it holds nothing under a width such as 768.", _HINT)
    design = _design(path, content)
    networks = {
        width: (_network(path, parts, 0, width, design), _network(path, parts, 1, width, design))
        for width, parts in content.items()
        if isinstance(width, int)
    }
    step, base = content.get("step"), content.get("sd_checkpoint_name") or content.get("sd_checkpoint")
    return HypernetworkFile(design, networks, path.stem, step if isinstance(step, int) else 0, base and str(base))


def _design(path: Path, content: Mapping[object, object]) -> HypernetworkDesign:
    """What the file says, with the WebUI's own defaults for reading where it says nothing."""
    sizes = _numbers(path, content, "layer_structure") or (1.0, 2.0, 1.0)
    activation = str(content.get("activation_func") or _LINEAR).lower()
    if activation != _LINEAR and activation not in _FUNCTIONS:
        raise FormatError(
            f"{path} uses the activation {activation!r}; accepted are linear, {', '.join(_FUNCTIONS)}.",
            "Train a new hypernetwork instead of going on from this one.",
        )
    if len(sizes) < 2:
        raise FormatError(f"{path} has the layer structure {list(sizes)}; at least two entries are needed.", _HINT)
    dropouts = _numbers(path, content, "dropout_structure") or _default_dropouts(content, len(sizes))
    if len(dropouts) != len(sizes):
        raise FormatError(f"{path} has {len(sizes)} sizes of layers and {len(dropouts)} dropouts.", _HINT)
    return HypernetworkDesign(
        layer_structure=sizes,
        activation=activation,
        weight_init=str(content.get("weight_initialization") or "Normal"),
        layer_norm=bool(content.get("is_layer_norm", False)),
        activate_output=bool(content.get("activate_output", True)),
        dropout_structure=dropouts,
    )


def _default_dropouts(content: Mapping[object, object], num_sizes: int) -> tuple[float, ...]:
    """Files of before the setting: 0.3 behind the hidden layers, and behind the one before the last if they say so."""
    if not content.get("use_dropout", False) or num_sizes < 3:
        return (0.0,) * num_sizes
    last = 0.3 if content.get("last_layer_dropout", False) else 0.0
    return (0.0, *(0.3,) * (num_sizes - 3), last, 0.0)


def _numbers(path: Path, content: Mapping[object, object], key: str) -> tuple[float, ...]:
    found = content.get(key)
    if found is None:
        return ()
    if not isinstance(found, (list, tuple)) or not all(isinstance(entry, (int, float)) for entry in found):
        raise FormatError(f"{path} is damaged: its {key} is {found!r}, not a list of numbers.", _HINT)
    return tuple(map(float, found))


def _network(path: Path, parts: object, part: int, width: int, design: HypernetworkDesign) -> dict[str, Tensor]:
    if not isinstance(parts, (list, tuple)) or len(parts) != 2 or not isinstance(parts[part], Mapping):
        raise FormatError(f"{path} holds no pair of networks under the width {width}.", _HINT)
    tensors = {_new_name(str(key)): plain_tensor(value) for key, value in parts[part].items()}
    found = {name: None if tensor is None else tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = design.tensor_shapes(width)
    if found != expected:
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise FormatError(
            f"{path} does not fit its own layer structure at width {width}: {', '.join(wrong[:3])} differ.", _HINT
        )
    return {name: tensor.float() for name, tensor in tensors.items() if tensor is not None}


def _new_name(name: str) -> str:
    head, _, rest = name.partition(".")
    return f"{_OLD_NAMES[head]}.{rest}" if head in _OLD_NAMES else name
