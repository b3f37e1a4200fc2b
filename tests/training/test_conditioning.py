from __future__ import annotations

from pathlib import Path

import pytest
import torch

from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.load import load_bundle
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
    assert fresh.shape[0] == 3
    assert fresh.shape[1] > 77
    torch.testing.assert_close(cached, fresh.detach(), rtol=1e-5, atol=1e-6)


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
    assert not torch.equal(last, earlier)
