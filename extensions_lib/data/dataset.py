"""A folder of pictures, looked through once: what is used and how, what is not and why.

No decoded picture is kept. Pictures are read again, one at a time, by `fitted.load_fitted`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..errors import DatasetError
from .buckets import Bucket, assign_bucket, crop_box, default_step_px, make_buckets
from .captions import caption_for
from .example import Example, Skipped
from .images import (
    ACCEPTED_TEXT,
    EXTENSIONS,
    MIN_SIDE_PX,
    WHITE,
    Colour,
    Picture,
    UnusablePicture,
    decode_picture,
    read_file,
)

MUCH_CROPPED = 0.5
MUCH_ENLARGED = 1.25
MAX_NAMED = 10

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Dataset:
    """The usable pictures of `folder` in the order of their names, the skipped ones, and how many files were neither.

    `num_ignored` counts files that are hidden or have no picture's extension, caption files among them.
    """

    folder: Path
    examples: tuple[Example, ...]
    skipped: tuple[Skipped, ...]
    num_ignored: int
    background: Colour = WHITE

    @property
    def notes(self) -> tuple[str, ...]:
        """All notes on used pictures, each with the picture's name."""
        return tuple(f"{example.name}: {note}" for example in self.examples for note in example.notes)


class NoUsablePictures(DatasetError):
    """A folder without a single usable picture; `skipped` and `num_ignored` as in `Dataset`."""

    def __init__(self, message: str, hint: str, skipped: tuple[Skipped, ...], num_ignored: int) -> None:
        super().__init__(message, hint)
        self.skipped = skipped
        self.num_ignored = num_ignored


@dataclass(frozen=True)
class _Scan:
    """The settings of one scan."""

    folder: Path
    resolution_px: int
    step_px: int
    buckets: tuple[Bucket, ...]
    allow_upscale: bool
    min_side_px: int
    repeats: int
    word_pattern: str
    join_with: str


def do_nothing(*_: int) -> None:
    """Stands for a progress or boundary callback nobody asked for."""


def scan_folder(
    folder: Path,
    *,
    resolution_px: int = 512,
    step_px: int | None = None,
    min_bucket_px: int | None = None,
    max_bucket_px: int | None = None,
    use_buckets: bool = True,
    allow_upscale: bool = True,
    include_subfolders: bool = True,
    repeats: int = 1,
    background: Colour = WHITE,
    min_side_px: int = MIN_SIDE_PX,
    word_pattern: str = "",
    join_with: str = " ",
    progress: Progress = do_nothing,
    boundary: Callable[[], None] = do_nothing,
) -> Dataset:
    """Look at every file in `folder`, decode each picture once and say what is to be done with it.

    Without `use_buckets` every picture becomes a square of `resolution_px`. `repeats` is how often each is seen per
    epoch. `progress(done, total)` and `boundary()` are called for every picture. Raises DatasetError when the folder
    is missing, NoUsablePictures when there are none.
    """
    folder = Path(folder)
    step = step_px or default_step_px(resolution_px)
    buckets = make_buckets(resolution_px, step, min_bucket_px, max_bucket_px)
    square = resolution_px // step * step
    settings = _Scan(
        folder, resolution_px, step, buckets if use_buckets else ((square, square),),
        allow_upscale, min_side_px, repeats, word_pattern, join_with,
    )  # fmt: skip
    paths, num_ignored = find_pictures(folder, include_subfolders=include_subfolders)
    examples, skipped = _look_at_all(paths, settings, progress, boundary)
    if not examples:
        raise _no_pictures(folder, skipped, num_ignored)
    return Dataset(folder, tuple(examples), tuple(skipped), num_ignored, background)


def find_pictures(folder: Path, *, include_subfolders: bool = True) -> tuple[list[Path], int]:
    """Files with a picture's extension, sorted by relative path, and the number of other files.

    Files and folders whose names start with a dot are not looked at; a file among them counts as another file.
    Raises DatasetError when `folder` is not a folder.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DatasetError(f"The picture folder {folder} {what}.", "Give the folder that holds the pictures.")
    pictures, num_ignored = [], 0
    for path in _walk(folder, include_subfolders):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            pictures.append(path)
        else:
            num_ignored += 1
    return sorted(pictures, key=lambda path: path.relative_to(folder).as_posix()), num_ignored


def _walk(folder: Path, include_subfolders: bool) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")] if include_subfolders else []
        for name in files:
            yield Path(parent, name)


def _look_at_all(
    paths: list[Path], settings: _Scan, progress: Progress, boundary: Callable[[], None]
) -> tuple[list[Example], list[Skipped]]:
    examples: list[Example] = []
    skipped: list[Skipped] = []
    first_with: dict[str, str] = {}
    for done, path in enumerate(paths, start=1):
        boundary()
        name = relative_name(path, settings.folder)
        try:
            example = _look_at(path, name, len(examples), first_with, settings)
        except UnusablePicture as error:
            skipped.append(Skipped(path, name, error.reason))
        else:
            first_with[example.sha256] = name
            examples.append(example)
        progress(done, len(paths))
    return examples, skipped


def relative_name(path: Path, folder: Path) -> str:
    """`path` below `folder` with forward slashes; bytes that are no text are replaced, so that it can be printed."""
    name: PurePath = path.relative_to(folder)
    return os.fsencode(name.as_posix()).decode("utf-8", errors="replace")


def _look_at(path: Path, name: str, index: int, first_with: dict[str, str], settings: _Scan) -> Example:
    data = read_file(path)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 in first_with:
        raise UnusablePicture(f"the same file as {first_with[sha256]}")
    picture = decode_picture(data, min_side_px=settings.min_side_px)
    width, height = picture.rgb.size
    bucket = assign_bucket(
        width, height, settings.buckets,
        resolution_px=settings.resolution_px, step_px=settings.step_px, allow_upscale=settings.allow_upscale,
    )  # fmt: skip
    caption = caption_for(path, word_pattern=settings.word_pattern, join_with=settings.join_with)
    notes = (*picture.notes, *_fit_notes(picture, bucket), *caption.notes)
    return Example(
        index, path, name, sha256, width, height, picture.alpha is not None, bucket, crop_box(width, height, bucket),
        caption.text, settings.repeats, notes,
    )  # fmt: skip


def _fit_notes(picture: Picture, bucket: Bucket) -> list[str]:
    width, height = picture.rgb.size
    crop = crop_box(width, height, bucket)
    used = crop.area_px / (width * height)
    notes = []
    if used < MUCH_CROPPED:
        notes.append(f"only {used:.0%} of its {width}x{height} px fit into {bucket[0]}x{bucket[1]}")
    if crop.scale > MUCH_ENLARGED:
        notes.append(f"enlarged {crop.scale:.1f} times, from {width}x{height} px to {bucket[0]}x{bucket[1]}")
    return notes


def _no_pictures(folder: Path, skipped: list[Skipped], num_ignored: int) -> NoUsablePictures:
    listed = "; ".join(map(str, skipped[:MAX_NAMED]))
    more = f"; and {len(skipped) - MAX_NAMED} more" if len(skipped) > MAX_NAMED else ""
    reasons = f" ({listed}{more})" if skipped else ""
    return NoUsablePictures(
        f"The folder {folder} holds no usable picture: {len(skipped)} unusable{reasons} and {num_ignored} other files.",
        f"Accepted are {ACCEPTED_TEXT} of at least {MIN_SIDE_PX} px.",
        tuple(skipped),
        num_ignored,
    )
