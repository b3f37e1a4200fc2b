import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from extensions_lib.control import JobControl
from extensions_lib.errors import NonFiniteLossError, OutOfMemoryError
from extensions_lib.events import Event, EventStream, PauseChanged, StepCompleted
from extensions_lib.methods.base import ParamGroup, Trainable
from extensions_lib.training.actions import Actions, Every, MicroBatch
from extensions_lib.training.loop import TrainingLoop
from extensions_lib.training.optimizer import make_optimizer

TARGETS = (1.0, 3.0, -2.0, 5.0)


class Recorder:
    """Keeps events, and the actions called with their steps, in one list."""

    def __init__(self) -> None:
        self.log: list[object] = []

    def action(self, name: str) -> Callable[[int], None]:
        return lambda step: self.log.append((name, step))

    def __call__(self, event: Event) -> None:
        self.log.append(event)

    def of(self, cls: type) -> list:
        return [entry for entry in self.log if isinstance(entry, cls)]


def make_loop(
    recorder: Recorder,
    compute: Callable[[int, int], MicroBatch] | None = None,
    *,
    parameter: Tensor | None = None,
    max_train_steps: int = 4,
    num_micro_batches: int = 1,
    max_grad_norm: float = 0.0,
    every: dict[str, int] | None = None,
    control: JobControl | None = None,
    factor: Callable[[int], float] = lambda step: 1.0,
    before_step: Callable[[int], None] = lambda step: None,
) -> tuple[TrainingLoop, Tensor]:
    value = torch.nn.Parameter(torch.zeros(1)) if parameter is None else parameter
    due = {"save": 0, "state": 0, "preview": 0, "validate": 0, **(every or {})}

    def squares(step: int, micro_batch: int) -> MicroBatch:
        target = TARGETS[(step * num_micro_batches + micro_batch) % len(TARGETS)]
        return MicroBatch((value - target) ** 2, torch.ones(1), ["picture"])

    loop = TrainingLoop(
        compute_losses=compute or squares,
        optimizer=make_optimizer("adamw", [{"params": [value], "lr": 0.1}], weight_decay=0.0),
        parameters=[value],
        learning_rate_factor=factor,
        before_step=before_step,
        after_update=recorder.action("updated"),
        actions=Actions(
            save=recorder.action("save"),
            save_state=recorder.action("state"),
            preview=recorder.action("preview"),
            validate=recorder.action("validate"),
            save_every=Every(due["save"]),
            state_every=Every(due["state"]),
            preview_every=Every(due["preview"]),
            validate_every=Every(due["validate"]),
        ),
        events=EventStream("job", (recorder,)),
        control=control or JobControl(),
        max_train_steps=max_train_steps,
        num_micro_batches=num_micro_batches,
        max_grad_norm=max_grad_norm,
        device=torch.device("cpu"),
    )
    return loop, value


def test_whole_order_of_two_steps() -> None:
    recorder = Recorder()
    loop, _ = make_loop(recorder, max_train_steps=3, every={"save": 2, "state": 1, "preview": 2, "validate": 2})
    assert loop.run() == "completed"
    names = [entry if isinstance(entry, tuple) else (type(entry).__name__, entry.step) for entry in recorder.log]
    assert names == [
        ("updated", 1),
        ("StepCompleted", 1),
        ("state", 1),
        ("updated", 2),
        ("StepCompleted", 2),
        ("state", 2),
        ("save", 2),
        ("validate", 2),
        ("preview", 2),
        ("updated", 3),
        ("StepCompleted", 3),
    ]
    assert loop.completed_steps == 3


def test_step_reports_loss_rate_and_examples() -> None:
    recorder = Recorder()
    loop, _ = make_loop(recorder, max_train_steps=2, factor=lambda step: 0.5**step)
    loop.run()
    first, second = recorder.of(StepCompleted)
    assert (first.loss, first.learning_rate, first.num_examples_seen) == (1.0, 0.1, 1)
    assert (second.learning_rate, second.num_examples_seen) == (0.05, 2)


def test_accumulation_equals_one_large_batch_with_unequal_parts() -> None:
    """Micro-batches of 3 and 1 examples with weights must give the gradient of all 4 at once."""
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0])
    targets = torch.tensor(TARGETS)

    def gradient(parts: list[slice]) -> tuple[Tensor, float]:
        recorder = Recorder()
        value = torch.nn.Parameter(torch.full((1,), 0.3))
        seen = []

        def compute(step: int, micro_batch: int) -> MicroBatch:
            part = parts[micro_batch]
            return MicroBatch((value - targets[part]) ** 2, weights[part], ["p"] * len(targets[part]))

        loop, _ = make_loop(recorder, compute, parameter=value, max_train_steps=1, num_micro_batches=len(parts))
        loop.optimizer.register_step_pre_hook(lambda *_: seen.append(value.grad.clone()))
        loop.run()
        return seen[0], recorder.of(StepCompleted)[0].loss

    whole, whole_loss = gradient([slice(0, 4)])
    split, split_loss = gradient([slice(0, 3), slice(3, 4)])
    expected = float((2 * (0.3 - targets) * weights).sum() / weights.sum())
    assert whole.item() == pytest.approx(expected, rel=1e-6)
    assert split.item() == pytest.approx(expected, rel=1e-6)
    assert split_loss == pytest.approx(whole_loss, rel=1e-6)


def test_gradients_are_clipped_to_the_norm() -> None:
    recorder = Recorder()
    loop, value = make_loop(recorder, max_train_steps=1, max_grad_norm=0.25)
    seen = []
    loop.optimizer.register_step_pre_hook(lambda *_: seen.append(value.grad.norm().item()))
    loop.run()
    assert seen[0] == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_loss_names_step_and_picture_and_changes_nothing(bad: float) -> None:
    recorder = Recorder()
    value = torch.nn.Parameter(torch.ones(1))

    def compute(step: int, micro_batch: int) -> MicroBatch:
        losses = torch.cat([value**2, value * (bad if step == 1 else 1.0)])
        return MicroBatch(losses, torch.ones(2), ["good.png", "bad.png"])

    loop, _ = make_loop(recorder, compute, parameter=value)
    before = []
    loop.after_update = lambda step: before.append(value.detach().clone())
    with pytest.raises(NonFiniteLossError, match=r"Step 2: the loss is not finite for bad\.png"):
        loop.run()
    assert loop.completed_steps == 1
    assert torch.equal(value.detach(), before[0])


def test_non_finite_gradient_of_a_finite_loss_stops_too() -> None:
    value = torch.nn.Parameter(torch.zeros(1))

    def compute(step: int, micro_batch: int) -> MicroBatch:
        return MicroBatch(value.sqrt(), torch.ones(1), ["p"])

    loop, _ = make_loop(Recorder(), compute, parameter=value)
    with pytest.raises(NonFiniteLossError, match="in the gradient"):
        loop.run()
    assert value.item() == 0.0


def test_stop_ends_within_one_step() -> None:
    recorder, control = Recorder(), JobControl()
    loop, _ = make_loop(recorder, control=control, max_train_steps=100)
    loop.after_update = lambda step: control.request_stop() if step == 3 else None
    assert loop.run() == "stopped"
    assert loop.completed_steps == 3
    assert len(recorder.of(StepCompleted)) == 3


def test_save_and_preview_on_demand() -> None:
    recorder, control = Recorder(), JobControl()
    loop, _ = make_loop(recorder, control=control, max_train_steps=3)

    def ask(step: int) -> None:
        if step == 2:
            control.request_save()
            control.request_preview()

    loop.after_update = ask
    loop.run()
    assert [entry for entry in recorder.log if isinstance(entry, tuple)] == [("save", 2), ("preview", 2)]


def test_pause_saves_the_state_and_goes_on() -> None:
    recorder, control = Recorder(), JobControl()
    loop, _ = make_loop(recorder, control=control, max_train_steps=2)
    control.pause()
    control.add_source(lambda target: target.resume() if recorder.of(PauseChanged) else None)
    loop.run()
    assert [(event.paused, event.step) for event in recorder.of(PauseChanged)] == [(True, 0), (False, 0)]
    assert recorder.log[0] == ("state", 0)
    assert loop.completed_steps == 2


def test_out_of_memory_is_explained() -> None:
    def compute(step: int, micro_batch: int) -> MicroBatch:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    loop, _ = make_loop(Recorder(), compute)
    with pytest.raises(OutOfMemoryError, match="Out of memory while training"):
        loop.run()


def test_every() -> None:
    assert [step for step in range(1, 8) if Every(3).due(step)] == [3, 6]
    assert not Every(0).due(0)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lion"])
def test_a_group_whose_share_is_over_rests(optimizer: str) -> None:
    """Neither momentum nor weight decay may move it, and the other group must not notice."""

    def values_after_each_step(train_share: float) -> list[tuple[float, float]]:
        one, two = (torch.nn.Parameter(torch.full((2, 2), start)) for start in (1.0, 2.0))
        groups = (ParamGroup("one", (one,), train_share=train_share), ParamGroup("two", (two,)))
        trainable = Trainable(torch.nn.ParameterList([one, two]), groups, trains_text_encoder=False)
        seen = []

        def compute(step: int, micro_batch: int) -> MicroBatch:
            return MicroBatch(((one - 3).square().mean() + (two - 3).square().mean()).reshape(1), torch.ones(1), ["p"])

        loop, _ = make_loop(
            Recorder(), compute, parameter=two, before_step=lambda step: trainable.before_step(step / 4)
        )
        loop.optimizer = make_optimizer(
            optimizer, [{"params": list(group.parameters), "lr": 0.1} for group in groups], weight_decay=0.1
        )
        loop.after_update = lambda step: seen.append((one[0, 0].item(), two[0, 0].item()))
        loop.run()
        return seen

    whole, half = values_after_each_step(1.0), values_after_each_step(0.5)
    assert half[:2] == whole[:2]
    assert [one for one, _ in half[2:]] == [half[1][0]] * 2
    assert len({one for one, _ in whole}) == 4
    assert [two for _, two in half] == [two for _, two in whole]
