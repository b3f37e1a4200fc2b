"""The one training loop.

    TrainingStarted
    until max_train_steps or a stop is requested (checked once per step):
        train_step        one optimizer update over all micro-batches, exactly weighted
        StepCompleted
        CheckpointSaved   when due or asked          } in this order: a preview may fail,
        PreviewReady      when due or asked          } the save has already happened

It knows no path, no text of a user interface and no host. Letters: B examples of a micro-batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..control import JobControl
from ..errors import NonFiniteLossError
from ..events import EventStream, PauseChanged, StepCompleted
from .actions import Actions, MicroBatch
from .memory import out_of_memory_explained, peak_memory_gib
from .optimizer import learning_rate_of, set_learning_rate


@dataclass
class TrainingLoop:
    """One optimizer update after the other.

    `compute_losses(step, micro_batch)` must depend on nothing but its arguments and the parameters, so that a resumed
    run repeats exactly. `learning_rate_factor(step)` multiplies each group's base rate. `before_step(step)` and
    `after_update(step)` get the completed steps (groups at rest; EMA, norm caps). `scaler` is a torch GradScaler for
    fp16, else None.
    """

    compute_losses: Callable[[int, int], MicroBatch]
    optimizer: torch.optim.Optimizer
    parameters: Sequence[Tensor]
    learning_rate_factor: Callable[[int], float]
    before_step: Callable[[int], None]
    after_update: Callable[[int], None]
    actions: Actions
    events: EventStream
    control: JobControl
    max_train_steps: int
    num_micro_batches: int
    max_grad_norm: float
    device: torch.device
    scaler: torch.amp.GradScaler | None = None
    num_examples_seen: int = 0
    completed_steps: int = 0

    def run(self) -> str:
        """Train from `completed_steps` on. Returns 'completed' or 'stopped'."""
        for step in range(self.completed_steps, self.max_train_steps):
            self._hold(step)
            if self.control.stop_requested:
                return "stopped"
            with out_of_memory_explained("training"):
                self.train_step(step)
            self.completed_steps = step + 1
            self._between(step + 1)
        return "completed"

    def train_step(self, step: int) -> None:
        """One optimizer update. Raises NonFiniteLossError before the update when a loss or gradient is not finite."""
        started = time.perf_counter()
        self.before_step(step)
        set_learning_rate(self.optimizer, self.learning_rate_factor(step))
        batches = self._accumulate(step)
        loss = self._checked_loss(step, batches)
        self._update()
        self.after_update(step + 1)
        self.num_examples_seen += sum(len(batch.names) for batch in batches if not batch.is_prior)
        self.events.emit(
            StepCompleted(
                step=step + 1,
                loss=loss,
                learning_rate=learning_rate_of(self.optimizer),
                num_examples_seen=self.num_examples_seen,
                seconds=time.perf_counter() - started,
                peak_memory_gib=peak_memory_gib(self.device) or 0.0,
            )
        )

    def _accumulate(self, step: int) -> list[MicroBatch]:
        """Gradients of the mean loss over all examples of the step, each with its weight."""
        batches = []
        for micro_batch in range(self.num_micro_batches):
            batch = self.compute_losses(step, micro_batch)
            total = (batch.losses * batch.weights).sum()
            (self.scaler.scale(total) if self.scaler else total).backward()
            batches.append(replace(batch, losses=batch.losses.detach()))
        total_weight = _total_weight(batches)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.div_(total_weight)
        return batches

    def _checked_loss(self, step: int, batches: list[MicroBatch]) -> float:
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        limit = self.max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit, foreach=False)
        losses, weights = torch.cat([b.losses for b in batches]), torch.cat([b.weights for b in batches])
        loss = (losses * weights).sum() / _total_weight(batches)
        value, norm_value = torch.stack([loss, norm.to(loss)]).tolist()
        names = [name for batch in batches for name in batch.names]
        # A GradScaler skips the update itself when a scaled gradient overflows; that is not a failure.
        if not math.isfinite(value) or not (math.isfinite(norm_value) or self.scaler):
            wrong = {name for name, ok in zip(names, losses.isfinite().tolist(), strict=True) if not ok}
            where = f"for {', '.join(sorted(wrong))}" if wrong else "in the gradient"
            raise NonFiniteLossError(
                f"Step {step + 1}: the loss is not finite {where} (loss {value}, gradient norm {norm_value}).",
                "The parameters are as they were. Lower the learning rate, use bf16 or fp32, or remove the picture.",
            )
        return value

    def _update(self) -> None:
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _hold(self, step: int) -> None:
        if self.control.paused:
            self.actions.save_state(step)
            self.events.emit(PauseChanged(paused=True, step=step))
            self.control.wait_while_paused()
            self.events.emit(PauseChanged(paused=False, step=step))

    def _between(self, step: int) -> None:
        """What is due or asked for after `step` completed steps; the end of the run does its own saving."""
        actions, is_last = self.actions, step >= self.max_train_steps
        if actions.state_every.due(step) and not is_last:
            actions.save_state(step)
        if self.control.take_save() or (actions.save_every.due(step) and not is_last):
            actions.save(step)
        if actions.validate_every.due(step):
            actions.validate(step)
        if self.control.take_preview() or (actions.preview_every.due(step) and not is_last):
            actions.preview(step)


def _total_weight(batches: Sequence[MicroBatch]) -> Tensor:
    return torch.cat([batch.weights for batch in batches if not batch.is_prior]).sum()
