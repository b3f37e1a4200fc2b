"""How parameters move."""

from __future__ import annotations

from dataclasses import dataclass

from .field import option

OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "adafactor", "lion")
OPTIMIZERS_OF_BF16 = ("adafactor", "lion")  # those that can round trained weights at random
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule."""

    optimizer: str = option("adamw", help="adamw8bit and prodigy need an extra package.", choices=OPTIMIZERS)
    learning_rate: float | str = option(
        1e-4, help="A number, or the WebUI's schedule text such as '5e-3:200, 1e-3:1000, 5e-4'.", min=0.0, max=10.0
    )
    lr_scheduler: str = option(
        "cosine", help="Shape of the learning rate over the run; ignored for a schedule text.", choices=LR_SCHEDULERS
    )
    lr_warmup_ratio: float = option(0.05, help="Share of the run spent rising to the full rate.", min=0.0, max=1.0)
    min_lr_ratio: float = option(0.0, help="The rate never falls below this share of its maximum.", min=0.0, max=1.0)
    lr_num_cycles: int = option(1, help="Restarts of cosine_with_restarts.", min=1, max=100, advanced=True)
    lr_power: float = option(1.0, help="Exponent of the polynomial schedule.", min=0.1, max=10.0, advanced=True)
    weight_decay: float = option(0.01, help="Decoupled weight decay.", min=0.0, max=1.0, advanced=True)
    beta1: float = option(0.9, help="Decay of the mean of gradients.", min=0.0, max=0.9999, advanced=True)
    beta2: float = option(
        0.0,
        help="Decay of the mean of squared gradients; 0: 0.99 for lion, 0.999 for others.",
        min=0.0,
        max=0.99999,
        advanced=True,
    )
    epsilon: float = option(1e-8, help="Added to the denominator.", min=0.0, max=1.0, advanced=True)
