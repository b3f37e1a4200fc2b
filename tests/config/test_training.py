from __future__ import annotations

import pytest

from extensions_lib.config.codec import dump, load
from extensions_lib.config.training import TrainingConfig


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"num_samples": 2400}, 2400),
        ({"num_samples": 2400, "train_batch_size": 2}, 1200),
        ({"num_samples": 2400, "train_batch_size": 2, "gradient_accumulation_steps": 4}, 300),
        ({"num_samples": 10, "train_batch_size": 4}, 3),
        ({"num_samples": 1, "train_batch_size": 4}, 1),
        ({"num_samples": 2400, "train_batch_size": 2, "max_train_steps": 7}, 7),
    ],
)
def test_the_samples_decide_the_steps_unless_these_are_given(settings: dict[str, int], steps: int) -> None:
    assert TrainingConfig(**settings).num_steps == steps


def test_steps_that_a_user_gives_win_over_the_samples_of_a_preset_and_stay_when_written() -> None:
    table = {"name": "cat", "base_model": "model", "dataset": {"folder": "pictures"}, "method": "lora"}
    by_preset = load({**table, "training": {"train_batch_size": 4}})
    assert (by_preset.training.num_samples, by_preset.training.num_steps) == (2400, 600)
    given = load({**table, "training": {"max_train_steps": 7}})
    assert (given.training.num_steps, load(dump(given)).training.num_steps) == (7, 7)
