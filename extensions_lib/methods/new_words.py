"""New words and their vectors in every text encoder of a model.

Letters: V vectors, D width of a text encoder's table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapters.embedding import extended, initial_rows
from ..errors import FormatError, KeyMismatchError
from ..formats.embedding import ENCODER_KEYS, read_embedding
from ..models.bundle import ModelBundle


@dataclass(frozen=True)
class NewWord:
    """A word and how its `num_vectors` vectors begin: as those of `initializer_text`, or as the file `start_from`."""

    word: str
    num_vectors: int = 1
    initializer_text: str = ""
    start_from: Path | None = None


class NewVectors(nn.Module):
    """The new rows of every text encoder (V, D), float32, the words one after the other.

    `counts` says how many rows each word has, `keys` what a file calls the rows of each text encoder: '' where there
    is one, 'clip_l' and 'clip_g' where there are two.
    """

    def __init__(self, rows: Mapping[str, nn.Parameter], counts: Mapping[str, int]) -> None:
        super().__init__()
        self.rows = nn.ParameterDict(rows)
        self.counts = dict(counts)
        self.keys = encoder_keys(rows)

    def of(self, word: str) -> dict[str, Tensor]:
        """The vectors of a word, as `formats.embedding` has them, on the CPU."""
        before = list(self.counts)[: list(self.counts).index(word)]
        first = sum(self.counts[other] for other in before)
        last = first + self.counts[word]
        return {key: self.rows[name].detach()[first:last].cpu().clone() for name, key in self.keys.items()}

    def tokens(self, num_vocabulary: int) -> dict[str, list[int]]:
        """The ids that stand for each word: those that follow the vocabulary, in order."""
        ids, first = {}, num_vocabulary
        for word, count in self.counts.items():
            ids[word] = list(range(first, first + count))
            first += count
        return ids


def encoder_keys(text_encoders: Mapping[str, object]) -> dict[str, str]:
    """What an embedding file calls the vectors of each text encoder."""
    names = list(text_encoders)
    return dict(zip(names, ENCODER_KEYS, strict=True)) if len(names) > 1 else {names[0]: ""}


def token_table(text_encoder: nn.Module) -> Tensor:
    """The token table (N, D) of a text encoder."""
    return text_encoder.text_model.embeddings.token_embedding.weight


def root_mean_square(table: Tensor) -> float:
    """How large the numbers in a table are on average: sqrt(mean(x^2))."""
    return float(torch.linalg.vector_norm(table, dtype=torch.float32)) / table.numel() ** 0.5


@contextmanager
def with_new_words(bundle: ModelBundle, words: Sequence[NewWord]) -> Iterator[NewVectors]:
    """Within the context every text encoder knows the rows of `words`; afterwards it is as before.

    Raises KeyMismatchError when a file to go on from does not fit the model.
    """
    starts = [start_rows(bundle, word) for word in words]
    with ExitStack() as stack:
        rows = {}
        for name, text_encoder in bundle.text_encoders.items():
            embeddings, joined = text_encoder.text_model.embeddings, torch.cat([start[name] for start in starts])
            rows[name] = stack.enter_context(extended(embeddings, joined)).rows
        counts = {word.word: len(next(iter(start.values()))) for word, start in zip(words, starts, strict=True)}
        yield NewVectors(rows, counts)


def start_rows(bundle: ModelBundle, word: NewWord) -> dict[str, Tensor]:
    """The first values (V, D) of a word's rows, by text encoder. Raises as `with_new_words`."""
    tables = {name: token_table(text_encoder) for name, text_encoder in bundle.text_encoders.items()}
    if word.start_from is not None:
        return _rows_of_file(word.start_from, word.word, tables)
    ids = bundle.tokenizer.tokenize(word.initializer_text) if word.initializer_text else []
    return {name: initial_rows(table, ids, word.num_vectors) for name, table in tables.items()}


def _rows_of_file(path: Path, word: str, tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found, keys = read_embedding(path, word).vectors, encoder_keys(tables)
    shapes = {key: vectors.shape[1] for key, vectors in found.items()}
    needed = {keys[name]: table.shape[1] for name, table in tables.items()}
    if shapes != needed or len({len(vectors) for vectors in found.values()}) != 1:
        widths, fitting = (" and ".join(map(str, sizes.values())) for sizes in (shapes, needed))
        raise KeyMismatchError(
            f"The vectors of {path.name} have width {widths}; this model needs {fitting}.",
            "Choose an embedding made for this kind of model.",
        )
    return {name: found[keys[name]].to(table.device) for name, table in tables.items()}


def check_vectors(path: Path, word: str, expected: Mapping[str, Tensor], *, may_be_zero: bool = False) -> None:
    """Raises FormatError unless the file holds these vectors of `word`, finite and, but for `may_be_zero`, not zero."""
    found = read_embedding(path, word).vectors
    same = found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    if not same:
        shapes = {key or word: tuple(vectors.shape) for key, vectors in found.items()}
        raise FormatError(f"{path.name} read again is not what was trained: {shapes}.", "Save again.")
    for vectors in found.values():
        if not bool(vectors.isfinite().all()) or not (may_be_zero or bool(vectors.any())):
            raise FormatError(
                f"{path.name} holds vectors of {word!r} that are zero or not finite.",
                "Lower the learning rate, and see that captions have the word.",
            )
