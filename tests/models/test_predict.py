from __future__ import annotations

import torch

from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.predict import predict
from extensions_lib.models.text import Conditioning

from .conftest import TinyModel

SIZES = torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)
LATENTS = torch.linspace(-1, 1, 2 * 4 * 8 * 8).reshape(2, 4, 8, 8)
STATES = Conditioning(torch.linspace(-1, 1, 2 * 77 * 64).reshape(2, 77, 64))


@torch.no_grad()
def test_the_answer_is_the_unets(tiny_bundle: ModelBundle, tiny: TinyModel) -> None:
    times = torch.tensor([3, 900])
    expected = tiny.parts["unet"](LATENTS, times, STATES.hidden_states).sample
    assert torch.equal(predict(tiny_bundle, LATENTS, times, STATES, SIZES), expected)


@torch.no_grad()
def test_the_unet_gets_its_own_dtype(tiny_bundle: ModelBundle) -> None:
    seen: list[torch.dtype] = []
    tiny_bundle.to(unet=torch.bfloat16)
    handle = tiny_bundle.unet.register_forward_pre_hook(
        lambda module, inputs: seen.extend((inputs[0].dtype, inputs[2].dtype))
    )
    try:
        answer = predict(tiny_bundle, LATENTS, torch.tensor(500), STATES, SIZES)
    finally:
        handle.remove()
    assert seen == [torch.bfloat16] * 2
    assert answer.dtype == torch.bfloat16
