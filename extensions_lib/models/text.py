"""Captions as the UNet sees them: the text encoder applied chunk by chunk.

Shape letters: B batch, K chunks of 77 tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from transformers import CLIPTextModel


def batch_chunks(prompts: Sequence[Sequence[Sequence[int]]], tokenizer: PromptTokenizer) -> Tensor:
    """(B, K, 77) int64 from the chunks of B prompts; shorter prompts are filled up with empty chunks.

    Raises ValueError when there are no prompts, or the chunks differ in length.
    """
    if not prompts:
        raise ValueError("there are no prompts to make a batch of")
    num_chunks = max(len(chunks) for chunks in prompts)
    empty = tokenizer.empty_chunk()
    return torch.tensor([[*chunks] + [empty] * (num_chunks - len(chunks)) for chunks in prompts], dtype=torch.int64)


def encode_text(text_encoder: CLIPTextModel, ids: Tensor, clip_skip: int = 1) -> Tensor:
    """ids (B, K, 77) -> encoder_hidden_states (B, 77 K, D); each chunk is encoded by itself.

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
