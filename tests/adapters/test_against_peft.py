"""LoRA, LoHa and LoKr against peft 0.13, whose layers get the numbers of our files. DoRA is not: its axis is another.

peft's LoKr of this version ignores alpha, so ours is given alpha = R, or a whole matrix.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from extensions_lib.adapters.attach import hooked
from extensions_lib.adapters.linear import LoraAdapter
from extensions_lib.adapters.loha import LohaAdapter
from extensions_lib.adapters.lokr import LokrAdapter
from extensions_lib.adapters.weight import WeightAdapter
from extensions_lib.formats.network import LayerChange

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")

RANK, ALPHA, FACTOR = 3, 6.0, 4
LAYERS = {
    "linear": (lambda: nn.Linear(24, 16), (2, 5, 24)),
    "1x1": (lambda: nn.Conv2d(24, 16, 1), (2, 24, 5, 5)),
    "3x3": (lambda: nn.Conv2d(24, 16, 3, padding=1), (2, 24, 5, 5)),
    "strided": (lambda: nn.Conv2d(24, 16, 3, stride=2, padding=1), (2, 24, 6, 6)),
}
LORA_NAMES = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}


@pytest.fixture(autouse=True)
def _own_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def made(algorithm: str, layer: nn.Module) -> tuple[WeightAdapter, object]:
    """Our adapter, and peft's config for the same."""
    generator = torch.Generator().manual_seed(0)
    given = {"target_modules": ["layer"]}
    if algorithm == "lora":
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, **given)
        return LoraAdapter(layer, RANK, ALPHA, generator), config
    if algorithm == "loha":
        return LohaAdapter(layer, RANK, ALPHA, generator), peft.LoHaConfig(r=RANK, alpha=ALPHA, **given)
    rank = 100 if algorithm == "lokr whole" else 1
    config = peft.LoKrConfig(r=rank, alpha=rank, decompose_factor=FACTOR, **given)
    return LokrAdapter(layer, rank, float(rank), generator, factor=FACTOR), config


def fill(adapter: WeightAdapter) -> None:
    with torch.no_grad():
        for index, parameter in enumerate(adapter.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.3)


def wrapped(layer: nn.Module, config: object, tensors: dict[str, Tensor]) -> nn.Module:
    """A module whose `layer` is peft's, with our numbers in it. Raises KeyError when the parameters differ."""
    root = nn.ModuleDict({"layer": layer})
    peft.inject_adapter_in_model(config, root)
    expected = {name: tensor for name, tensor in tensors.items() if name != "alpha"}
    with torch.no_grad():
        for name, parameter in root.named_parameters():
            if "base_layer" not in name:
                suffix = name.removeprefix("layer.").replace(".default", "")
                parameter.copy_(expected.pop(LORA_NAMES.get(suffix, suffix)).reshape(parameter.shape))
    assert not expected
    return root["layer"]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "lokr whole"])
def test_output_and_gradients_are_pefts(algorithm: str, kind: str) -> None:
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape)
    adapter, config = made(algorithm, layer)
    fill(adapter)
    with hooked({layer: adapter}):
        ours = layer(x)
        ours.square().mean().backward()
    weight = layer.weight.detach().clone()
    theirs_layer = wrapped(layer, config, adapter.tensors())
    theirs = theirs_layer(x)
    theirs.square().mean().backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    names = {"lora": "LoRA", "loha": "LoHa"}
    change = LayerChange("x", names.get(algorithm, "LoKr"), adapter.tensors())
    torch.testing.assert_close(change.delta(weight), theirs_layer.get_delta_weight("default").detach())
    gradients = {name: parameter.grad for name, parameter in theirs_layer.named_parameters() if "base" not in name}
    for name, suffix in adapter.suffixes.items():
        parameter = getattr(adapter, name)
        if parameter is not None:
            found = next(grad for own, grad in gradients.items() if _suffix(own) == suffix)
            torch.testing.assert_close(parameter.grad, found.reshape(parameter.shape), rtol=1e-4, atol=1e-6)


def _suffix(name: str) -> str:
    name = name.replace(".default", "")
    return LORA_NAMES.get(name, name)
