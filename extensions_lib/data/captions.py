"""The words that belong to a picture: its caption file, else its file name."""

from __future__ import annotations

import codecs
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError

NUMBERS_AT_START = re.compile(r"^[-\d]+\s*")
EXTRA_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")
WEIGHTED = re.compile(r"\(([^()<>]*?)\s*:\s*\d+(?:\.\d+)?\s*\)")


@dataclass(frozen=True)
class Caption:
    """`text` on one line, `source` 'file' or 'file name', and notes for the user."""

    text: str
    source: str
    notes: tuple[str, ...] = ()


def caption_for(picture: Path, *, word_pattern: str = "", join_with: str = " ") -> Caption:
    """The caption of `picture`: the text file of the same stem (`cat.txt` for `cat.png`), else words of its file name.

    White space becomes single spaces. Prompt syntax that means nothing in training, <lora:...> and weights as in
    (hat:1.2), is removed. `word_pattern` is a regular expression whose matches in the file name are joined by
    `join_with`, like the WebUI's setting of that purpose. Raises DatasetError when the text file cannot be read.
    """
    found = _read_sidecar(picture)
    if found is None:
        text = words_of_name(picture.stem, word_pattern=word_pattern, join_with=join_with)
        notes = [] if text else ["no caption: there is no text file and the file name has no words"]
        return Caption(text, "file name", tuple(notes))
    raw, notes = found
    text = remove_prompt_syntax(" ".join(raw.split()))
    return Caption(text, "file", tuple(notes if text else [*notes, "the caption file is empty"]))


def words_of_name(stem: str, *, word_pattern: str = "", join_with: str = " ") -> str:
    """The file name without extension as words: digits and hyphens at its start are dropped."""
    text = NUMBERS_AT_START.sub("", unicodedata.normalize("NFC", stem))
    if word_pattern:
        try:
            text = join_with.join(match.group() for match in re.finditer(word_pattern, text))
        except re.error as error:
            raise DatasetError(f"The pattern for words in file names, {word_pattern!r}, is wrong: {error}.") from error
    return " ".join(text.split())


def _read_sidecar(picture: Path) -> tuple[str, list[str]] | None:
    path = picture.with_suffix(".txt")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DatasetError(
            f"The caption file {path.name} cannot be read: {error.strerror or error}.",
            "Make it readable, or remove it so that the file name is used.",
        ) from error
    return decode_text(data)


def decode_text(data: bytes) -> tuple[str, list[str]]:
    """The text in `data`, and notes: UTF-8 with or without a byte order mark, UTF-16 with one, else Windows 1252."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace"), ["the caption file is UTF-16"]
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace"), ["the caption file is not UTF-8: read as Windows 1252"]


def remove_prompt_syntax(text: str) -> str:
    """`text` without <lora:...> and with (hat:1.2) as hat. Escaped and plain parentheses stay."""
    cleaned = EXTRA_NETWORK.sub("", text)
    while (simpler := WEIGHTED.sub(r"\1", cleaned)) != cleaned:
        cleaned = simpler
    return text if cleaned == text else close_gaps(cleaned)


def close_gaps(text: str) -> str:
    """`text` without the empty places between commas that a removal leaves."""
    return ", ".join(split_tags(" ".join(text.split())))


def split_tags(text: str) -> list[str]:
    """The parts between commas, stripped, without empty ones."""
    return [tag for tag in (part.strip() for part in text.split(",")) if tag]
