from __future__ import annotations

from typing import Any

import pytest
import torch

from extensions_lib.config.codec import load
from extensions_lib.config.job import TrainJobConfig
from extensions_lib.errors import ConfigError
from extensions_lib.methods.base import ParamGroup, Trainable
from extensions_lib.training.build import choose_device, make_job_optimizer, make_learning_rates, seeded_dropout


def job(**changes: Any) -> TrainJobConfig:
    return load({"name": "x", "base_model": "m", "dataset": {"folder": "p"}, "method": "lora", **changes})


def test_schedule_text_of_the_webui() -> None:
    base, factor = make_learning_rates(job(optimizer={"learning_rate": "5e-3:200, 1e-3:1000, 5e-4"}))
    assert base == 5e-3
    assert [base * factor(step) for step in (0, 199, 200, 999, 1000, 5000)] == pytest.approx(
        [5e-3, 5e-3, 1e-3, 1e-3, 5e-4, 5e-4]
    )


def test_a_bad_schedule_text_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="optimizer.learning_rate"):
        make_learning_rates(job(optimizer={"learning_rate": "fast"}))


def test_warm_up_is_a_share_of_the_run() -> None:
    optimizer = {"learning_rate": 1e-4, "lr_scheduler": "linear", "lr_warmup_ratio": 0.1}
    _, factor = make_learning_rates(job(optimizer=optimizer, training={"max_train_steps": 100}))
    assert [factor(step) for step in (0, 5, 10, 55, 100)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_groups_keep_their_own_rates() -> None:
    unet, text = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    groups = (ParamGroup("unet", (unet,)), ParamGroup("text_encoder", (text,), 3e-5))
    trainable = Trainable(torch.nn.Module(), groups, trains_text_encoder=True)
    optimizer = make_job_optimizer(job(optimizer={"weight_decay": 0.2}), trainable, 2e-4)
    assert [group["lr"] for group in optimizer.param_groups] == [2e-4, 3e-5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.2]


def test_lion_gets_its_own_second_beta_unless_asked() -> None:
    trainable = Trainable(torch.nn.Module(), (ParamGroup("u", (torch.nn.Parameter(torch.ones(1)),)),), False)
    own = make_job_optimizer(job(optimizer={"optimizer": "lion"}), trainable, 1e-4)
    asked = make_job_optimizer(job(optimizer={"optimizer": "lion", "beta2": 0.95}), trainable, 1e-4)
    assert (own.param_groups[0]["betas"][1], asked.param_groups[0]["betas"][1]) == (0.99, 0.95)


def test_an_unknown_device_is_a_config_error() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="training.device"):
        choose_device("abacus")


def test_dropout_depends_on_the_step_and_leaves_the_random_state() -> None:
    ones, device = torch.ones(64), torch.device("cpu")

    def drop(step: int) -> torch.Tensor:
        with seeded_dropout(True, 1, step, 0, device):
            return torch.nn.functional.dropout(ones, 0.5)

    before = torch.get_rng_state()
    first = drop(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(drop(4), first)
    assert not torch.equal(drop(5), first)
