"""New words and the vectors behind them, as all methods with an embedding have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .field import option


@dataclass(frozen=True, kw_only=True)
class WordConfig:
    """How the vectors of a word begin."""

    vectors_per_token: int = option(4, help="How many vectors the word stands for.", min=1, max=75)
    initializer_text: str = option("", help="The vectors start as those of this text, such as 'dog'; empty: zeros.")


def word_of_line(line: str) -> dict[str, Any]:
    """The table of 'zhat', 'zhat: 4', 'zhat: red hat' or 'zhat: 4, red hat'."""
    word, _, rest = line.partition(":")
    number, _, text = rest.partition(",")
    table: dict[str, Any] = {"word": word.strip()}
    if number.strip().isdecimal():
        table["vectors_per_token"] = int(number)
    else:
        text = rest
    return table | ({"initializer_text": text.strip()} if text.strip() else {})


def line_of_word(entry: Mapping[str, Any]) -> str:
    """'zhat: 4, red hat': the inverse of `word_of_line`, for a table that has nothing else."""
    text = entry["initializer_text"]
    return f"{entry['word']}: {entry['vectors_per_token']}{f', {text}' if text else ''}"


@dataclass(frozen=True, kw_only=True)
class FurtherWord(WordConfig):
    """A further word of the same run; it stands in the captions itself, as [name] is the first word."""

    word: str = option(help="What captions and prompts call it, and its file.")
    start_from: str = option("", help="An embedding file to go on from.")


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig(WordConfig):
    """The words of a run and how fast their vectors move."""

    further_words: tuple[FurtherWord, ...] = option(
        (),
        help="Further words that the captions contain; each becomes an embedding file of its own. "
        "One a line: 'zhat', or 'zhat: 4, red hat' for 4 vectors that start as those of 'red hat'.",
        item=FurtherWord,
        of_line=word_of_line,
        to_line=line_of_word,
        advanced=True,
    )
    relative_learning_rate: float = option(
        0.0,
        help="Share of an average word's size that a vector moves per step, for each text encoder by its own words; "
        "0: the ordinary learning rate counts. 0.05 suits SDXL, whose two encoders differ; not for prodigy.",
        min=0.0,
        max=10.0,
        advanced=True,
    )
    max_norm_ratio: float = option(
        0.0,
        help="Vectors longer than this many times the median of the model's own are shortened; 0 off.",
        min=0.0,
        max=100.0,
        advanced=True,
    )
