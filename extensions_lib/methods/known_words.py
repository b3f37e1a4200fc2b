"""Words of finished embeddings in a training: the model knows them, and they stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from ..adapters.embedding import looked_up
from ..config.dataset import KnownEmbedding
from ..models.bundle import ModelBundle
from .base import Trainable
from .new_words import NewWord, start_rows


@contextmanager
def with_known_words(bundle: ModelBundle, trainable: Trainable, embeddings: Sequence[KnownEmbedding]) -> Iterator[None]:
    """Within the context captions and prompts may use the words of `embeddings`, with the base model too.

    Their ids follow those of the trained words. Raises KeyMismatchError when a file does not fit the model; otherwise
    as `formats.embedding.read_embedding`.
    """
    rows = {each.word: start_rows(bundle, NewWord(each.word, start_from=Path(each.path))) for each in embeddings}
    taken = [token for ids in trainable.tokens.values() for token in ids]
    first = following = max([bundle.tokenizer.num_vocabulary - 1, *taken]) + 1
    with ExitStack() as stack:
        for word, vectors in rows.items():
            count = len(next(iter(vectors.values())))
            trainable.known_tokens[word] = list(range(following, following + count))
            following += count
        for name, text_encoder in bundle.text_encoders.items() if rows else ():
            joined = torch.cat([vectors[name] for vectors in rows.values()])
            stack.enter_context(looked_up(text_encoder.text_model.embeddings.token_embedding, joined, first))
        try:
            yield
        finally:
            trainable.known_tokens.clear()
