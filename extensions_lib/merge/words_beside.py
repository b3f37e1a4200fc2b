"""The words bundled with a LoRA as embeddings of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import MergeError
from ..formats.embedding import file_tensors
from ..formats.metadata import ArtefactInfo, embedding_metadata
from ..formats.safetensors_io import data_hash, write_atomic
from ..formats.suffixes import BUNDLED_EMBEDDING
from .lora_files import LoraFile

_SINGLE = "string_to_param."


def word_files(given: LoraFile, folder: str) -> dict[Path, dict[str, Tensor]]:
    """The tensors of each embedding by the path of its file. Raises MergeError for words in another form."""
    vectors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in given.words.items():
        word, _, key = name.removeprefix(BUNDLED_EMBEDDING).partition(".")
        vectors.setdefault(word, {})["" if key.startswith(_SINGLE) else key] = tensor
    try:
        return {Path(folder) / f"{word}.safetensors": file_tensors(word, each) for word, each in vectors.items()}
    except ValueError as error:
        raise MergeError(
            f"{given.path.name} holds words in a form that no embedding file has: {error}.", "Drop them."
        ) from error


def write_words(files: Mapping[Path, dict[str, Tensor]], family: str, *, overwrite: bool) -> tuple[Path, ...]:
    """Write the embeddings; each is complete under its name, or not there. Raises as `write_atomic`."""
    for path, tensors in files.items():
        count = len(next(iter(tensors.values())))
        metadata = embedding_metadata(
            ArtefactInfo(output_name=path.stem, family=family, num_vectors=count), data_hash(tensors)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, tensors, metadata, overwrite=overwrite)
    return tuple(files)
