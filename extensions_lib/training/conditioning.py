"""Captions to the text states that the UNet sees.

Letters: B captions, K chunks of 77 tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

import torch

from ..models.bundle import ModelBundle
from ..models.text import Conditioning, batch_chunks, encode_prompts
from ..models.tokenizer import PromptTokenizer


class TextConditioner:
    """Encodes captions as the WebUI encodes prompts: host chunks, clip skip, placeholders as runs of new vectors.

    With `is_frozen` each caption is encoded once and its state kept; otherwise gradients flow.
    """

    def __init__(
        self, bundle: ModelBundle, *, clip_skip: int, tokens: Mapping[str, Sequence[int]], is_frozen: bool
    ) -> None:
        self._bundle = bundle
        self._clip_skip = clip_skip
        self._tokens = tokens
        self._is_frozen = is_frozen
        self._kept: dict[tuple[str, int], Conditioning] = {}

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """States (B, 77 * K, D) with K that of the longest caption, and the pooled states."""
        chunks = [self._bundle.tokenizer.chunks(caption, self._tokens) for caption in captions]
        if not self._is_frozen:
            return self._encode(chunks)
        num_chunks = max(len(chunk) for chunk in chunks)
        for caption, chunk in zip(captions, chunks, strict=True):
            if (caption, num_chunks) not in self._kept:
                padded = chunk + self._bundle.tokenizer.chunks("", {}) * (num_chunks - len(chunk))
                self._kept[caption, num_chunks] = self._encode([padded])
        return Conditioning.joined([self._kept[caption, num_chunks] for caption in captions])

    def _encode(self, chunks: Sequence[list[list[int]]]) -> Conditioning:
        ids = batch_chunks(chunks, self._bundle.tokenizer)
        with torch.no_grad() if self._is_frozen else nullcontext():
            return encode_prompts(self._bundle, ids, self._clip_skip)


def unseen_words(captions: Iterable[str], tokenizer: PromptTokenizer, tokens: Mapping[str, Sequence[int]]) -> list[str]:
    """Those of the words `tokens` that stand in none of `captions`, so that nothing teaches them."""
    seen = {token for caption in captions for chunk in tokenizer.chunks(caption, tokens) for token in chunk}
    return [word for word, ids in tokens.items() if seen.isdisjoint(ids)]
