"""Names that would get in each other's way in prompts.

The WebUI matches an embedding's name as a sequence of tokens, whatever the case, anywhere in a prompt; it finds a LoRA
by the stem of its file, whatever the folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..config.job import TrainJobConfig

EMBEDDING, LORA = "textual_inversion", "lora"
KIND_NAMES = {EMBEDDING: "embedding", LORA: "LoRA"}
SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")

Tokenize = Callable[[str], Sequence[int]]


def name_warnings(config: TrainJobConfig, own: Path, results: Mapping[str, Path]) -> list[str]:
    """Files that are called like this job's result, but for `own`, that file itself. `results`: folders by kind."""
    warnings = []
    for kind, folder in results.items():
        for path in result_files(folder):
            if path.stem.casefold() != config.name.casefold() or path.absolute() == own.absolute():
                continue
            is_same_kind = kind == config.method.kind
            what = f"{'another' if is_same_kind else 'an existing'} {KIND_NAMES.get(kind, kind)}"
            end = "prompts will reach only one of the two" if is_same_kind else "the two are easily mixed up in prompts"
            warnings.append(f"{config.name!r} is also the name of {what}, {path.name}: {end}.")
    return warnings


def word_warnings(config: TrainJobConfig, results: Mapping[str, Path], tokenize: Tokenize) -> list[str]:
    """What the job's word would do to ordinary prompts, and what existing embeddings would do to the word."""
    if config.method.kind == EMBEDDING:
        if len(tokenize(config.name)) == 1:
            return [
                f"{config.name!r} is an ordinary word to the model: every prompt with it will call the embedding. "
                "A made-up name such as 'zxcat' is safer."
            ]
        return []
    word = config.trigger_word
    taken = [path.stem for path in result_files(results[EMBEDDING])] if EMBEDDING in results else []
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


def result_files(folder: Path) -> Iterator[Path]:
    """The model files in a folder of results and below, in the order of their names."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES):
                yield Path(parent, name)
