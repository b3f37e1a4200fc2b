from __future__ import annotations

from pathlib import Path

import pytest
import torch

from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.load import load_bundle
from extensions_lib.models.text import Conditioning
from extensions_lib.training.conditioning import TextConditioner

LONG = ", ".join(f"word{number}" for number in range(60))


@pytest.fixture(scope="module")
def bundle(practice_model: Path) -> ModelBundle:
    bundle = load_bundle(practice_model)
    bundle.freeze()
    return bundle


def conditioner(bundle: ModelBundle, *, is_frozen: bool, clip_skip: int = 1) -> TextConditioner:
    return TextConditioner(bundle, clip_skip=clip_skip, tokens={}, is_frozen=is_frozen)


def test_cached_states_equal_fresh_ones(bundle: ModelBundle) -> None:
    captions = ["a red circle", LONG, "a red circle"]
    fresh = conditioner(bundle, is_frozen=False)(captions)
    cached = conditioner(bundle, is_frozen=True)(captions)
    assert fresh.hidden_states.shape[0] == 3
    assert fresh.hidden_states.shape[1] > 77
    torch.testing.assert_close(cached.hidden_states, fresh.hidden_states.detach(), rtol=1e-5, atol=1e-6)


def test_a_caption_is_encoded_once(bundle: ModelBundle) -> None:
    calls = []
    handle = bundle.text_encoder.register_forward_hook(lambda *arguments: calls.append(1))
    try:
        encode = conditioner(bundle, is_frozen=True)
        encode(["a", "b", "a"])
        encode(["b", "a"])
    finally:
        handle.remove()
    assert len(calls) == 2


def test_clip_skip_reaches_the_encoder(bundle: ModelBundle) -> None:
    last = conditioner(bundle, is_frozen=True)(["a red circle"])
    earlier = conditioner(bundle, is_frozen=True, clip_skip=2)(["a red circle"])
    assert not torch.equal(last.hidden_states, earlier.hidden_states)


def test_conditionings_are_joined_and_repeated_with_their_pooled_states() -> None:
    one, two = (Conditioning(torch.full((1, 77, 4), value), torch.full((1, 3), value)) for value in (1.0, 2.0))
    joined = Conditioning.joined([one, two])
    assert len(joined) == 2
    twice = joined.repeated(2)
    assert twice.hidden_states[:, 0, 0].tolist() == twice.pooled[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert Conditioning.joined([Conditioning(one.hidden_states)] * 2).pooled is None
    half = joined.to(torch.device("cpu"), torch.bfloat16)
    assert half.hidden_states.dtype == half.pooled.dtype == torch.bfloat16
