from pathlib import Path

import pytest
import torch

from extensions_lib.errors import TrainingError
from extensions_lib.training.run_state import RunState, load_newest, save_state, state_path


def state(step: int) -> RunState:
    tensors = {
        "trainable": {"a.down": torch.full((2, 3), float(step)), "b": torch.tensor(1.5)},
        "optimizer": {"state.0.step": torch.tensor(step)},
    }
    return RunState(step, tensors, {"optimizer": {"lr": 0.1}, "num_threads": 2, "text": "\u00e9"})


def test_state_comes_back_equal(tmp_path: Path) -> None:
    save_state(tmp_path / "state", state(7))
    found = load_newest(tmp_path / "state")
    assert (found.step, found.values) == (7, state(7).values)
    for owner, group in state(7).tensors.items():
        assert set(found.tensors[owner]) == set(group)
        for name, tensor in group.items():
            assert torch.equal(found.tensors[owner][name], tensor)
            assert found.tensors[owner][name].dtype == tensor.dtype


def test_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 100):
        save_state(tmp_path, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "state-00000015.safetensors",
        "state-00000100.safetensors",
    ]


def test_a_damaged_newest_state_falls_back_to_the_one_before(tmp_path: Path) -> None:
    save_state(tmp_path, state(5))
    path = save_state(tmp_path, state(10))
    path.write_bytes(path.read_bytes()[:-5])
    assert load_newest(tmp_path).step == 5


def test_no_readable_state_is_an_error_and_no_file_is_none(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None
    state_path(tmp_path, 3).write_bytes(b"nonsense")
    with pytest.raises(TrainingError, match="None of the 1 saved states"):
        load_newest(tmp_path)


def test_same_step_is_replaced(tmp_path: Path) -> None:
    save_state(tmp_path, state(5))
    save_state(tmp_path, RunState(5, {"trainable": {"x": torch.ones(1)}}, {}))
    assert set(load_newest(tmp_path).tensors) == {"trainable"}
