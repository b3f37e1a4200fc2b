"""Promises every method keeps while it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from extensions_lib.config.codec import load
from extensions_lib.control import JobControl
from extensions_lib.events import Event, StepCompleted, ValidationMeasured
from extensions_lib.formats.hypernetwork import read_hypernetwork
from extensions_lib.formats.safetensors_io import read_tensors
from extensions_lib.jobs.run import Outcome, resume, start
from extensions_lib.jobs.store import RunFolder
from extensions_lib.training.run_state import RunState, load_newest

from .conftest import JOBS, MakeJob


def stop_after(step: int, control: JobControl) -> Callable[[Event], None]:
    return lambda event: control.request_stop() if isinstance(event, StepCompleted) and event.step == step else None


def losses(outcome: Outcome) -> dict[int, float]:
    """The last loss recorded for each step."""
    events = RunFolder(outcome.run_folder).events()
    return {event.step: event.loss for event in events if isinstance(event, StepCompleted)}


def newest_state(outcome: Outcome) -> RunState:
    state = load_newest(outcome.run_folder / "state")
    assert state is not None
    return state


def tensors_in(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, those of a hypernetwork with width and part before it."""
    if path.suffix == ".safetensors":
        return read_tensors(path)
    networks = read_hypernetwork(path).networks
    return {
        f"{width}.{part}.{name}": tensor
        for width, pair in networks.items()
        for part, tensors in enumerate(pair)
        for name, tensor in tensors.items()
    }


def assert_same_files(one: Path, two: Path) -> None:
    """The same names, and the same tensors in every model file; metadata holds times of day."""
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for path in (*one.glob("*.safetensors"), *one.glob("*.pt")):
        left, right = tensors_in(path), tensors_in(two / path.name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", JOBS)
def test_stopping_takes_one_step_at_most_and_going_on_equals_a_straight_run(
    job: MakeJob, tmp_path: Path, name: str
) -> None:
    more = {"gradient_accumulation_steps": 2, "ema_decay": 0.9}
    straight = start(load(job(name, "straight", training=more)), JobControl())
    control = JobControl()
    stopped = start(load(job(name, "resumed", training=more)), control, (stop_after(2, control),))
    assert (stopped.reason, stopped.step) == ("stopped", 2)
    assert stopped.path is not None and stopped.path.exists()
    ended = resume(RunFolder(stopped.run_folder), JobControl())
    assert ended.reason == "completed"
    assert losses(straight) == losses(ended)
    left, right = newest_state(straight), newest_state(ended)
    assert left.values == right.values
    assert left.tensors.keys() == right.tensors.keys()
    for owner, tensors in left.tensors.items():
        assert tensors.keys() == right.tensors[owner].keys()
        assert all(torch.equal(tensors[key], right.tensors[owner][key]) for key in tensors)
    assert_same_files(tmp_path / "straight", tmp_path / "resumed")


@pytest.mark.parametrize("name", JOBS)
def test_the_loss_at_fixed_noise_falls(job: MakeJob, name: str) -> None:
    measured: list[Event] = []
    steps = {"max_train_steps": 16, "validation_every_steps": 16, "state_every_steps": 100}
    table = job(name, "out", training=steps, optimizer={"lr_scheduler": "constant", "lr_warmup_ratio": 0.0})
    start(load(table), JobControl(), (measured.append,))
    before, after = (event.loss for event in measured if isinstance(event, ValidationMeasured))
    assert after < before * 0.98
