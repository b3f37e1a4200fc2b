from __future__ import annotations

import pytest
import torch

from extensions_lib.models.text import batch_chunks, encode_text
from extensions_lib.models.tokenizer import PromptTokenizer

from .conftest import TinyModel


@pytest.fixture(scope="module")
def ids(tokenizer: PromptTokenizer) -> torch.Tensor:
    return batch_chunks([tokenizer.chunks("a red cat"), tokenizer.chunks("dog " * 80)], tokenizer)


def test_shorter_prompts_get_empty_chunks(ids: torch.Tensor, tokenizer: PromptTokenizer) -> None:
    assert ids.shape == (2, 2, 77) and ids.dtype == torch.int64
    assert ids[0, 1].tolist() == tokenizer.empty_chunk()
    assert ids[1, 1, :7].tolist() == [49406, 1929, 1929, 1929, 1929, 1929, 49407]


def test_no_prompts_or_ragged_chunks_are_refused(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(ValueError, match="no prompts"):
        batch_chunks([], tokenizer)
    with pytest.raises(ValueError, match="expected sequence of length"):
        batch_chunks([[[1, 2]], [[1]]], tokenizer)


def test_clip_skip_1_is_the_last_hidden_state(tiny: TinyModel, ids: torch.Tensor) -> None:
    encoder = tiny.parts["text_encoder"]
    encoded = encode_text(encoder, ids)
    assert encoded.shape == (2, 154, 64)
    expected = encoder(input_ids=ids.reshape(4, 77)).last_hidden_state
    assert torch.equal(encoded, expected.reshape(2, 154, 64))
    assert torch.equal(encoded[1, 77:], expected[3])


def test_clip_skip_takes_earlier_states_and_norms_them(tiny: TinyModel, ids: torch.Tensor) -> None:
    encoder = tiny.parts["text_encoder"]
    hidden = encoder(input_ids=ids[:, 0], output_hidden_states=True).hidden_states
    for clip_skip in (1, 2, 4):
        expected = encoder.text_model.final_layer_norm(hidden[-clip_skip])
        assert torch.equal(encode_text(encoder, ids[:, :1], clip_skip), expected)


@pytest.mark.parametrize("clip_skip", [0, 5])
def test_clip_skip_out_of_range(tiny: TinyModel, ids: torch.Tensor, clip_skip: int) -> None:
    with pytest.raises(ValueError, match=f"clip_skip is {clip_skip}; this text encoder accepts 1 to 4"):
        encode_text(tiny.parts["text_encoder"], ids, clip_skip)


@pytest.mark.parametrize("clip_skip", [1, 3])
def test_gradients_reach_what_requires_them(tiny: TinyModel, ids: torch.Tensor, clip_skip: int) -> None:
    encoder = tiny.parts["text_encoder"]
    weight = encoder.text_model.encoder.layers[0].self_attn.q_proj.weight
    assert not encode_text(encoder, ids, clip_skip).requires_grad
    weight.requires_grad_(True)
    try:
        encode_text(encoder, ids, clip_skip).square().sum().backward()
        assert weight.grad.abs().sum() > 0
    finally:
        weight.requires_grad_(False)
        weight.grad = None
