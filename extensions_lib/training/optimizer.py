"""Which optimizer moves the parameters, and its learning rate."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch.optim import Optimizer

from ..errors import ConfigError, Problem
from .adafactor import Adafactor
from .lion import Lion

OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "adafactor", "lion")
SETTING = "optimizer.optimizer"

ParamGroups = list[dict[str, Any]]


def make_optimizer(
    name: str,
    param_groups: Iterable[Mapping[str, Any]],
    *,
    weight_decay: float = 0.01,
    beta1: float = 0.9,
    beta2: float | None = None,
    eps: float = 1e-8,
    rounding_seed: int = 0,
) -> Optimizer:
    """One of OPTIMIZERS over groups of "params" and their base learning rate "lr" (> 0).

    Parameters are float32; for adafactor and lion also bf16, rounded at random by `rounding_seed`.

    `weight_decay` >= 0 is decoupled and holds for groups without their own "weight_decay". `beta2` None is the
    optimizer's own default: 0.99 for lion, 0.999 else. adafactor has no betas, lion and adafactor no `eps`.
    Each group keeps its base rate as "base_lr", see `set_learning_rate`. Raises ConfigError for an unknown name, a
    missing package, and groups of different rates with prodigy.
    """
    groups = [{**group, "params": list(group["params"]), "base_lr": group["lr"]} for group in param_groups]
    adam = {"betas": (beta1, 0.999 if beta2 is None else beta2), "eps": eps, "weight_decay": weight_decay}
    lion_betas = (beta1, 0.99 if beta2 is None else beta2)
    makers: dict[str, Callable[[ParamGroups], Optimizer]] = {
        "adamw": partial(_adamw, **adam),
        "adamw8bit": partial(_adamw8bit, **adam),
        "prodigy": partial(_prodigy, **adam),
        "adafactor": partial(Adafactor, weight_decay=weight_decay, rounding_seed=rounding_seed),
        "lion": partial(Lion, betas=lion_betas, weight_decay=weight_decay, rounding_seed=rounding_seed),
    }
    if name not in makers:
        raise _problem(f"unknown optimizer {name!r}, expected one of {', '.join(OPTIMIZERS)}")
    return makers[name](groups)


def set_learning_rate(optimizer: Optimizer, multiplier: float) -> None:
    """Give each group `multiplier` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * multiplier


def learning_rate_of(optimizer: Optimizer) -> float:
    """The rate in force of the first group; for prodigy times the step size it has found."""
    group = optimizer.param_groups[0]
    return float(group["lr"] * group.get("d", 1.0))


def _adamw(groups: ParamGroups, **settings: Any) -> Optimizer:
    """Fused where this version of torch has it for the device: 3 to 6 times faster, and no copies of the state."""
    try:
        # The constructor fills in the groups it is given, so a second attempt needs untouched ones.
        return torch.optim.AdamW([dict(group) for group in groups], fused=True, **settings)
    except RuntimeError:
        return torch.optim.AdamW(groups, foreach=False, **settings)


def _adamw8bit(groups: ParamGroups, **settings: Any) -> Optimizer:
    return _optional_package("adamw8bit", "bitsandbytes").optim.AdamW8bit(groups, **settings)


def _prodigy(groups: ParamGroups, *, weight_decay: float, **settings: Any) -> Optimizer:
    rates = sorted({group["lr"] for group in groups})
    if len(rates) > 1:
        listed = ", ".join(f"{rate:g}" for rate in rates)
        raise _problem(
            f"prodigy needs one learning rate for all parts, got {listed}", "Use the same rate, normally 1, everywhere."
        )
    package = _optional_package("prodigy", "prodigyopt")
    for group in groups:
        group.setdefault("weight_decay", weight_decay)
    # The weight decay stands in the groups because the constructor prints a line when it is given one.
    return package.Prodigy(groups, lr=rates[0], use_bias_correction=True, safeguard_warmup=True, **settings)


def _optional_package(optimizer: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError, OSError) as error:
        raise _problem(
            f"{optimizer} needs the package {package}, which cannot be loaded ({error})",
            f"Install it into the Python that runs this program (python -m pip install {package}), "
            "or choose adamw, adafactor or lion.",
        ) from error


def _problem(text: str, hint: str = "") -> ConfigError:
    return ConfigError([Problem(SETTING, text)], hint)
