"""What the loop is given: the losses of a micro-batch, and what happens between steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """What `compute_losses` gives: losses (B,) with gradient, their weights (B,), and the pictures' names.

    The step's loss is the weighted sum divided by the weights of those that are not `is_prior`, which come on top.
    """

    losses: Tensor
    weights: Tensor
    names: Sequence[str]
    is_prior: bool = False


@dataclass(frozen=True)
class Every:
    """Due at multiples of `steps`; 0 is never. The last step is left to the end of the run."""

    steps: int

    def due(self, step: int) -> bool:
        """Whether `step` completed steps make it due."""
        return self.steps > 0 and step % self.steps == 0


@dataclass(frozen=True)
class Actions:
    """What happens between steps; each gets the number of completed steps."""

    save: Callable[[int], None]
    save_state: Callable[[int], None]
    preview: Callable[[int], None]
    validate: Callable[[int], None]
    save_every: Every
    state_every: Every
    preview_every: Every
    validate_every: Every
