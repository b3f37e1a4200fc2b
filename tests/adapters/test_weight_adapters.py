"""Every adapter of a weight: what it adds is what the independent reader finds in its file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from extensions_lib.adapters.attach import hooked
from extensions_lib.adapters.dora import DoraAdapter
from extensions_lib.adapters.full import FullAdapter, NormAdapter
from extensions_lib.adapters.linear import LoraAdapter
from extensions_lib.adapters.loha import LohaAdapter
from extensions_lib.adapters.lokr import LokrAdapter, factorised, lokr_shapes
from extensions_lib.adapters.weight import Dropouts, WeightAdapter, cap_norms
from extensions_lib.formats.network import LayerChange, network_tensors, read_network
from extensions_lib.formats.safetensors_io import write_atomic

Make = Callable[[nn.Module], WeightAdapter]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ADAPTERS: dict[str, Make] = {
    "lora": lambda layer: LoraAdapter(layer, 2, 3.0, generator()),
    "loha": lambda layer: LohaAdapter(layer, 2, 3.0, generator()),
    "lokr": lambda layer: LokrAdapter(layer, 1, 3.0, generator(), factor=2),
    "lokr whole": lambda layer: LokrAdapter(layer, 1, 3.0, generator(), factor=2, is_whole=True),
    "full": lambda layer: FullAdapter(layer, has_bias=True),
    "dora": lambda layer: DoraAdapter(layer, LoraAdapter(layer, 2, 3.0, generator())),
    "dora of loha": lambda layer: DoraAdapter(layer, LohaAdapter(layer, 2, 3.0, generator())),
    "dora of lokr": lambda layer: DoraAdapter(layer, LokrAdapter(layer, 1, 3.0, generator(), factor=2)),
}
LAYERS = {
    "linear": (lambda: nn.Linear(12, 8), (3, 12)),
    "linear of tokens": (lambda: nn.Linear(12, 8, bias=False), (2, 5, 12)),
    "1x1": (lambda: nn.Conv2d(12, 8, 1), (2, 12, 5, 5)),
    "3x3": (lambda: nn.Conv2d(12, 8, 3, padding=1), (2, 12, 5, 5)),
    "strided": (lambda: nn.Conv2d(12, 8, 3, stride=2, padding=1), (2, 12, 6, 6)),
}
NORMS = {
    "layer norm": (lambda: nn.LayerNorm(6), (2, 5, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (2, 6, 4, 4)),
}


@pytest.fixture(autouse=True)
def _own_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def moved(adapter: WeightAdapter) -> WeightAdapter:
    with torch.no_grad():
        for index, parameter in enumerate(adapter.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator(index + 1)) * 0.3)
    return adapter


def layer_and_input(kind: str) -> tuple[nn.Module, Tensor]:
    make, shape = {**LAYERS, **NORMS}[kind]
    torch.manual_seed(1)
    return make(), torch.randn(shape, generator=generator(9))


def written(adapter: WeightAdapter, folder: Path) -> LayerChange:
    tensors = network_tensors({"lora_unet_x": adapter.tensors()}, torch.float32)
    return read_network(write_atomic(folder / "x.safetensors", tensors, {}))["lora_unet_x"]


def assert_acts_as_its_file(layer: nn.Module, adapter: WeightAdapter, x: Tensor, folder: Path) -> None:
    """At strengths 1 and 0.7 the hooked layer gives what the layer with the file's change of its weight gives."""
    change, weight = written(adapter, folder), layer.weight.detach().clone()
    bias = None if layer.bias is None else layer.bias.detach().clone()
    for strength in (1.0, 0.7):
        adapter.multiplier = strength
        with hooked({layer: adapter}), torch.no_grad():
            found = layer(x)
        with torch.no_grad():
            layer.weight.copy_(weight + change.delta(weight, strength))
            if bias is not None and change.bias_delta() is not None:
                layer.bias.copy_(bias + change.bias_delta(strength))
            torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", ADAPTERS)
def test_the_forward_pass_is_the_files_change(name: str, kind: str, tmp_path: Path) -> None:
    layer, x = layer_and_input(kind)
    assert_acts_as_its_file(layer, moved(ADAPTERS[name](layer)), x, tmp_path)


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_layers_difference_is_the_files_change(kind: str, tmp_path: Path) -> None:
    layer, x = layer_and_input(kind)
    assert_acts_as_its_file(layer, moved(NormAdapter(layer)), x, tmp_path)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_fresh_adapter_changes_no_bit(name: str, kind: str) -> None:
    layer, x = layer_and_input(kind)
    with hooked({layer: ADAPTERS[name](layer).train()}), torch.no_grad():
        fresh = layer(x)
    assert torch.equal(fresh, layer(x))


@pytest.mark.parametrize("kind", ["linear", "3x3"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_every_parameter_has_the_gradient_of_the_files_change(name: str, kind: str) -> None:
    """The gradient of a difference quotient, in float64, of the loss of the changed weight."""
    layer, x = layer_and_input(kind)
    layer, x = layer.double().requires_grad_(False), x.double()
    adapter = moved(ADAPTERS[name](layer)).double()
    target = torch.randn(layer(x).shape, generator=generator(4)).double()

    def loss() -> Tensor:
        with hooked({layer: adapter}):
            return ((layer(x) - target) ** 2).mean()

    loss().backward()
    lengths_held = name.startswith("dora")  # their gradient leaves the norm out, so factors differ by design
    for own, parameter in adapter.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, own
        if lengths_held and own != "lengths":
            continue
        index, step = np.unravel_index(parameter.numel() // 2, parameter.shape), 1e-6
        with torch.no_grad():
            parameter[index] += step
            above = loss()
            parameter[index] -= 2 * step
            below = loss()
            parameter[index] += step
        assert float((above - below) / (2 * step)) == pytest.approx(float(parameter.grad[index]), rel=1e-4, abs=1e-8)
    assert layer.weight.grad is None


def test_dora_by_hand() -> None:
    """Columns of W + D of lengths 5 and 1, stretched to 10 and 3: (W + D) times (2, 3), less W."""
    weight, change = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    tensors = {"lora_down.weight": torch.tensor([[4.0, 0.0]]), "lora_up.weight": torch.tensor([[0.0], [1.0]])}
    found = LayerChange("x", "LoRA", {**tensors, "dora_scale": torch.tensor([[10.0, 3.0]])})
    assert torch.equal(found.delta(weight), torch.tensor([[6.0, 0.0], [8.0, 3.0]]) - weight)
    assert torch.equal(found.delta(weight, 0.5), (torch.tensor([[6.0, 0.0], [8.0, 3.0]]) - weight) * 0.5)
    assert torch.equal(LayerChange("x", "LoRA", tensors).delta(weight), change)


def test_doras_norm_is_constant_in_the_backward_pass() -> None:
    """d out / d D = g * x with g = s / |W + D| held: the gradient of `up` is that of a LoRA on the input times g."""
    layer, x = layer_and_input("linear")
    layer.requires_grad_(False)
    dora = moved(ADAPTERS["dora"](layer))
    with hooked({layer: dora}):
        layer(x).sum().backward()
    with torch.no_grad():
        gain = dora.lengths / (layer.weight + dora.delta()).norm(dim=0, keepdim=True)
        expected = torch.ones(8, 3) @ ((x * gain) @ dora.inner.down.T) * 1.5
    torch.testing.assert_close(dora.inner.up.grad, expected)


def test_factorised() -> None:
    table = {
        -1: {127: (1, 127), 128: (8, 16), 250: (10, 25), 360: (18, 20), 512: (16, 32), 1024: (32, 32)},
        4: {127: (1, 127), 128: (4, 32), 250: (2, 125), 360: (4, 90), 512: (4, 128), 1024: (4, 256)},
        16: {127: (1, 127), 128: (8, 16), 250: (10, 25), 360: (15, 24), 512: (16, 32), 1024: (16, 64)},
    }
    assert {factor: {n: factorised(n, factor) for n in row} for factor, row in table.items()} == table
    assert factorised(1, 8) == (1, 1) and factorised(12, 7) == (3, 4)


def test_lokr_keeps_the_large_matrix_whole_from_half_its_side_on() -> None:
    assert lokr_shapes((320, 640), 39, 8) == {"w1": (8, 8), "w2_a": (40, 39), "w2_b": (39, 80)}
    assert lokr_shapes((320, 640), 40, 8) == {"w1": (8, 8), "w2": (40, 80)}
    assert lokr_shapes((320, 640, 3, 3), 4, 8) == {"w1": (8, 8), "w2_a": (40, 4), "w2_b": (4, 720)}


@pytest.mark.parametrize("kind", ["linear", "1x1", "3x3"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_norms_are_capped_to_the_limit_and_small_ones_left(name: str, kind: str) -> None:
    adapter = moved(ADAPTERS[name](layer_and_input(kind)[0]))
    delta = adapter.delta().detach()
    torch.testing.assert_close(adapter.norm().detach(), delta.norm())
    before = {own: parameter.detach().clone() for own, parameter in adapter.named_parameters()}
    cap_norms([adapter], float(delta.norm()) * 1.01)
    assert all(torch.equal(parameter, before[own]) for own, parameter in adapter.named_parameters())
    cap_norms([adapter], float(delta.norm()) / 2)
    torch.testing.assert_close(adapter.delta().detach(), delta / 2)


def test_lora_norm_is_shared_equally_between_the_factors() -> None:
    layer = nn.Linear(12, 8)
    adapter = moved(ADAPTERS["lora"](layer))
    down, up, norm = adapter.down.detach().clone(), adapter.up.detach().clone(), float(adapter.norm().detach())
    cap_norms([adapter], norm / 4)
    torch.testing.assert_close(adapter.down.detach(), down / 2)
    torch.testing.assert_close(adapter.up.detach(), up / 2)


@pytest.mark.parametrize("name", ["lora", "loha", "lokr", "lokr whole", "dora"])
def test_rank_dropout_keeps_the_mean_and_ends_with_training(name: str) -> None:
    layer, x = layer_and_input("linear")
    adapter = moved(ADAPTERS[name](layer))
    whole = adapter.addition(layer, x, 1.0).detach()
    for module in adapter.modules():
        module.dropouts = Dropouts(ranks=0.5)
    torch.manual_seed(3)
    with torch.no_grad():
        samples = torch.stack([adapter.train().addition(layer, x, 1.0) for _ in range(4000)])
        assert len(samples.flatten(1).unique(dim=0)) > 1
        assert torch.equal(adapter.eval().addition(layer, x, 1.0), whole)
    error = samples.std(dim=0) / 4000**0.5
    assert ((samples.mean(dim=0) - whole).abs() < 5 * error + 1e-6).all()


def test_module_dropout_leaves_the_layer_as_it_is_in_its_share_of_steps() -> None:
    layer, x = layer_and_input("linear")
    layer.requires_grad_(False)
    adapter = moved(LoraAdapter(layer, 2, 3.0, generator(), Dropouts(modules=0.25))).train()
    plain, left = layer(x), 0
    torch.manual_seed(3)
    for _ in range(400):
        with hooked({layer: adapter}):
            out = layer(x)
        assert out.requires_grad
        left += int(torch.equal(out, plain))
    assert 75 <= left <= 125


def test_a_dropped_module_still_has_gradients() -> None:
    layer, x = layer_and_input("linear")
    adapter = moved(LoraAdapter(layer, 2, 3.0, generator(), Dropouts(modules=0.9999999))).train()
    with hooked({layer: adapter}):
        layer(x).sum().backward()
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in adapter.parameters())


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_a_file_holds_comes_back(name: str, tmp_path: Path) -> None:
    layer, x = layer_and_input("3x3")
    adapter = moved(ADAPTERS[name](layer))
    other = ADAPTERS[name](layer)
    other.load_tensors(written(adapter, tmp_path).tensors)
    with torch.no_grad():
        assert torch.equal(other.addition(layer, x, 1.0), adapter.addition(layer, x, 1.0))


def test_a_lora_of_another_rank_is_gone_on_from() -> None:
    layer, x = layer_and_input("3x3")
    wide = moved(LoraAdapter(layer, 5, 2.0, generator()))
    adapter = ADAPTERS["lora"](layer)
    adapter.load_tensors(wide.tensors())
    assert (adapter.rank, adapter.alpha) == (5, 2.0)
    assert torch.equal(adapter.addition(layer, x, 1.0), wide.addition(layer, x, 1.0))


@pytest.mark.parametrize("name", ["lora", "loha", "lokr", "lokr whole"])
def test_no_weight_sized_tensor_waits_for_the_backward_pass(name: str) -> None:
    """But the layer's own weight, which is there anyway."""
    layer = nn.Linear(96, 128, bias=False).requires_grad_(False)
    x = torch.randn(4, 96, generator=generator()).requires_grad_()
    makers = {**ADAPTERS, "lokr whole": lambda layer: LokrAdapter(layer, 1, 3.0, generator(), factor=8, is_whole=True)}
    adapter = moved(makers[name](layer))
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() != layer.weight.untyped_storage().data_ptr():
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), hooked({layer: adapter}):
        layer(x)
    assert kept and max(kept) < layer.weight.numel() / 2
