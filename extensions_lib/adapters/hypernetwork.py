"""Hypernetworks: a small network before the keys and one before the values of attentions, a pair for each width.

Letters: B batch, T places, W width of what an attention takes its keys from, S sizes of the layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

NORMAL_DEVIATION = 0.01
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softsign": nn.Softsign,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "logsigmoid": nn.LogSigmoid,
    "tanhshrink": nn.Tanhshrink,
}


class ContextNetwork(nn.Module):
    """x + multiplier * linear(x) for x (B, T, W), in float32 whatever x is. `multiplier` 0 is never computed.

    `linear` has the names of the WebUI's file: entries without parameters take a number too.
    """

    multiplier: float = 1.0

    def __init__(
        self,
        width: int,
        *,
        layer_structure: Sequence[float],
        activation: str,
        weight_init: str,
        layer_norm: bool,
        activate_output: bool,
        dropout_structure: Sequence[float],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        sizes = [int(width * multiple) for multiple in layer_structure]
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
            layers.append(Dense(initial_weight((outputs, inputs), weight_init, generator)))
            if activation != "linear" and (activate_output or number < len(sizes) - 1):
                layers.append(_ACTIVATIONS[activation]())
            if layer_norm:
                layers.append(Norm(outputs))
            if dropout_structure[number] > 0:
                layers.append(nn.Dropout(dropout_structure[number]))
        self.linear = nn.Sequential(*layers)

    def forward(self, states: Tensor) -> Tensor:
        """What the keys or values are made from, of the shape and dtype of `states`."""
        precise = states.float()
        return (precise + self.multiplier * self.linear(precise)).to(states.dtype)


class Dense(nn.Module):
    """A linear layer with bias. Not torch's own, whose making draws random numbers and which WebUIs patch."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(weight.shape[0]))

    def forward(self, states: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        return functional.linear(states, self.weight, self.bias)


class Norm(nn.Module):
    """A layer norm with gains of one.

    The WebUI's trainer draws the gains from N(0, 0.01) like weights, which leaves its networks nearly dead.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, states: Tensor) -> Tensor:
        """Mean 0 and deviation 1 over the last dimension, then gain and bias."""
        return functional.layer_norm(states, self.weight.shape, self.weight, self.bias)


def initial_weight(shape: tuple[int, int], rule: str, generator: torch.Generator) -> Tensor:
    """A weight (O, I) drawn by one of the WebUI's rules: Glorot and Bengio 2010 ('Xavier'), He et al. 2015 ('Kaiming').

    Drawn without torch.nn.init, which a host may disable. Raises KeyError for another rule.
    """
    outputs, inputs = shape
    deviation = {
        "Normal": NORMAL_DEVIATION,
        "XavierUniform": math.sqrt(2 / (inputs + outputs)),
        "XavierNormal": math.sqrt(2 / (inputs + outputs)),
        "KaimingUniform": math.sqrt(2 / inputs),
        "KaimingNormal": math.sqrt(2 / inputs),
    }[rule]
    if rule.endswith("Uniform"):
        return (torch.rand(shape, generator=generator) * 2 - 1) * (deviation * math.sqrt(3))
    return torch.randn(shape, generator=generator) * deviation


@contextmanager
def hooked_before(networks: Mapping[nn.Module, ContextNetwork]) -> Iterator[None]:
    """Within the context every layer gets its input through its network; afterwards the layers are as before."""
    with ExitStack() as stack:
        for layer, network in networks.items():
            stack.callback(layer.register_forward_pre_hook(_hook(network)).remove)
        yield


def _hook(network: ContextNetwork):  # noqa: ANN202 - the type of a torch forward hook
    def change_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (network(inputs[0]), *inputs[1:]) if network.multiplier else None

    return change_input
