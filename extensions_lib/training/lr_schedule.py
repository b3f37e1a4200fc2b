"""Learning-rate schedules as pure functions of the number of completed steps: a resumed run needs no state of them.

A schedule maps the steps completed so far (0 before the first) to a multiplier of each group's own base rate. The
named shapes have the values of `diffusers.optimization.get_scheduler`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import ConfigError, Problem

Schedule = Callable[[int], float]

SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
POLYNOMIAL_END_RATE = 1e-7
TEXT_EXAMPLE = "'5e-3:200, 1e-3:1000, 5e-4' (5e-3 up to step 200, 1e-3 up to step 1000, then 5e-4)"


def make_schedule(
    name: str,
    *,
    num_steps: int,
    warmup_steps: int = 0,
    min_ratio: float = 0.0,
    num_cycles: int = 1,
    power: float = 1.0,
    base_lr: float = 1e-4,
) -> Schedule:
    """The multiplier of one of SCHEDULES over a run of `num_steps`.

    Every shape but "constant" rises linearly from 0 over `warmup_steps`; the falling ones then go from 1 to
    `min_ratio` (0 to 1) and stay there after the end. `num_cycles` belongs to "cosine_with_restarts", `power` to
    "polynomial". `base_lr` is the rate the multiplier is for: without a `min_ratio`, "polynomial" ends at a rate of
    1e-7. Raises ConfigError for another name.
    """
    if name == "constant":
        return lambda step: 1.0
    shapes: dict[str, Callable[[float], float]] = {
        "constant_with_warmup": lambda progress: 1.0,
        "linear": lambda progress: 1 - progress,
        "cosine": _half_cosine,
        "cosine_with_restarts": lambda progress: _half_cosine(num_cycles * progress % 1.0) if progress < 1 else 0.0,
        "polynomial": lambda progress: (1 - progress) ** power,
    }
    if name not in shapes:
        problem = f"unknown schedule {name!r}, expected one of {', '.join(SCHEDULES)}"
        raise ConfigError([Problem("optimizer.lr_scheduler", problem)])
    end_ratio = POLYNOMIAL_END_RATE / max(base_lr, POLYNOMIAL_END_RATE)
    floor = max(min_ratio, end_ratio) if name == "polynomial" else min_ratio
    return _with_warmup(shapes[name], num_steps, warmup_steps, floor)


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _with_warmup(shape: Callable[[float], float], num_steps: int, warmup_steps: int, floor: float) -> Schedule:
    def multiplier(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
        return floor + (1 - floor) * shape(progress)

    return multiplier


@dataclass(frozen=True)
class LrPiece:
    """A rate that holds for the steps up to and including number `until_step`; None: to the end."""

    rate: float
    until_step: int | None


def parse_lr_text(text: str) -> tuple[LrPiece, ...]:
    """The WebUI's schedule text: 'rate:step' pieces separated by commas; a bare rate or step -1 lasts to the end.

    The first rate must be above 0, steps must rise, and nothing may follow a piece that lasts to the end.
    Raises ConfigError naming each piece that is wrong.
    """
    texts = [piece.strip() for piece in text.split(",") if piece.strip()]
    if not texts:
        raise _wrong_text([f"it is empty: {text!r}"])
    pieces: list[LrPiece] = []
    mistakes: list[str] = []
    for piece_text in texts:
        piece = _parse_piece(piece_text)
        mistake = piece if isinstance(piece, str) else _misplaced(piece, pieces)
        if mistake:
            mistakes.append(f"in {piece_text!r} {mistake}")
        elif isinstance(piece, LrPiece):
            pieces.append(piece)
    if mistakes:
        raise _wrong_text(mistakes)
    return tuple(pieces)


def _parse_piece(text: str) -> LrPiece | str:
    """The piece, or what is wrong with it."""
    rate_text, colon, step_text = text.partition(":")
    try:
        rate = float(rate_text)
    except ValueError:
        return f"the rate {rate_text.strip()!r} is not a number"
    if not (math.isfinite(rate) and rate >= 0):
        return f"the rate {rate_text.strip()!r} is not a finite number of at least 0"
    try:
        step = int(step_text) if colon else -1
    except ValueError:
        return f"the step {step_text.strip()!r} is not a whole number"
    if step < 1 and step != -1:
        return f"the step {step} is neither at least 1 nor -1 (to the end)"
    return LrPiece(rate, None if step == -1 else step)


def _misplaced(piece: LrPiece, before: Sequence[LrPiece]) -> str:
    """What is wrong with `piece` after the good pieces `before`; empty when nothing is."""
    if not before:
        return "" if piece.rate > 0 else "the first rate must be above 0"
    last = before[-1].until_step
    if last is None:
        return f"nothing can follow the rate {before[-1].rate:g}, which lasts to the end"
    if piece.until_step is not None and piece.until_step <= last:
        return f"the step {piece.until_step} is not after step {last} of the piece before"
    return ""


def _wrong_text(mistakes: Sequence[str]) -> ConfigError:
    problems = [Problem("optimizer.learning_rate", mistake) for mistake in mistakes]
    return ConfigError(problems, f"Give one number, or a schedule such as {TEXT_EXAMPLE}.")


def make_text_schedule(pieces: Sequence[LrPiece]) -> Schedule:
    """The multiplier of the first rate, which is the base rate. After the last given step the last rate is kept."""
    first_rate = pieces[0].rate

    def multiplier(step: int) -> float:
        for piece in pieces:
            if piece.until_step is None or step < piece.until_step:
                return piece.rate / first_rate
        return pieces[-1].rate / first_rate

    return multiplier
