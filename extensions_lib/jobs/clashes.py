"""Names that would get in each other's way.

The WebUI matches an embedding's name as a sequence of tokens, whatever the case, anywhere in a prompt; it finds a LoRA
or a hypernetwork by the stem of its file, whatever the folder. A checkpoint is chosen from a list instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ..config.artefacts import ARTEFACTS
from ..config.job import TrainJobConfig

SAME_KIND = {
    "checkpoint": "the WebUI lists both, and they are easily mixed up",
}
REACHES_ONE = "prompts will reach only one of the two"
MIXED_UP = "the two are easily mixed up in prompts"

Tokenize = Callable[[str], Sequence[int]]


def name_warnings(
    config: TrainJobConfig, own: Path, results: Mapping[str, Path], beside: Collection[tuple[Path, str]] = ()
) -> list[str]:
    """Files that are called like one of this job: like `own`, its result, or like one of `beside` (path and kind).

    `results`: folders by artefact kind. A checkpoint and a file that prompts call do not meet.
    """
    named = ((own.with_name(f"{config.name}{own.suffix}"), config.method.artefact_kind), *beside)
    mine = {path.absolute() for path in (own, *(path for path, _ in beside))}
    return [warning for path, kind in named if kind for warning in same_names(path.stem, kind, mine, results)]


def same_names(name: str, own_kind: str, mine: Collection[Path], results: Mapping[str, Path]) -> Iterator[str]:
    """A warning for each file called `name` that would be mixed up with a result of this kind; `mine` are left out."""
    for kind, folder in results.items():
        is_same_kind = kind == own_kind
        if not is_same_kind and not (ARTEFACTS[kind].tag and ARTEFACTS[own_kind].tag):
            continue
        for path in result_files(folder, ARTEFACTS[kind].suffixes):
            if path.stem.casefold() != name.casefold() or path.absolute() in mine:
                continue
            what = f"{'another' if is_same_kind else 'an existing'} {ARTEFACTS[kind].word}"
            end = SAME_KIND.get(kind, REACHES_ONE) if is_same_kind else MIXED_UP
            yield f"{name!r} is also the name of {what}, {path.name}: {end}."


def word_warnings(
    config: TrainJobConfig, results: Mapping[str, Path], tokenize: Tokenize, beside: Collection[tuple[Path, str]] = ()
) -> list[str]:
    """What the job's words would do to ordinary prompts, and what existing embeddings would do to the words."""
    folder, mine = results.get("embedding"), {path.absolute() for path, _ in beside}
    paths = result_files(folder, ARTEFACTS["embedding"].suffixes) if folder else ()
    taken = sorted({path.stem for path in paths if path.absolute() not in mine})
    if not config.new_words:
        word = config.trigger_word
        return [_called_too(word, name) for name in taken if contains(tokenize(word), tokenize(name))]
    if ARTEFACTS[config.method.artefact_kind].has_trigger_word:
        pairs = [(word, name) for word in config.new_words for name in taken if tokenize(word) == tokenize(name)]
        return [_hidden_inside(word, name) for word, name in pairs]
    return [
        f"{word!r} is an ordinary word to the model: every prompt with it will call the embedding. "
        "A made-up name such as 'zxcat' is safer."
        for word in config.new_words
        if len(tokenize(word)) == 1
    ]


def _called_too(word: str, name: str) -> str:
    return (
        f"The word {word!r} contains {name!r}, which is an embedding: prompts with the word will call that too. "
        "Choose another trigger word, or rename the embedding."
    )


def _hidden_inside(word: str, name: str) -> str:
    """The WebUI leaves out what a LoRA carries when a file has the name."""
    return (
        f"The word {word!r} is also called by an existing embedding, {name!r}: prompts would take that file, not the "
        "vectors trained here. Choose another word, or rename the embedding."
    )


def contains(ids: Sequence[int], part: Sequence[int]) -> bool:
    """Whether `part`, if not empty, occurs in `ids` without gaps."""
    starts = range(len(ids) - len(part) + 1)
    return bool(part) and any(list(ids[start : start + len(part)]) == list(part) for start in starts)


def result_files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """The files with one of the `suffixes` in a folder of results and below, in the order of their names."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(suffixes):
                yield Path(parent, name)
