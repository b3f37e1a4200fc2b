"""The text a picture is trained with: its words put into a template of the WebUI's syntax, shuffled or dropped."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError
from .captions import close_gaps, decode_text, split_tags
from .chance import random_for
from .example import Example

TEMPLATE_FOLDER = Path(__file__).parent / "templates"
BUILTIN_TEMPLATES = ("none", "filewords", "subject", "style", "subject_filewords", "style_filewords")
NAME, FILEWORDS = "[name]", "[filewords]"


@dataclass(frozen=True)
class Template:
    """Lines with [name] and [filewords], one of which is taken each time."""

    lines: tuple[str, ...]


def load_template(source: str) -> Template:
    """The template called `source`: one of `BUILTIN_TEMPLATES`, the path of a text file with one line each, or the
    text itself when it contains [name] or [filewords].

    Raises DatasetError when it is none of these or the file has no lines.
    """
    if source in BUILTIN_TEMPLATES:
        return Template((FILEWORDS,)) if source in ("none", "filewords") else _read_template(_builtin(source), source)
    if NAME in source or FILEWORDS in source:
        return Template(_lines_of(source))
    path = Path(source).expanduser()
    if source.strip() and path.is_file():
        return _read_template(path, source)
    raise DatasetError(
        f"There is no caption template {source!r}.",
        f"Give one of {', '.join(BUILTIN_TEMPLATES)}, the path of a text file, or a text with {NAME} or {FILEWORDS}.",
    )


def _builtin(name: str) -> Path:
    return TEMPLATE_FOLDER / f"{name}.txt"


def _read_template(path: Path, source: str) -> Template:
    try:
        lines = _lines_of(decode_text(path.read_bytes())[0])
    except OSError as error:
        raise DatasetError(f"The caption template {source!r} cannot be read: {error.strerror or error}.") from error
    if not lines:
        raise DatasetError(f"The caption template {source!r} has no lines.", f"Write for instance 'a photo of {NAME}'.")
    return Template(lines)


def _lines_of(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def augment(text: str, rng: random.Random, *, shuffle_tags: bool, keep_first_tags: int, tag_dropout: float) -> str:
    """`text` with its comma separated tags left out with probability `tag_dropout` and, if asked, shuffled.

    The first `keep_first_tags` stay where they are. A text without commas is returned as it is.
    """
    tags = split_tags(text)
    if len(tags) < 2 or not (shuffle_tags or tag_dropout):
        return text
    kept, free = tags[:keep_first_tags], tags[keep_first_tags:]
    free = [tag for tag in free if rng.random() >= tag_dropout]
    if shuffle_tags:
        rng.shuffle(free)
    return ", ".join(kept + free)


def fill_template(line: str, *, name: str, filewords: str) -> str:
    """`line` with its placeholders replaced; a [name] inside the caption is replaced too, as the WebUI does."""
    text = line.replace(FILEWORDS, filewords).replace(NAME, name)
    return " ".join(text.split()) if filewords else close_gaps(text)


class CaptionMaker:
    """Makes the text an example is trained with, the same for the same (seed, epoch, example, repeat).

    `name` replaces [name]: the placeholder or trigger word. `tag_dropout` and `caption_dropout` are probabilities in
    0..1; a dropped caption is the empty text. The WebUI's defaults: nothing shuffled, nothing dropped.
    """

    def __init__(
        self,
        template: Template,
        *,
        name: str = "",
        shuffle_tags: bool = False,
        keep_first_tags: int = 0,
        tag_dropout: float = 0.0,
        caption_dropout: float = 0.0,
    ) -> None:
        self._template = template
        self._name = name
        self._shuffle_tags = shuffle_tags
        self._keep_first_tags = keep_first_tags
        self._tag_dropout = tag_dropout
        self._caption_dropout = caption_dropout

    def renamed(self, name: str) -> CaptionMaker:
        """The same captions, shuffled and dropped alike, with another name in the place of [name]."""
        other = copy.copy(self)
        other._name = name
        return other

    @property
    def is_constant(self) -> bool:
        """True when an example always has the same text, so that its encoding may be kept."""
        return len(self._template.lines) == 1 and not (self._shuffle_tags or self._tag_dropout or self._caption_dropout)

    def caption(self, example: Example, *, seed: int, epoch: int, repeat: int = 0) -> str:
        """The text of `example` the `repeat`-th time it is seen in `epoch`."""
        place = (seed, epoch, example.index, repeat)
        if self._caption_dropout and random_for("caption_dropout", *place).random() < self._caption_dropout:
            return ""
        line = random_for("template", *place).choice(self._template.lines)
        filewords = augment(
            example.caption,
            random_for("tags", *place),
            shuffle_tags=self._shuffle_tags,
            keep_first_tags=self._keep_first_tags,
            tag_dropout=self._tag_dropout,
        )
        return fill_template(line, name=self._name, filewords=filewords)

    def all_captions(self, examples: Iterable[Example]) -> tuple[str, ...]:
        """The one text of each example, in order. Raises ValueError unless `is_constant`."""
        if not self.is_constant:
            raise ValueError("The captions change from epoch to epoch: there is no single text for each example.")
        return tuple(self.caption(example, seed=0, epoch=0) for example in examples)
