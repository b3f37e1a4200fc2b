from __future__ import annotations

import io

import pytest

from extensions_lib.cli.console import ConsoleDisplay, bar
from extensions_lib.cli.pace import Pace, Running, duration
from extensions_lib.events import (
    CheckpointSaved,
    Event,
    JobFailed,
    JobFinished,
    PauseChanged,
    PhaseProgress,
    PreviewReady,
    StepCompleted,
    TrainingStarted,
    ValidationMeasured,
    Warned,
)


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Session:
    """A display on a stream in memory."""

    def __init__(self, is_terminal: bool, num_columns: int = 120) -> None:
        self.clock = Clock()
        self.stream = io.StringIO()
        self.display = ConsoleDisplay(
            self.stream, clock=self.clock, is_terminal=is_terminal, num_columns=lambda: num_columns
        )

    def show(self, event: Event, seconds: float = 0.0) -> str:
        """What is written for `event`, `seconds` after the one before."""
        self.clock.now += seconds
        before = len(self.stream.getvalue())
        self.display(event)
        return self.stream.getvalue()[before:]


@pytest.fixture
def log() -> Session:
    return Session(is_terminal=False)


@pytest.fixture
def terminal() -> Session:
    return Session(is_terminal=True)


def started(first_step: int = 0, max_train_steps: int = 200) -> TrainingStarted:
    return TrainingStarted(
        name="zkw", method="lora", first_step=first_step, max_train_steps=max_train_steps, num_examples=12,
        num_parameters=3200, run_folder="runs/zkw",
    )  # fmt: skip


def step(number: int, loss: float = 0.125, seconds: float = 0.5, memory: float = 0.0) -> StepCompleted:
    return StepCompleted(
        step=number, loss=loss, learning_rate=1e-4, num_examples_seen=number, seconds=seconds, peak_memory_gib=memory
    )


def test_a_terminal_rewrites_one_line(terminal: Session) -> None:
    assert terminal.show(started()) == (
        "training zkw (lora): 200 steps, 12 pictures, 3,200 numbers to learn\nfolder: runs/zkw\n"
    )
    first = "  5% [#-------------------] 10/200  loss 0.1250  lr 1.00e-04  2.00 steps/s  ETA 1:35  peak 5.2 GiB"
    assert terminal.show(step(10, memory=5.21), seconds=5) == "\r" + first
    second = " 50% [##########----------] 100/200  loss 0.1250  lr 1.00e-04  2.00 steps/s  ETA 0:50"
    assert terminal.show(step(100), seconds=45) == "\r" + second + " " * (len(first) - len(second))


def test_a_message_goes_above_the_progress_line(terminal: Session) -> None:
    terminal.show(started())
    line = terminal.show(step(10), seconds=5)[1:]
    wipe = "\r" + " " * len(line) + "\r"
    assert terminal.show(Warned(text="one picture was skipped")) == f"{wipe}warning: one picture was skipped\n\r{line}"


def test_a_terminal_is_redrawn_ten_times_a_second_at_most_and_at_the_end(terminal: Session) -> None:
    terminal.show(started())
    assert terminal.show(step(1), seconds=0.2) != ""
    assert terminal.show(step(2), seconds=0.05) == ""
    assert terminal.show(step(3), seconds=0.06) != ""
    assert terminal.show(step(200), seconds=0.01).startswith("\r100% [####################] 200/200")


def test_a_narrow_terminal_cuts_the_line() -> None:
    narrow = Session(is_terminal=True, num_columns=30)
    narrow.show(started())
    assert narrow.show(step(10), seconds=5) == "\r  5% [#-------------------] 1"


def test_a_log_gets_a_line_every_five_percent(log: Session) -> None:
    log.show(started())
    written = {number: log.show(step(number), seconds=0.1) for number in range(1, 201)}
    assert [number for number, text in written.items() if text] == list(range(10, 201, 10))
    assert written[100] == " 50% 100/200  loss 0.1250  lr 1.00e-04  2.00 steps/s  ETA 0:10\n"


def test_a_slow_log_gets_a_line_every_ten_seconds(log: Session) -> None:
    log.show(started(max_train_steps=10_000))
    written = [number for number in range(1, 21) if log.show(step(number, seconds=3.0), seconds=3)]
    assert written == [4, 8, 12, 16, 20]


def test_phases_before_the_first_step_are_shown(log: Session, terminal: Session) -> None:
    phases = [PhaseProgress(phase="load model", done=0, total=1), PhaseProgress(phase="load model", done=1, total=1)]
    phases += [PhaseProgress(phase="cache latents", done=done, total=40) for done in (0, 1, 20, 40)]
    for phase in phases:
        log.show(phase, seconds=1)
        terminal.show(phase, seconds=1)
    assert log.stream.getvalue() == (
        "load model 0/1\nload model 1/1\ncache latents 0/40\ncache latents 20/40\ncache latents 40/40\n"
    )
    empty, half, full = "-" * 20, "#" * 10 + "-" * 10, "#" * 20
    assert terminal.stream.getvalue() == (
        f"\rload model [{empty}] 0/1\rload model [{full}] 1/1\n"
        f"\rcache latents [{empty}] 0/40\rcache latents [{empty}] 1/40"
        f"\rcache latents [{half}] 20/40\rcache latents [{full}] 40/40"
    )
    assert terminal.show(started()).startswith("\ntraining zkw")


def test_every_other_event_has_its_line(log: Session) -> None:
    events = [
        CheckpointSaved(step=100, path="runs/zkw.safetensors", num_modules=192),
        CheckpointSaved(step=100, path="runs/zkw.pt", num_modules=0),
        PreviewReady(step=100, path="runs/000100-0.png", grid_path="runs/grid.png"),
        ValidationMeasured(step=100, loss=0.25),
        Warned(text="low disk space"),
        JobFailed(error="OutOfMemoryError", message="The GPU is full.", hint="Use batch size 1."),
        JobFailed(error="ModelError", message="No model.", hint=""),
    ]
    assert "".join(log.show(event) for event in events) == (
        "step 100: saved runs/zkw.safetensors (fits 192 modules)\n"
        "step 100: saved runs/zkw.pt\n"
        "step 100: preview runs/000100-0.png\n"
        "step 100: validation loss 0.2500\n"
        "warning: low disk space\n"
        "failed: The GPU is full.\n  Use batch size 1.\n"
        "failed: No model.\n"
    )


def test_the_end_leaves_the_progress_on_the_screen(terminal: Session) -> None:
    terminal.show(started())
    terminal.show(step(200), seconds=200)
    finished = JobFinished(reason="completed", step=200, path="zkw.safetensors")
    assert terminal.show(finished, seconds=2) == "\ncompleted at step 200 in 3:22; result: zkw.safetensors\n"
    discarded = JobFinished(reason="discarded", step=3, path="")
    assert terminal.show(discarded) == "discarded at step 3 in 3:22; no result was written\n"


def test_a_tool_has_no_steps(log: Session) -> None:
    events = [
        PhaseProgress(phase="resize", done=3, total=3),
        PauseChanged(paused=True, step=0),
        PauseChanged(paused=False, step=0),
        CheckpointSaved(step=0, path="small.safetensors", num_modules=3, kind="lora", text="3 layers of rank 4."),
        JobFinished(reason="completed", step=0, path="small.safetensors"),
    ]
    assert "".join(log.show(event) for event in events) == (
        "resize 3/3\npaused\ngoing on\nsaved small.safetensors (fits 3 modules)\n3 layers of rank 4.\n"
        "completed in 0:00; result: small.safetensors\n"
    )


def test_close_ends_an_open_line_once(terminal: Session) -> None:
    terminal.show(started())
    terminal.show(step(1), seconds=1)
    before = terminal.stream.getvalue()
    terminal.display.close()
    terminal.display.close()
    assert terminal.stream.getvalue() == before + "\n"


def test_a_resumed_run_estimates_from_its_own_steps(log: Session) -> None:
    assert "200 steps, going on from step 100, 12 pictures" in log.show(started(first_step=100))
    assert log.show(step(110), seconds=20).endswith("ETA 3:00\n")


def test_a_pause_does_not_count(log: Session) -> None:
    log.show(started())
    log.show(step(20), seconds=20)
    assert log.show(PauseChanged(paused=True, step=20)) == "paused at step 20\n"
    assert log.show(PauseChanged(paused=False, step=20), seconds=500) == "going on from step 20\n"
    assert log.show(step(40), seconds=20).endswith("ETA 2:40\n")


def test_signs_the_console_lacks_do_not_end_the_display() -> None:
    raw = io.BytesIO()
    display = ConsoleDisplay(io.TextIOWrapper(raw, encoding="cp437"), is_terminal=False)
    display(Warned(text="\u65e5\u672c.png is damaged"))
    assert raw.getvalue() == b"warning: ??.png is damaged\n"


def test_loss_is_an_unbiased_running_mean() -> None:
    mean = Running(decay=0.5)
    assert mean.mean != mean.mean
    mean.add(4.0)
    assert mean.mean == 4.0
    mean.add(1.0)
    assert mean.mean == pytest.approx((0.5 * 4 + 1) / 1.5)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "2.50 steps/s"), (1.0, "1.00 s/step"), (4.0, "4.00 s/step")])
def test_speed_is_readable(seconds: float, text: str) -> None:
    pace = Pace(first_step=0, last_step=10, now=0.0)
    pace.add(1, 0.1, seconds)
    assert pace.speed() == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (750, "12:30"), (3723, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_bar_stays_in_its_brackets() -> None:
    assert bar(0.25) == "[#####---------------]"
    assert bar(7) == "[" + "#" * 20 + "]"
