"""Names that would get in each other's way.

The WebUI matches an embedding's name as a sequence of tokens, whatever the case, anywhere in a prompt; it finds a LoRA
or a hypernetwork by the stem of its file, whatever the folder. A checkpoint is chosen from a list instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..config.artefacts import ARTEFACTS
from ..config.job import TrainJobConfig

SAME_KIND = {
    "checkpoint": "the WebUI lists both, and they are easily mixed up",
}
REACHES_ONE = "prompts will reach only one of the two"
MIXED_UP = "the two are easily mixed up in prompts"

Tokenize = Callable[[str], Sequence[int]]


def name_warnings(config: TrainJobConfig, own: Path, results: Mapping[str, Path]) -> list[str]:
    """Files that are called like this job's result, but for `own`, that file itself.

    `results`: folders by artefact kind. A checkpoint and a file that prompts call do not meet.
    """
    warnings, own_kind = [], config.method.artefact_kind
    for kind, folder in results.items():
        is_same_kind = kind == own_kind
        if not is_same_kind and not (ARTEFACTS[kind].tag and ARTEFACTS[own_kind].tag):
            continue
        for path in result_files(folder, ARTEFACTS[kind].suffixes):
            if path.stem.casefold() != config.name.casefold() or path.absolute() == own.absolute():
                continue
            what = f"{'another' if is_same_kind else 'an existing'} {ARTEFACTS[kind].word}"
            end = SAME_KIND.get(kind, REACHES_ONE) if is_same_kind else MIXED_UP
            warnings.append(f"{config.name!r} is also the name of {what}, {path.name}: {end}.")
    return warnings


def word_warnings(config: TrainJobConfig, results: Mapping[str, Path], tokenize: Tokenize) -> list[str]:
    """What the job's word would do to ordinary prompts, and what existing embeddings would do to the word."""
    if not ARTEFACTS[config.method.artefact_kind].has_trigger_word:
        if len(tokenize(config.name)) == 1:
            return [
                f"{config.name!r} is an ordinary word to the model: every prompt with it will call the embedding. "
                "A made-up name such as 'zxcat' is safer."
            ]
        return []
    word, folder = config.trigger_word, results.get("embedding")
    taken = [path.stem for path in result_files(folder, ARTEFACTS["embedding"].suffixes)] if folder else []
    return [
        f"The word {word!r} contains {name!r}, which is an embedding: prompts with the word will call that too. "
        "Choose another trigger word, or rename the embedding."
        for name in sorted(set(taken))
        if contains(tokenize(word), tokenize(name))
    ]


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
