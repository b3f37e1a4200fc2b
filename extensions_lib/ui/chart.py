"""The loss of a run as an SVG picture: raw, smoothed, and measured at fixed noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

Point = tuple[float, float]

MAX_POINTS = 400
WIDTH, HEIGHT = 640, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 40


def smoothing_window(max_train_steps: int) -> int:
    """Over about how many steps the smoothed line averages: a twentieth of the run, 5 to 100."""
    return min(max(max_train_steps // 20, 5), 100)


def smoothed(values: Iterable[float], window: int) -> list[float]:
    """Exponential moving average with bias correction: s_t = b s_(t-1) + (1 - b) x_t, shown as s_t / (1 - b^t).

    b = 1 - 1 / window, so the first value is the first input, not a pull towards zero.
    """
    decay, average, weight, result = 1 - 1 / window, 0.0, 0.0, []
    for value in values:
        average = decay * average + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        result.append(average / weight)
    return result


def binned(points: Sequence[Point], limit: int = MAX_POINTS) -> tuple[list[Point], int]:
    """At most `limit` points, each the mean of as many neighbours, and that number."""
    size = max(-(-len(points) // limit), 1)
    bins = (points[start : start + size] for start in range(0, len(points), size))
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in bins], size


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers, 1, 2 or 5 times a power of ten apart, within low..high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor, most in ((1, 1.5), (2, 3.5), (5, 7.5), (10, 10)) if rough <= most * power)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def loss_chart(
    curve: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]], max_train_steps: int
) -> str:
    """The chart of (step, loss) pairs, '' before there are two; `max_train_steps` decides the smoothing."""
    curve = [point for point in curve if math.isfinite(point[1])]
    validation = [point for point in validation if math.isfinite(point[1])]
    if len(curve) < 2:
        return ""
    window = smoothing_window(max_train_steps)
    steps = [step for step, _ in curve]
    smooth, _ = binned(list(zip(steps, smoothed([loss for _, loss in curve], window), strict=True)))
    raw, size = binned(curve)
    measured, _ = binned(validation)
    frame = _Frame.around(raw, [*smooth, *measured])
    raw_name = "loss of each step" if size == 1 else f"loss, mean of {size} steps"
    legend = [
        ("ts-raw", raw_name),
        ("ts-smooth", f"smoothed: moving average (EMA) over about {window} steps, bias-corrected"),
    ]
    lines = [frame.line(raw, "ts-raw"), frame.line(smooth, "ts-smooth")]
    if measured:
        legend.append(("ts-validation", "validation: fixed noise"))
        lines += [frame.line(measured, "ts-validation"), frame.dots(measured, "ts-validation")]
    return (
        '<figure class="ts-chart">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-labelledby="train_studio_chart_title train_studio_chart_desc">'
        '<title id="train_studio_chart_title">Loss by training step</title>'
        f'<desc id="train_studio_chart_desc">{escape(_description(curve, smooth, measured))}</desc>'
        f"{frame.axes()}{''.join(lines)}</svg>{_legend(legend)}</figure>"
    )


def _description(curve: Sequence[Point], smooth: Sequence[Point], measured: Sequence[Point]) -> str:
    text = (
        f"Steps {curve[0][0]} to {curve[-1][0]}. Smoothed loss from {smooth[0][1]:.4g} to {smooth[-1][1]:.4g}, "
        f"lowest {min(loss for _, loss in smooth):.4g}."
    )
    if measured:
        best = min(measured, key=lambda point: point[1])
        text += f" Validation loss {measured[-1][1]:.4g}, lowest {best[1]:.4g} at step {best[0]:.0f}."
    return text


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<span class="ts-key"><i class="{name}"></i>{escape(text)}</span>' for name, text in entries)
    return f"<figcaption>{items}</figcaption>"


@dataclass(frozen=True)
class _Frame:
    """The range shown, and where its points lie in the picture."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @classmethod
    def around(cls, raw: Sequence[Point], shown: Sequence[Point]) -> _Frame:
        """All of `shown`, and of `raw` all but the highest hundredth: one outlier must not flatten the rest."""
        losses = sorted(loss for _, loss in raw)
        top = max(losses[math.ceil(len(losses) * 0.99) - 1], *(loss for _, loss in shown))
        bottom = min(losses[0], *(loss for _, loss in shown))
        is_flat = top - bottom <= abs(top) * 1e-6  # what rounding leaves of equal losses is no range
        margin = (abs(top) * 0.1 or 1.0) if is_flat else (top - bottom) * 0.06
        steps = [step for step, _ in (*raw, *shown)]
        return cls(min(steps), max(max(steps), min(steps) + 1), bottom - margin, top + margin)

    def at(self, point: Point) -> str:
        """Where a point lies, in units of the picture; values beyond the range lie on its edge."""
        loss = min(max(point[1], self.y_low), self.y_high)
        x = LEFT + (point[0] - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)
        y = TOP + (self.y_high - loss) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    def line(self, points: Sequence[Point], name: str) -> str:
        """The points joined."""
        return f'<polyline class="{name}" points="{" ".join(map(self.at, points))}"/>'

    def dots(self, points: Sequence[Point], name: str) -> str:
        """A dot at each point."""
        places = (self.at(point).split(",") for point in points)
        return "".join(f'<circle class="{name}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in places)

    def axes(self) -> str:
        """Grid lines, numbers and the names of both axes."""
        parts = []
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        losses = ticks(self.y_low, self.y_high, 5)
        decimals = max(-math.floor(math.log10(losses[1] - losses[0])), 0) if len(losses) > 1 else 3
        for loss in losses:
            y = self.at((self.x_low, loss)).split(",")[1]
            parts.append(f'<line class="ts-grid" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{loss:.{decimals}f}</text>')
        for step in ticks(self.x_low, self.x_high, 7):
            if step == round(step):
                x = self.at((step, self.y_low)).split(",")[0]
                parts.append(f'<line class="ts-tick" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
                parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{step:.0f}</text>')
        middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
        parts.append(f'<line class="ts-axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        parts.append(f'<text x="{middle_x}" y="{HEIGHT - 6}" text-anchor="middle">step (optimizer updates)</text>')
        parts.append(
            f'<text x="12" y="{middle_y}" text-anchor="middle" transform="rotate(-90 12 {middle_y})">'
            "loss (mean per picture)</text>"
        )
        return "".join(parts)
