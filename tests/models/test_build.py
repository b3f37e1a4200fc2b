from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from extensions_lib.errors import HostError, KeyMismatchError, ModelError
from extensions_lib.models.build import adopt_tensors, build_module, position_ids, verify_module
from extensions_lib.models.configs import base_config


@pytest.fixture
def initialised(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """The devices of all tensors that functions of torch.nn.init are called with."""
    devices: list[torch.device] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            devices.append((args[0] if args else kwargs["tensor"]).device)
            return function(*args, **kwargs)

        return call

    for name in dir(nn.init):
        if name.endswith("_") and not name.startswith("__"):
            monkeypatch.setattr(nn.init, name, counted(getattr(nn.init, name)))
    return devices


def test_real_size_is_built_at_once_without_random_numbers(initialised: list[torch.device]) -> None:
    nn.Linear(2, 2)
    assert torch.device("cpu") in initialised  # the counter counts
    initialised.clear()
    build_module("text_encoder", base_config("text_encoder") | {"num_hidden_layers": 1})  # the import is not timed
    state = torch.get_rng_state()
    start = time.process_time()
    modules = [build_module(part, base_config(part)) for part in ("unet", "vae", "text_encoder")]
    assert time.process_time() - start < 3
    assert set(initialised) <= {torch.device("meta")}
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(p.numel() for module in modules for p in module.parameters()) == 859_520_964 + 83_653_863 + 123_060_480
    assert not any(module.training for module in modules)


class Small(nn.Module):
    """A parameter, a module's parameters, a persistent and a non-persistent buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(2))
        self.linear = nn.Linear(2, 3)
        self.register_buffer("table", torch.empty(4, dtype=torch.int64))
        self.register_buffer("waves", torch.empty(2), persistent=False)


def small() -> Small:
    with torch.device("meta"):
        return Small()


def values() -> dict[str, torch.Tensor]:
    return {
        "scale": torch.tensor([1.0, 2.0], dtype=torch.float16),
        "linear.weight": torch.arange(6.0).reshape(3, 2),
        "linear.bias": torch.zeros(3),
        "table": torch.arange(4),
        "waves": torch.tensor([0.5, 0.25]),
    }


def test_adopted_tensors_are_the_modules() -> None:
    module, given = small(), values()
    weight = given["linear.weight"]
    adopt_tensors(module, given, torch.float32)
    assert given == {}  # nothing is held twice
    assert module.linear.weight.data_ptr() == weight.data_ptr()  # no copy without a cast
    assert module.scale.tolist() == [1.0, 2.0] and module.table.tolist() == [0, 1, 2, 3]
    assert module.waves.tolist() == [0.5, 0.25]
    assert not any(parameter.requires_grad for parameter in module.parameters())
    verify_module(module.linear, torch.float32, "x")


def test_cast_leaves_integers_alone() -> None:
    module = small()
    adopt_tensors(module, values(), torch.bfloat16)
    assert {module.scale.dtype, module.linear.weight.dtype, module.waves.dtype} == {torch.bfloat16}
    assert module.table.dtype == torch.int64


@pytest.mark.parametrize("name", ["linear.bias", "waves"])
def test_nothing_may_stay_empty(name: str) -> None:
    given = values()
    del given[name]
    with pytest.raises(KeyMismatchError, match=f"{name} needs a tensor of shape .*found nothing"):
        adopt_tensors(small(), given, torch.float32)


def test_shapes_and_strangers_are_refused() -> None:
    with pytest.raises(KeyMismatchError, match=r"scale needs a tensor of shape \(2,\), found \(3,\)"):
        adopt_tensors(small(), values() | {"scale": torch.ones(3)}, torch.float32)
    with pytest.raises(KeyMismatchError, match="1 tensors fit nowhere: other"):
        adopt_tensors(small(), values() | {"other": torch.ones(3)}, torch.float32)


def linear(**options: Any) -> nn.Linear:
    module = nn.Linear(2, 3, **options)
    nn.init.ones_(module.weight)
    nn.init.ones_(module.bias)
    return module


def test_damaged_weights_are_counted() -> None:
    module = linear()
    module.weight.data[0, 0] = float("nan")
    module.weight.data[2, 1] = float("inf")
    with pytest.raises(ModelError, match="tiny: 2 of 6 numbers of weight are NaN or infinite"):
        verify_module(module, torch.float32, "tiny")


def test_large_finite_weights_are_no_damage() -> None:
    module = linear()
    module.weight.data.fill_(3e38)
    verify_module(module, torch.float32, "tiny")


def test_what_the_webuis_patches_do_is_noticed() -> None:
    with pytest.raises(HostError, match="weight is torch.float32 on meta"):
        verify_module(linear(device="meta"), torch.float32, "tiny")
    with pytest.raises(HostError, match=r"weight is torch.float16 on cpu, not torch.float32 on cpu"):
        verify_module(linear().half(), torch.float32, "tiny")
    foreign = type("Linear", (nn.Linear,), {"__module__": "backend.operations"})
    with pytest.raises(
        HostError, match=r"backend.operations.Linear took the place of a torch class.*start the job again"
    ):
        verify_module(nn.Sequential(foreign(2, 2)), torch.float32, "tiny")


def test_position_ids() -> None:
    assert position_ids(None, 5).tolist() == [[0, 1, 2, 3, 4]]
    # As the WebUI does: cut, not rounded.
    assert position_ids(torch.tensor([[0.0, 1.0, 1.9, 3.0, 4.0]]), 5).tolist() == [[0, 1, 1, 3, 4]]
    for wrong in (torch.arange(4)[None], torch.arange(1, 6)[None], -torch.arange(5)[None]):
        with pytest.raises(ModelError, match="are not 5 positions"):
            position_ids(wrong, 5)
