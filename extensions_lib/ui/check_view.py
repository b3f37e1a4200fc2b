"""The report of the Check as HTML: a summary, what stops the start, and the pictures as the model gets them."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from ..jobs.check_report import CheckProblem, CheckReport, PictureCheck
from .fields import label_of
from .markup import attributes, duration

PLACES = {"results": "where results go", "run": "where the run is kept"}


def check_html(report: CheckReport) -> str:
    """The whole report, everything escaped."""
    parts = (
        f'<p class="ts-check-summary">{escape(summary(report))}</p>',
        _problems(report),
        _warnings(report.warnings),
        _numbers(report),
        _pictures(report),
        _skipped(report),
    )
    return f'<div class="ts-check">{"".join(parts)}</div>'


def summary(report: CheckReport) -> str:
    """One line: '12 pictures, 3 buckets; 2400 samples = 1200 steps = 200 epochs; about 14 min; about 6 GiB of ...'."""
    pictures = [_count(report.num_pictures, "picture")]
    if report.buckets:
        pictures.append(_count(len(report.buckets), "bucket"))
    if report.skipped:
        pictures.append(f"{len(report.skipped)} skipped")
    length = _count(report.max_train_steps, "step")
    if report.epochs is not None:
        length += f" = {_short(report.epochs)} epoch{'' if report.epochs == 1 else 's'}"
    if report.num_samples is not None:
        length = f"{_count(report.num_samples, 'sample')} = {length}"
    parts = [", ".join(pictures), length, _time(report)]
    if report.memory_gib is not None:
        parts.append(f"about {report.memory_gib:.1f} GiB of memory")
    return "; ".join(parts)


def _time(report: CheckReport) -> str:
    if report.seconds_per_step is None:
        return f"time {report.pace_text}"
    time = duration(report.seconds_per_step * report.max_train_steps)
    return time if time.startswith("under") else f"about {time}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _short(number: float) -> str:
    """'200', '12.5' or '0.25'."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _problems(report: CheckReport) -> str:
    if not report.problems:
        return ""
    head = "One thing stops" if len(report.problems) == 1 else f"{len(report.problems)} things stop"
    items = "".join(f"<li>{_problem(problem, report.method)}</li>" for problem in report.problems)
    return f'<section class="ts-error" role="alert"><h3>{head} the start</h3><ul>{items}</ul></section>'


def _problem(problem: CheckProblem, method: str) -> str:
    """The message, the path of a setting in it replaced by the label of its control, and what to do."""
    path = f"{problem.setting}: "
    label = label_of(problem.setting, method) if problem.message.startswith(path) else ""
    text = problem.message.removeprefix(path) if label else problem.message
    name = f"<b>{escape(label)}</b>: " if label else ""
    hint = f'<p class="ts-hint">{escape(problem.hint)}</p>' if problem.hint else ""
    return f"<p>{name}{escape(text)}</p>{hint}"


def _warnings(warnings: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f'<section class="ts-warning"><h3>Good to know</h3><ul>{items}</ul></section>' if items else ""


def _numbers(report: CheckReport) -> str:
    """What the summary leaves out, folded."""
    rows = []
    if report.buckets:
        rows.append(("Buckets", ", ".join(f"{size} px: {number}" for size, number in report.buckets.items())))
    if report.num_samples is not None:
        rows.append(("Pictures shown to the model", f"{report.num_samples} in all"))
    if report.num_parameters is not None:
        rows.append(("Trained numbers", f"{report.num_parameters:,}"))
    if report.seconds_per_step is None:
        rows.append(("Time", report.pace_text))
    else:
        rows.append(("Time of a step", f"about {report.seconds_per_step:.3g} s, {report.pace_text}"))
    if report.memory_gib is not None:
        rows.append(("Memory", f"about {report.memory_gib:.1f} GiB on {report.device}, an estimate"))
    for room in report.disk:
        text = f"{room.needed_mib} MiB needed, {room.free_mib} MiB free"
        rows.append((f"Disk, {PLACES.get(room.place, room.place)}", text))
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in rows)
    return f'<details><summary>Numbers</summary><dl class="ts-figures">{items}</dl></details>'


def _pictures(report: CheckReport) -> str:
    if not report.pictures:
        return ""
    shown, total = len(report.pictures), report.num_pictures
    count = f"the first {shown} of {total} pictures" if shown < total else _count(total, "picture")
    cards = "".join(map(_card, report.pictures))
    return (
        f"<details open><summary>What the model will see: {count}</summary>"
        f'<ul class="ts-check-cards">{cards}</ul></details>'
    )


def _card(picture: PictureCheck) -> str:
    alt = f"{picture.name} as the model sees it"
    images = _image(picture.thumb, picture.thumb_px, alt)
    if picture.mask:
        images += _image(picture.mask, picture.thumb_px, f"What counts of {picture.name}, in white")
    items = "".join(f"<li>{escape(note)}</li>" for note in picture.notes)
    notes = f'<ul class="ts-check-notes">{items}</ul>' if items else ""
    return (
        f'<li class="ts-check-card"><div class="ts-check-images">{images}</div><div class="ts-check-text">'
        f"<strong>{escape(picture.name)}</strong>"
        f'<p class="ts-note">{escape(_sizes(picture))}</p>'
        f'<p class="ts-check-caption">{_caption(picture)}</p>{_tokens(picture)}{notes}</div></li>'
    )


def _image(uri: str, size: tuple[int, int], alt: str) -> str:
    return f"<img{attributes(src=uri, width=size[0], height=size[1], alt=alt, loading='lazy')}>"


def _sizes(picture: PictureCheck) -> str:
    """'96x64 px, trained at 64x64; cut off: left 16, right 16'."""
    width, height = picture.size_px
    left, top, right, bottom = picture.crop_px
    sides = {"left": left, "right": width - right, "top": top, "bottom": height - bottom}
    cut = ", ".join(f"{side} {pixels}" for side, pixels in sides.items() if pixels)
    end = f"; cut off: {cut}" if cut else ""
    return f"{width}x{height} px, trained at {picture.bucket_px[0]}x{picture.bucket_px[1]}{end}"


def _caption(picture: PictureCheck) -> str:
    if not picture.caption:
        return '<span class="ts-note">no caption</span>'
    html = escape(picture.caption)
    for text in set(picture.left_out):
        cut = f'<del><span class="ts-for-readers">not read by the model: </span>{escape(text)}</del>'
        html = html.replace(escape(text), cut)
    return html


def _tokens(picture: PictureCheck) -> str:
    """How many, and, folded, each of them; what is beyond one chunk is read as another part, as in long prompts."""
    if not picture.chunks:
        return ""
    num_parts = len(picture.chunks)
    count = f"{picture.num_tokens} of {picture.limit} tokens"
    if num_parts > 1:
        count = f"{picture.num_tokens} tokens, read in {num_parts} parts of at most {picture.limit}"
    parts = "".join(
        f'<p class="ts-check-tokens">{" ".join(f"<span>{escape(token)}</span>" for token in chunk)}</p>'
        for chunk in picture.chunks
    )
    return f'<details class="ts-note"><summary>{count}</summary>{parts}</details>'


def _skipped(report: CheckReport) -> str:
    if not (report.skipped or report.num_ignored):
        return ""
    items = "".join(f"<li><strong>{escape(name)}</strong>: {escape(reason)}</li>" for name, reason in report.skipped)
    count = _count(report.num_ignored, "other file")
    others = f"<p>{count} (captions among them), not pictures.</p>" if report.num_ignored else ""
    head = f"Skipped: {_count(len(report.skipped), 'picture')}"
    is_open = " open" if report.skipped else ""
    return f"<details{is_open}><summary>{head}</summary><ul>{items}</ul>{others}</details>"
