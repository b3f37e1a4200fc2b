import pytest
import torch
from torch import nn

from extensions_lib.adapters.attach import hooked, select_layers
from extensions_lib.adapters.embedding import ExtendedEmbedding, cap_row_norms, extended, initial_rows
from extensions_lib.adapters.linear import LoraAdapter, kaiming_uniform, lora_shapes
from extensions_lib.errors import KeyMismatchError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(layer: nn.Module, rank: int = 2, alpha: float = 3.0) -> LoraAdapter:
    adapter = LoraAdapter(layer, rank, alpha, generator())
    adapter.up.data = torch.randn(adapter.up.shape, generator=generator(1))
    return adapter


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "linear of tokens": (lambda: nn.Linear(6, 4, bias=False), (2, 5, 6)),
    "1x1": (lambda: nn.Conv2d(6, 4, 1), (2, 6, 5, 5)),
    "3x3": (lambda: nn.Conv2d(6, 4, 3, padding=1), (2, 6, 5, 5)),
    "strided": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1), (2, 6, 6, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_adapter_equals_the_layer_with_its_delta_added(kind: str) -> None:
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape, generator=generator(2))
    adapter = filled(layer)
    delta = (adapter.up.flatten(1) @ adapter.down.flatten(1)).reshape(layer.weight.shape) * 3.0 / 2
    with hooked({layer: adapter}):
        adapted = layer(x)
    with torch.no_grad():
        layer.weight += delta
        torch.testing.assert_close(adapted, layer(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_fresh_adapter_and_zero_multiplier_leave_the_output_bit_identical(kind: str) -> None:
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape, generator=generator(2))
    before = layer(x)
    with hooked({layer: LoraAdapter(layer, 2, 1.0, generator())}):
        assert torch.equal(layer(x), before)
    adapter = filled(layer)
    with hooked({layer: adapter}):
        assert not torch.equal(layer(x), before)
        adapter.multiplier = 0.0
        assert torch.equal(layer(x), before)
    assert torch.equal(layer(x), before)


def test_hooks_are_gone_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError), hooked({layer: filled(layer)}):
        raise RuntimeError
    assert not layer._forward_hooks


def test_adapter_of_a_bf16_layer_is_float32_and_gives_bf16() -> None:
    layer = nn.Linear(6, 4).to(torch.bfloat16)
    adapter = filled(layer)
    with hooked({layer: adapter}):
        out = layer(torch.randn(3, 6).to(torch.bfloat16))
    assert (adapter.down.dtype, adapter.up.dtype, out.dtype) == (torch.float32, torch.float32, torch.bfloat16)


def test_only_the_factors_get_gradients() -> None:
    layer = nn.Linear(6, 4).requires_grad_(False)
    adapter = filled(layer)
    with hooked({layer: adapter}):
        layer(torch.randn(3, 6)).sum().backward()
    assert adapter.down.grad is not None
    assert adapter.up.grad is not None
    assert layer.weight.grad is None


def test_load_tensors_takes_another_rank_and_2d_factors_of_1x1() -> None:
    layer = nn.Conv2d(6, 4, 1)
    adapter = LoraAdapter(layer, 2, 1.0, generator())
    down, up = torch.randn(5, 6), torch.randn(4, 5)
    adapter.load_tensors({"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.5)})
    assert (adapter.rank, adapter.alpha, tuple(adapter.down.shape), tuple(adapter.up.shape)) == (
        5,
        2.5,
        (5, 6, 1, 1),
        (4, 5, 1, 1),
    )
    assert torch.equal(adapter.up.flatten(1), up)


def test_factor_shapes_and_initial_bound() -> None:
    assert lora_shapes((4, 6, 3, 3), 2) == {"down": (2, 6, 3, 3), "up": (4, 2, 1, 1)}
    values = kaiming_uniform((100, 25), generator())
    assert values.abs().max() <= 1 / 5
    assert values.abs().max() > 0.19
    assert torch.equal(values, kaiming_uniform((100, 25), generator()))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.conv = nn.Conv2d(2, 2, 3)


def test_select_layers_by_block_type_and_pattern() -> None:
    root = nn.ModuleDict({"a": Block(), "b": Block(), "c": nn.Linear(2, 2)})
    kinds = (nn.Linear, nn.Conv2d)
    assert list(select_layers(root, ("Block",), kinds)) == ["a.to_q", "a.conv", "b.to_q", "b.conv"]
    assert list(select_layers(root, ("Block",), kinds, r"^b\..*q$")) == ["b.to_q"]
    with pytest.raises(KeyMismatchError, match="not a regular expression"):
        select_layers(root, ("Block",), kinds, "(")


class Embeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(10, 4)


def test_new_ids_select_new_rows_and_old_ones_the_table() -> None:
    table, rows = nn.Embedding(10, 4), torch.randn(2, 4)
    out = ExtendedEmbedding(table, rows)(torch.tensor([[3, 10, 11, 9]]))
    assert torch.equal(out[0], torch.stack([table.weight[3], rows[0], rows[1], table.weight[9]]))


def test_gradient_reaches_the_new_rows_only() -> None:
    table = nn.Embedding(10, 4).requires_grad_(False)
    extension = ExtendedEmbedding(table, torch.zeros(2, 4))
    extension(torch.tensor([[3, 11]])).sum().backward()
    assert torch.equal(extension.rows.grad, torch.tensor([[0.0] * 4, [1.0] * 4]))
    assert table.weight.grad is None


def test_extended_puts_the_same_table_back() -> None:
    holder = Embeddings()
    table = holder.token_embedding
    with extended(holder, torch.zeros(1, 4)):
        assert isinstance(holder.token_embedding, ExtendedEmbedding)
    assert holder.token_embedding is table
    with pytest.raises(RuntimeError), extended(holder, torch.zeros(1, 4)):
        raise RuntimeError
    assert holder.token_embedding is table


def test_initial_rows_follow_the_webui_rule() -> None:
    table = torch.arange(12.0).reshape(6, 2)
    assert torch.equal(initial_rows(table, [4], 3), table[[4, 4, 4]])
    assert torch.equal(initial_rows(table, [1, 5, 2], 2), table[[1, 5]])
    assert torch.equal(initial_rows(table, [1, 5], 4), table[[1, 1, 5, 5]])
    assert torch.equal(initial_rows(table, [], 2), torch.zeros(2, 2))


def test_cap_shortens_only_long_rows() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    cap_row_norms(rows, 1.0)
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
