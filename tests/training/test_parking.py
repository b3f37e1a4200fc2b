"""Making room on the device while others compute. The moves themselves are shown on doubles: tests have no CUDA."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from extensions_lib.errors import OutOfMemoryError
from extensions_lib.methods.base import ParamGroup, Trainable
from extensions_lib.training import parking
from extensions_lib.training.parking import ENOUGH_FREE_BYTES, free_bytes, job_tensors, parked


class FakeStorage:
    """The data of a tensor on a device, with a value that moves along."""

    def __init__(self, value: float, device: str, log: list[str]) -> None:
        self.value, self.device, self.log = value, torch.device(device), log

    def cpu(self) -> FakeStorage:
        return self.to("cpu")

    def to(self, device: str | torch.device) -> FakeStorage:
        self.log.append(f"{self.device}>{device}")
        return FakeStorage(self.value, str(device), self.log)


class FakeTensor:
    def __init__(self, value: float, device: str, log: list[str]) -> None:
        self.data = FakeStorage(value, device, log)

    @property
    def device(self) -> torch.device:
        return self.data.device


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def tensors(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> list[FakeTensor]:
    """What the job holds: two tensors on the device and one that was on the CPU all along."""
    held = [FakeTensor(1.0, "cuda:0", log), FakeTensor(2.0, "cuda:0", log), FakeTensor(3.0, "cpu", log)]
    monkeypatch.setattr(parking, "job_tensors", lambda *parts: held)
    return held


def say_free(monkeypatch: pytest.MonkeyPatch, free: int, reserved: int = 0, allocated: int = 0) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)


def places(tensors: list[FakeTensor]) -> list[str]:
    return [str(tensor.device) for tensor in tensors]


def test_everything_waits_in_main_memory_and_comes_back(
    monkeypatch: pytest.MonkeyPatch, tensors: list[FakeTensor]
) -> None:
    say_free(monkeypatch, ENOUGH_FREE_BYTES - 1)
    with parked(None, None, None, "cuda"):
        assert places(tensors) == ["cpu", "cpu", "cpu"]
    assert places(tensors) == ["cuda:0", "cuda:0", "cpu"]
    assert [tensor.data.value for tensor in tensors] == [1.0, 2.0, 3.0]


def test_it_comes_back_when_the_others_fail(monkeypatch: pytest.MonkeyPatch, tensors: list[FakeTensor]) -> None:
    say_free(monkeypatch, 0)
    with pytest.raises(ZeroDivisionError), parked(None, None, None, "cuda"):
        raise ZeroDivisionError
    assert places(tensors) == ["cuda:0", "cuda:0", "cpu"]


@pytest.mark.parametrize("free", [ENOUGH_FREE_BYTES, ENOUGH_FREE_BYTES * 4])
def test_with_room_for_both_nothing_is_moved(
    monkeypatch: pytest.MonkeyPatch, tensors: list[FakeTensor], log: list[str], free: int
) -> None:
    say_free(monkeypatch, free)
    with parked(None, None, None, "cuda"):
        pass
    assert log == []


def test_what_torch_keeps_unused_is_free_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    say_free(monkeypatch, 5, reserved=10, allocated=7)
    assert free_bytes("cuda") == 8


def test_on_a_cpu_nothing_is_asked_or_moved(
    monkeypatch: pytest.MonkeyPatch, tensors: list[FakeTensor], log: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", None)
    with parked(None, None, None, "cpu"):
        pass
    assert log == []


def test_no_room_to_come_back_to_is_out_of_memory(monkeypatch: pytest.MonkeyPatch, tensors: list[FakeTensor]) -> None:
    say_free(monkeypatch, 0)

    def refuse(self: FakeStorage, device: torch.device) -> FakeStorage:
        if str(device) != "cpu":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return FakeStorage(self.value, "cpu", self.log)

    monkeypatch.setattr(FakeStorage, "to", refuse)
    with (
        pytest.raises(OutOfMemoryError, match="Out of memory while returning to the device after others used it"),
        parked(None, None, None, "cuda"),
    ):
        pass


def test_all_of_a_job_is_found_once() -> None:
    layer = nn.Linear(2, 3)
    norm = nn.BatchNorm1d(3)
    bundle = SimpleNamespace(parts={"unet": nn.Sequential(layer, norm), "vae": layer})
    module = nn.Linear(1, 1, bias=False)
    parameter = module.weight
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    trainable = Trainable(module, (ParamGroup("all", (parameter,)),), trains_text_encoder=False)
    found = job_tensors(bundle, trainable, optimizer)
    state = optimizer.state[parameter]
    expected = [
        *layer.parameters(), *norm.parameters(), *norm.buffers(), parameter, parameter.grad,
        state["step"], state["exp_avg"], state["exp_avg_sq"],
    ]  # fmt: skip
    assert {id(tensor) for tensor in found} == {id(tensor) for tensor in expected}
    assert len(found) == len(expected)


def test_moving_the_data_keeps_parameters_and_optimizer_as_they_are() -> None:
    """What `parked` does to each tensor, on one device: the optimizer goes on as if nothing had been."""

    def two_steps(between: bool) -> torch.Tensor:
        parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = torch.optim.AdamW([parameter], lr=0.1)
        for _ in range(2):
            (parameter**2).sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            held = [*job_tensors(None, None, optimizer), parameter]
            for tensor in held if between else ():
                tensor.data = tensor.data.clone()
        assert optimizer.param_groups[0]["params"][0] is parameter
        return parameter.detach()

    assert torch.equal(two_steps(True), two_steps(False))
