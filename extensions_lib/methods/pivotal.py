"""Pivotal tuning: new vectors and a LoRA in one run. Source: Roich et al. 2021, "Pivotal Tuning for Latent-based
Editing of Real Images"; as a LoRA with an embedding: cloneofsimo/lora, OneTrainer's additional embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..formats.embedding import bundled_names, bundled_tensors
from ..formats.metadata import ArtefactInfo, with_hash
from ..formats.safetensors_io import data_hash
from ..models.bundle import ModelBundle
from .base import Exported, Trainable, TrainMethod, Verified
from .lora import Lora
from .new_words import check_vectors
from .textual_inversion import TextualInversion, vectors_of


@dataclass(kw_only=True)
class _Both(Trainable):
    """The vectors and the LoRA as one; each method finds its own part again."""

    vectors: Trainable
    network: Trainable


@dataclass(frozen=True)
class Pivotal(TrainMethod):
    """`lora` and `embedding` together, going on from the LoRA file `start_from` and the words inside it.

    `embedding_files`: 'bundled' writes the words into the LoRA file, 'beside' as files of their own, 'both' both.
    """

    lora: Lora
    embedding: TextualInversion
    start_from: Path | None = None
    embedding_files: str = "bundled"

    kind = "pivotal"
    artefact_kind = "lora"

    @contextmanager
    def attach(self, bundle: ModelBundle, placeholder: str, generator: torch.Generator) -> Iterator[Trainable]:
        """Put the rows under the token tables and the adapters onto the layers."""
        lora, embedding = self._started()
        with (
            embedding.attach(bundle, placeholder, generator) as vectors,
            lora.attach(bundle, placeholder, generator) as network,
        ):
            yield _Both(
                module=nn.ModuleDict({"vectors": vectors.module, "network": network.module}),
                groups=(*network.groups, *vectors.groups),
                trains_text_encoder=True,
                tokens=vectors.tokens,
                constraints=(*network.constraints, *vectors.constraints),
                vectors=vectors,
                network=network,
            )

    def count_parameters(self, bundle: ModelBundle) -> int:
        """The LoRA's and the vectors'."""
        return sum(method.count_parameters(bundle) for method in self._started())

    def _started(self) -> tuple[Lora, TextualInversion]:
        """Both methods with the files they go on from; vectors that have none take those inside the LoRA file."""
        if self.start_from is None:
            return self.lora, self.embedding
        lora, embedding = replace(self.lora, start_from=self.start_from), self.embedding
        inside = set(bundled_names(self.start_from))
        further = tuple(
            replace(word, start_from=self.start_from) if word.word in inside and word.start_from is None else word
            for word in embedding.further
        )
        has_first = bool(inside - {word.word for word in further})
        first = embedding.start_from or (self.start_from if has_first else None)
        return lora, replace(embedding, further=further, start_from=first)

    def export(self, trainable: Trainable, info: ArtefactInfo) -> Exported:
        """The LoRA file, with the words in it, or beside it."""
        assert isinstance(trainable, _Both)
        written, vectors = self.lora.export(trainable.network, info), vectors_of(trainable.vectors)
        tensors = dict(written.tensors)
        if self.embedding_files != "beside":
            for word, its_vectors in vectors.items():
                tensors |= bundled_tensors(word, its_vectors)
        beside = () if self.embedding_files == "bundled" else self.embedding.files_beside(vectors, info)
        return Exported(tensors, with_hash(written.metadata, data_hash(tensors)), beside=(*written.beside, *beside))

    def names_beside(self, output_name: str, placeholder: str) -> tuple[tuple[str, str], ...]:
        """The files of the words, unless they are inside the LoRA file only."""
        if self.embedding_files == "bundled":
            return ()
        first = (f"{placeholder}{self.embedding.file_suffix}", self.embedding.artefact_kind)
        return (first, *self.embedding.names_beside(output_name, placeholder))

    def verify(self, path: Path, trainable: Trainable, bundle: ModelBundle) -> Verified:
        """The file holds both, each by its own method's rules."""
        assert isinstance(trainable, _Both)
        verified = self.lora.verify(path, trainable.network, bundle)
        if self.embedding_files != "beside":
            for word, vectors in vectors_of(trainable.vectors).items():
                check_vectors(path, word, vectors, may_be_zero=True)
        return verified
