"""Textual inversion: a few new vectors, called by a word. Source: Gal et al. 2022, "An Image is Worth One Word"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..adapters.embedding import cap_row_norms, extended, initial_rows
from ..errors import FormatError, KeyMismatchError
from ..formats.embedding import embedding_tensors, pt_embedding_bytes, read_embedding
from ..formats.metadata import ArtefactInfo, embedding_metadata
from ..formats.safetensors_io import data_hash
from ..models.bundle import ModelBundle
from .base import Exported, ParamGroup, Trainable, TrainMethod, Verified


@dataclass(frozen=True)
class TextualInversion(TrainMethod):
    """`vectors_per_token` vectors that start as those of `initializer_text`, or as the file `start_from`.

    `max_norm_ratio` caps their length in units of the median length of the model's own vectors; 0 is no cap.
    """

    vectors_per_token: int = 1
    initializer_text: str = ""
    start_from: Path | None = None
    max_norm_ratio: float = 0.0
    file_format: str = "safetensors"

    kind = "textual_inversion"
    artefact_kind = "embedding"

    @contextmanager
    def attach(self, bundle: ModelBundle, placeholder: str, generator: torch.Generator) -> Iterator[Trainable]:
        """Put the new rows under the token table."""
        embeddings = bundle.text_encoder.text_model.embeddings
        table = embeddings.token_embedding.weight
        rows = self._start_rows(bundle, table)
        limit = self.max_norm_ratio * float(table.float().norm(dim=1).median())
        with extended(embeddings, rows) as extension:
            first = bundle.tokenizer.num_vocabulary
            yield Trainable(
                module=_RowsOnly(extension.rows),
                groups=(ParamGroup("embedding", (extension.rows,)),),
                trains_text_encoder=True,
                tokens={placeholder: list(range(first, first + len(rows)))},
                constraints=(partial(cap_row_norms, extension.rows, limit),) if limit else (),
            )

    def count_parameters(self, bundle: ModelBundle) -> int:
        """V x D."""
        table = bundle.text_encoder.text_model.embeddings.token_embedding.weight
        return self._start_rows(bundle, table).numel()

    def _start_rows(self, bundle: ModelBundle, table: Tensor) -> Tensor:
        if self.start_from is None:
            ids = bundle.tokenizer.tokenize(self.initializer_text) if self.initializer_text else []
            return initial_rows(table, ids, self.vectors_per_token)
        found = read_embedding(self.start_from).vectors
        vectors = next(iter(found.values()))
        if len(found) != 1 or vectors.shape[1] != table.shape[1]:
            widths = ", ".join(str(tensor.shape[1]) for tensor in found.values())
            raise KeyMismatchError(
                f"The vectors of {self.start_from.name} have width {widths}; this model needs {table.shape[1]}.",
                "Choose an embedding made for this kind of model.",
            )
        return vectors.to(table.device)

    def export(self, trainable: Trainable, info: ArtefactInfo) -> Exported:
        """One tensor (V, D), float32, under the name of the result."""
        rows = trainable.groups[0].parameters[0].detach().cpu()
        tensors = embedding_tensors(info.output_name, rows)
        payload = None
        if self.file_format == "pt":
            payload = pt_embedding_bytes(
                info.output_name,
                rows,
                info.steps or 0,
                (info.base_model_sha256 or "")[:10] or None,
                info.base_model_name,
            )
        return Exported(tensors, embedding_metadata(info, data_hash(tensors)), payload)

    def verify(self, path: Path, trainable: Trainable, bundle: ModelBundle) -> Verified:
        """The file holds the trained vectors, finite and not all zero."""
        vectors = next(iter(read_embedding(path).vectors.values()))
        trained = trainable.groups[0].parameters[0].detach().cpu()
        if vectors.shape != trained.shape or not torch.equal(vectors, trained):
            raise FormatError(
                f"{path.name} read again is not what was trained: shape {tuple(vectors.shape)}.", "Save again."
            )
        if not bool(vectors.isfinite().all()) or not bool(vectors.any()):
            raise FormatError(f"{path.name} holds vectors that are zero or not finite.", "Lower the learning rate.")
        return Verified(num_modules=1)

    @property
    def file_suffix(self) -> str:
        """.safetensors, or .pt for the WebUI's own trainer."""
        return f".{self.file_format}"


class _RowsOnly(torch.nn.Module):
    """Owns the new rows, and not the table above them."""

    def __init__(self, rows: torch.nn.Parameter) -> None:
        super().__init__()
        self.rows = rows
