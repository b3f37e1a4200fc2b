"""A run that is saved and resumed is bit for bit the run that went through."""

import importlib.util
import json

import pytest
import safetensors.torch
import torch

from extensions_lib.errors import TrainingError
from extensions_lib.training.optimizer import make_optimizer, set_learning_rate
from extensions_lib.training.optimizer_state import load_optimizer_state, optimizer_state_tensors

PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}
NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(not importlib.util.find_spec(package), reason=f"{package} is optional"))
    if (package := PACKAGES.get(name))
    else name
    for name in ("adamw", "adamw8bit", "prodigy", "adafactor", "lion")
]


def parameters():
    generator = torch.Generator().manual_seed(0)
    # 96 * 64 numbers are enough for bitsandbytes to keep 8-bit state.
    shapes = ((96, 64), (5,), (4, 2, 3, 3))
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def make(name, params, lr=1e-2):
    return make_optimizer(name, [{"params": params[:1], "lr": lr}, {"params": params[1:], "lr": lr}])


def steps(optimizer, params, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in params:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        set_learning_rate(optimizer, 1 - step / 20)
        optimizer.step()


def through_files(optimizer):
    """What would be read back from a safetensors file and a JSON text."""
    tensors, document = optimizer_state_tensors(optimizer)
    return safetensors.torch.load(safetensors.torch.save(tensors)), json.loads(json.dumps(document, allow_nan=False))


@pytest.mark.parametrize("name", NAMES)
def test_resuming_is_bit_identical(name):
    through = parameters()
    optimizer = make(name, through)
    steps(optimizer, through, 0, 5)
    saved, parameters_then = through_files(optimizer), [parameter.detach().clone() for parameter in through]
    steps(optimizer, through, 5, 10)

    resumed = [torch.nn.Parameter(parameter) for parameter in parameters_then]
    fresh = make(name, resumed)
    load_optimizer_state(fresh, *saved)
    steps(fresh, resumed, 5, 10)

    assert all(torch.equal(a, b) for a, b in zip(through, resumed, strict=True))
    tensors, document = optimizer_state_tensors(optimizer)
    resumed_tensors, resumed_document = optimizer_state_tensors(fresh)
    assert document == resumed_document
    assert tensors.keys() == resumed_tensors.keys()
    assert all(torch.equal(tensors[key], resumed_tensors[key]) for key in tensors)
    assert all(tensors[key].dtype == resumed_tensors[key].dtype for key in tensors)


@pytest.mark.parametrize("name", NAMES)
def test_without_the_state_the_run_would_differ(name):
    """The test above could not fail if the state did not matter."""
    through = parameters()
    optimizer = make(name, through)
    steps(optimizer, through, 0, 5)
    resumed = [torch.nn.Parameter(parameter.detach().clone()) for parameter in through]
    steps(optimizer, through, 5, 10)
    steps(make(name, resumed), resumed, 5, 10)
    assert not torch.equal(through[0], resumed[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_state_before_the_first_step(name):
    params = parameters()
    tensors, document = through_files(make(name, params))
    assert tensors == {}
    fresh = make(name, params)
    load_optimizer_state(fresh, tensors, document)
    assert fresh.state_dict()["state"] == {}


def test_names_are_readable_and_scalars_are_json():
    params = parameters()
    optimizer = make("lion", params)
    steps(optimizer, params, 0, 1)
    tensors, document = optimizer_state_tensors(optimizer)
    assert sorted(tensors) == ["state.0.momentum", "state.1.momentum", "state.2.momentum"]
    assert document["optimizer"] == "Lion"
    assert document["shapes"] == [[[96, 64]], [[5], [4, 2, 3, 3]]]


def test_infinity_survives_strict_json():
    params = parameters()
    optimizer = make("lion", params)
    optimizer.param_groups[0]["growth_rate"] = float("inf")
    saved = through_files(optimizer)
    fresh = make("lion", params)
    load_optimizer_state(fresh, *saved)
    assert fresh.param_groups[0]["growth_rate"] == float("inf")


def test_how_the_update_is_computed_is_decided_by_the_new_optimizer():
    params = parameters()
    saved = through_files(torch.optim.AdamW([{"params": params[:1]}, {"params": params[1:]}], lr=0.5, foreach=True))
    fresh = make("adamw", params)
    before = [(group.get("fused"), group.get("foreach")) for group in fresh.param_groups]
    load_optimizer_state(fresh, *saved)
    assert [(group.get("fused"), group.get("foreach")) for group in fresh.param_groups] == before
    assert [group["lr"] for group in fresh.param_groups] == [0.5, 0.5]
    assert fresh.param_groups[0]["betas"] == (0.9, 0.999)


def test_another_optimizer_is_refused():
    params = parameters()
    with pytest.raises(TrainingError, match="The saved state is of the optimizer Lion, this run uses Adafactor."):
        load_optimizer_state(make("adafactor", params), *through_files(make("lion", params)))


@pytest.mark.parametrize("count", [1, 2])
def test_other_parameters_are_refused(count):
    params = parameters()
    saved = through_files(make("lion", params))
    others = [torch.nn.Parameter(torch.zeros(7)) for _ in range(count)] + params[count:]
    with pytest.raises(TrainingError, match="is for 3 parameters, this run trains 3") as raised:
        load_optimizer_state(make("lion", others), *saved)
    assert "Resume with the settings the run was started with" in raised.value.hint


def test_a_lost_tensor_is_named():
    params = parameters()
    optimizer = make("lion", params)
    steps(optimizer, params, 0, 1)
    tensors, document = through_files(optimizer)
    del tensors["state.1.momentum"]
    with pytest.raises(TrainingError, match="lacks the tensor state.1.momentum"):
        load_optimizer_state(make("lion", params), tensors, document)


def test_what_has_no_json_form_is_refused():
    optimizer = make("lion", parameters())
    optimizer.param_groups[0]["odd"] = object()
    with pytest.raises(TypeError, match="param_groups.0.odd is a object"):
        optimizer_state_tensors(optimizer)
