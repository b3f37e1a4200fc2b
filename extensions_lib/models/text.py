"""Captions as the UNet sees them: the text encoders applied chunk by chunk.

Shape letters: B batch, K chunks of 77 tokens, D text width, P width of the pooled state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from transformers import CLIPTextModel

    from .bundle import ModelBundle


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told of B prompts: `hidden_states` (B, 77 K, D), and `pooled` (B, P) where the family has it."""

    hidden_states: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden_states)

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditioning:
        """The same on `device` in `dtype`."""
        return Conditioning(
            self.hidden_states.to(device, dtype), None if self.pooled is None else self.pooled.to(device, dtype)
        )

    def repeated(self, count: int) -> Conditioning:
        """Every prompt `count` times in a row: (count B, ...)."""
        pooled = None if self.pooled is None else self.pooled.repeat_interleave(count, dim=0)
        return Conditioning(self.hidden_states.repeat_interleave(count, dim=0), pooled)

    def zeroed(self, row: int) -> Conditioning:
        """The same with nothing but zeros for one prompt."""
        keep = torch.ones(len(self), dtype=torch.bool, device=self.hidden_states.device)
        keep[row] = False
        pooled = None if self.pooled is None else self.pooled * keep[:, None]
        return Conditioning(self.hidden_states * keep[:, None, None], pooled)

    @classmethod
    def joined(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """The prompts of all `parts`, which have as many chunks, in order."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(torch.cat([part.hidden_states for part in parts]), torch.cat(pooled) if pooled else None)


def batch_chunks(prompts: Sequence[Sequence[Sequence[int]]], tokenizer: PromptTokenizer) -> Tensor:
    """(B, K, 77) int64 from the chunks of B prompts; shorter prompts are filled up with empty chunks.

    Raises ValueError when there are no prompts, or the chunks differ in length.
    """
    if not prompts:
        raise ValueError("there are no prompts to make a batch of")
    num_chunks = max(len(chunks) for chunks in prompts)
    empty = tokenizer.empty_chunk()
    return torch.tensor([[*chunks] + [empty] * (num_chunks - len(chunks)) for chunks in prompts], dtype=torch.int64)


def encode_prompts(bundle: ModelBundle, chunk_ids: Tensor, clip_skip: int = 1) -> Conditioning:
    """`chunk_ids` (B, K, 77) int64, from `batch_chunks`, as the family's text encoders read them, for training and
    previews alike. On the encoders' device, in their dtype; gradients flow to whatever requires them.

    As AUTOMATIC1111 1.10.1 does it: each chunk is encoded by itself, the encoders' states lie side by side, the pooled
    state is the first chunk's. `clip_skip` is as in `encode_text`, and ignored by families that do not obey it.
    Raises ValueError for a clip skip that an obeying text encoder does not have.
    """
    states, pooled = [], None
    for kind in bundle.family.text_encoders:
        encoder = bundle.text_encoders[kind.part]
        ids = chunk_ids.to(encoder.device)
        if kind.pad_id is not None:
            ids = _padded(ids, bundle.tokenizer.end_id, kind.pad_id)
        if kind.state == "normed":
            states.append(encode_text(encoder, ids, clip_skip if kind.obeys_clip_skip else 1))
        else:
            hidden, last = _penultimate(encoder, ids)
            states.append(hidden)
            if kind.has_pooled:
                pooled = _pooled(encoder, last, ids[:, 0], bundle.tokenizer.end_id)
    return Conditioning(torch.cat(states, dim=-1), pooled)


def encode_text(text_encoder: CLIPTextModel, ids: Tensor, clip_skip: int = 1) -> Tensor:
    """ids (B, K, 77) -> states (B, 77 K, D); each chunk is encoded by itself.

    `clip_skip` n takes the n-th hidden state from the end (1 to the number of layers), then the final layer norm, as
    the WebUI does; 1 is the encoder's ordinary output. Gradients flow to whatever requires them. Raises ValueError for
    another n.
    """
    num_layers = text_encoder.config.num_hidden_layers
    if not 1 <= clip_skip <= num_layers:
        raise ValueError(f"clip_skip is {clip_skip}; this text encoder accepts 1 to {num_layers}")
    batch, num_chunks, length = ids.shape
    outputs = text_encoder(input_ids=ids.reshape(batch * num_chunks, length), output_hidden_states=clip_skip > 1)
    if clip_skip == 1:
        hidden = outputs.last_hidden_state
    else:
        hidden = text_encoder.text_model.final_layer_norm(outputs.hidden_states[-clip_skip])
    return hidden.reshape(batch, num_chunks * length, -1)


def _penultimate(text_encoder: CLIPTextModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The states before the last layer, without layer norm, (B, 77 K, D); and the last, with it, (B, K, 77, D)."""
    batch, num_chunks, length = ids.shape
    outputs = text_encoder(input_ids=ids.reshape(batch * num_chunks, length), output_hidden_states=True)
    hidden = outputs.hidden_states[-2].reshape(batch, num_chunks * length, -1)
    return hidden, outputs.last_hidden_state.reshape(batch, num_chunks, length, -1)


def _pooled(text_encoder: CLIPTextModel, last: Tensor, ids: Tensor, end_id: int) -> Tensor:
    """(B, P): the last state (B, K, 77, D) of the first chunk, `ids` (B, 77), at its first end token, projected.

    The place of the highest id, which the libraries look for, would be that of a placeholder.
    """
    rows = torch.arange(len(ids), device=ids.device)
    return text_encoder.text_projection(last[rows, 0, _first_end(ids, end_id)])


def _padded(ids: Tensor, end_id: int, pad_id: int) -> Tensor:
    """`ids` (..., 77) with `pad_id` behind each chunk's first end token."""
    places = torch.arange(ids.shape[-1], device=ids.device)
    return ids.masked_fill(places > _first_end(ids, end_id)[..., None], pad_id)


def _first_end(ids: Tensor, end_id: int) -> Tensor:
    """(...,) the place of the first end token in chunks (..., 77)."""
    return (ids == end_id).int().argmax(dim=-1)
