"""What several LoRA-family files do to one layer together, exactly or by the nearest factors.

Letters: O outputs of the layer, F numbers of one output, R directions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.networks import ReducingConfig
from ..errors import MergeError
from ..formats.network import LayerChange, lora_change
from ..formats.safetensors_io import DTYPES
from .plan import FILE_DTYPES
from .ranks import Lengths, RankChoice, choice_of, factors_of, factors_of_product


@dataclass(frozen=True)
class Part:
    """What one file does to the layer, and how strongly; `bias_weight` is the strength of what changes the bias."""

    change: LayerChange
    weight: float = 1.0
    bias_weight: float = 1.0


def nearest_change(parts: Sequence[Part], config: ReducingConfig, lengths: Lengths) -> LayerChange:
    """The nearest factors to the sum; `lengths` counts what is left out.

    The sum stays whole for a norm layer, and where it changes the bias, unless `config.biases` is 'drop'. Raises
    MergeError when the parts are for layers of different shapes.
    """
    shape = common_shape(parts)
    bias, whole = _bias(parts), _whole(parts)
    has_bias = bias is not None and bool(bias.any())
    is_whole = len(shape) == 1 or (has_bias and config.biases == "keep")
    if has_bias:
        lengths.count(bias, None if is_whole else bias)
    if is_whole:
        lengths.count(whole)
        return whole_change(parts)
    factors = _nearest_factors(parts, whole, choice_of(config))
    change = lora_change(parts[0].change.name, *factors, shape, DTYPES[FILE_DTYPES[config.dtype]])
    lengths.count(whole, whole - change.undecomposed())
    return change


def common_shape(parts: Sequence[Part]) -> tuple[int, ...]:
    """The shape of the layer's weight; of a linear layer and a 1x1 convolution the first. Raises MergeError."""
    shapes = [part.change.shape for part in parts]
    flat = {(len(shape) > 1, shape[0], math.prod(shape)) for shape in shapes}
    if len(flat) > 1:
        listed = ", ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise MergeError(
            f"The files do not fit each other: the layer {parts[0].change.name} has the shapes {listed}.",
            "Choose files made for the same models.",
        )
    return shapes[0]


def _whole(parts: Sequence[Part]) -> Tensor:
    shape = common_shape(parts)
    return sum(part.weight * part.change.undecomposed().reshape(shape) for part in parts)


def _bias(parts: Sequence[Part]) -> Tensor | None:
    biases = [(part.change.bias_delta(), part.bias_weight) for part in parts]
    told = [bias * weight for bias, weight in biases if bias is not None]
    return sum(told[1:], told[0]) if told else None


def whole_change(parts: Sequence[Part]) -> LayerChange:
    """The sum as a difference of the whole weight, and of the bias where a part has one. Raises as `common_shape`."""
    name, whole, bias = parts[0].change.name, _whole(parts), _bias(parts)
    if whole.ndim == 1:
        return LayerChange(name, "norm difference", {"w_norm": whole, "b_norm": bias})
    return LayerChange(name, "full difference", {"diff": whole, **({} if bias is None else {"diff_b": bias})})


def _nearest_factors(parts: Sequence[Part], whole: Tensor, choice: RankChoice) -> tuple[Tensor, Tensor]:
    """up (O, R) and down (R, F); from the files' own factors where all have some, and few enough."""
    matrix = whole.flatten(1)
    given = [part.change.factors() for part in parts]
    if None in given or sum(len(down) for _, down in given) >= min(matrix.shape):
        return factors_of(matrix, choice)
    scales = [part.weight * part.change.scale for part in parts]
    up = torch.cat([up * scale for (up, _), scale in zip(given, scales, strict=True)], dim=1)
    return factors_of_product(up, torch.cat([down for _, down in given]), choice)
