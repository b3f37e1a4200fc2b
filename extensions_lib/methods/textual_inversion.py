"""Textual inversion: a few new vectors, called by a word. Source: Gal et al. 2022, "An Image is Worth One Word"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..adapters.embedding import cap_row_norms
from ..errors import ConfigError, Problem
from ..formats.embedding import bundled_names, file_tensors, pt_embedding_bytes
from ..formats.metadata import ArtefactInfo, embedding_metadata
from ..formats.safetensors_io import data_hash
from ..models.bundle import ModelBundle
from .base import Exported, ExportedFile, ParamGroup, Trainable, TrainMethod, Verified
from .new_words import NewVectors, NewWord, check_vectors, root_mean_square, start_rows, token_table, with_new_words


@dataclass(frozen=True)
class TextualInversion(TrainMethod):
    """`vectors_per_token` vectors that start as those of `initializer_text`, or as the file `start_from`.

    `further` are words of the same run with vectors and files of their own. The rate of the vectors is
    `relative_learning_rate` times the root mean square of each encoder's table; 0: `learning_rate`; None: the
    optimizer's. `max_norm_ratio` caps their length in units of the median length of the model's own vectors; 0 is no
    cap. `train_share` (0 to 1) is how much of the run they are trained.
    """

    vectors_per_token: int = 1
    initializer_text: str = ""
    start_from: Path | None = None
    max_norm_ratio: float = 0.0
    file_format: str = "safetensors"
    further: tuple[NewWord, ...] = ()
    relative_learning_rate: float = 0.0
    learning_rate: float | None = None
    train_share: float = 1.0
    is_negative: bool = False

    kind = "textual_inversion"
    artefact_kind = "embedding"

    @contextmanager
    def attach(self, bundle: ModelBundle, placeholder: str, generator: torch.Generator) -> Iterator[Trainable]:
        """Put the new rows under the token table of every text encoder."""
        self._check_format(bundle)
        tables = {name: token_table(text_encoder) for name, text_encoder in bundle.text_encoders.items()}
        with with_new_words(bundle, self.words(placeholder)) as vectors:
            yield Trainable(
                module=vectors,
                groups=tuple(self._group(name, vectors, table) for name, table in tables.items()),
                trains_text_encoder=True,
                tokens=vectors.tokens(bundle.tokenizer.num_vocabulary),
                constraints=tuple(self._caps(vectors, tables)),
            )

    def words(self, placeholder: str) -> tuple[NewWord, ...]:
        """All words of the run; `placeholder` is the first."""
        first = NewWord(placeholder, self.vectors_per_token, self.initializer_text, self.start_from)
        return (first, *self.further)

    def _group(self, name: str, vectors: NewVectors, table: Tensor) -> ParamGroup:
        rate = self.relative_learning_rate * root_mean_square(table) if self.relative_learning_rate else None
        return ParamGroup(
            name.replace("text_encoder", "embedding"),
            (vectors.rows[name],),
            self.learning_rate if rate is None else rate,
            self.train_share,
        )

    def _caps(self, vectors: NewVectors, tables: Mapping[str, Tensor]) -> Iterator[partial[None]]:
        if self.max_norm_ratio:
            for name, table in tables.items():
                limit = self.max_norm_ratio * float(table.float().norm(dim=1).median())
                yield partial(cap_row_norms, vectors.rows[name], limit)

    def count_parameters(self, bundle: ModelBundle) -> int:
        """The V x D of all words and text encoders."""
        self._check_format(bundle)
        inside = bundled_names(self.start_from) if self.start_from is not None else ()
        first = next((name for name in inside if name not in {word.word for word in self.further}), "")
        return sum(rows.numel() for word in self.words(first) for rows in start_rows(bundle, word).values())

    def _check_format(self, bundle: ModelBundle) -> None:
        if self.file_format != "safetensors" and len(bundle.text_encoders) > 1:
            problem = f"is {self.file_format!r}, which has no room for the vectors of two text encoders"
            raise ConfigError([Problem("output.file_format", problem)], "Choose safetensors.")

    def export(self, trainable: Trainable, info: ArtefactInfo) -> Exported:
        """The vectors of the first word under the name of the result, those of the others beside it."""
        first, *others = vectors_of(trainable).items()
        tensors, metadata, payload = self._content(first[1], info)
        return Exported(tensors, metadata, payload, self.files_beside(dict(others), info))

    def files_beside(self, vectors: Mapping[str, Mapping[str, Tensor]], info: ArtefactInfo) -> tuple[ExportedFile, ...]:
        """A file for each word of `vectors`; its name ends as that of the result, which carries the step."""
        ending = info.output_name.removeprefix(info.title or info.output_name)
        files = []
        for word, its_vectors in vectors.items():
            own = replace(info, output_name=f"{word}{ending}", title=word, trigger_word=word)
            tensors, metadata, payload = self._content(its_vectors, own)
            # A word that no caption has may still be zero; it was warned of, and the others are worth keeping.
            check = partial(check_vectors, word=word, expected=its_vectors, may_be_zero=True)
            name = f"{own.output_name}{self.file_suffix}"
            files.append(ExportedFile(name, "embedding", tensors, metadata, payload, check))
        return tuple(files)

    def _content(
        self, vectors: Mapping[str, Tensor], info: ArtefactInfo
    ) -> tuple[dict[str, Tensor], dict[str, str], bytes | None]:
        """Tensors and metadata of a word's file, or its bytes where the WebUI's own trainer is to go on with it."""
        tensors = file_tensors(info.output_name, vectors)
        num_vectors = len(next(iter(vectors.values())))
        own = replace(info, num_vectors=num_vectors, is_negative_embedding=self.is_negative)
        payload = None
        if self.file_format == "pt":
            payload = pt_embedding_bytes(
                info.output_name,
                vectors[""],
                info.steps or 0,
                (info.base_model_sha256 or "")[:10] or None,
                info.base_model_name,
            )
        return tensors, embedding_metadata(own, data_hash(tensors)), payload

    def names_beside(self, output_name: str, placeholder: str) -> tuple[tuple[str, str], ...]:
        """The files of the further words."""
        return tuple((f"{word.word}{self.file_suffix}", self.artefact_kind) for word in self.further)

    def verify(self, path: Path, trainable: Trainable, bundle: ModelBundle) -> Verified:
        """The file holds the trained vectors, finite and not all zero."""
        word, vectors = next(iter(vectors_of(trainable).items()))
        check_vectors(path, word, vectors)
        return Verified(num_modules=len(vectors))

    @property
    def file_suffix(self) -> str:
        """.safetensors, or .pt for the WebUI's own trainer."""
        return f".{self.file_format}"


def vectors_of(trainable: Trainable) -> dict[str, dict[str, Tensor]]:
    """The trained vectors of every word, as files hold them, the first word first."""
    vectors = trainable.module
    assert isinstance(vectors, NewVectors)
    return {word: vectors.of(word) for word in vectors.counts}
