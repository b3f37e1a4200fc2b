"""What each family's text encoders tell the UNet, compared with implementations that are not ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from extensions_lib.formats.checkpoint import read_checkpoint
from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.load import load_bundle
from extensions_lib.models.text import Conditioning, batch_chunks, encode_prompts
from extensions_lib.models.tokenizer import PromptTokenizer

from ..family_pipelines import make_pipeline
from ..model_families import FamilyModels

SHORT, LONG = "a red cat, sitting", "dog " * 80
END = 49407
Load = Callable[[str], ModelBundle]


@pytest.fixture
def load(family_models: FamilyModels, shared_tokenizer: None) -> Load:
    return lambda name: load_bundle(family_models[name])


def encode(bundle: ModelBundle, *prompts: str, clip_skip: int = 1) -> Conditioning:
    ids = batch_chunks([bundle.tokenizer.chunks(prompt) for prompt in prompts], bundle.tokenizer)
    with torch.no_grad():
        return encode_prompts(bundle, ids, clip_skip)


class Block(nn.Module):
    """A layer of OpenCLIP's text transformer, with the names its checkpoints have."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        normed = self.ln_1(states)
        states = states + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return states + self.mlp(self.ln_2(states))


class OpenClip(nn.Module):
    """OpenCLIP's text transformer, written down from its paper and the names in its files."""

    def __init__(self, width: int = 128, num_layers: int = 4, projected: int = 128) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(49408, width)
        self.positional_embedding = nn.Parameter(torch.empty(77, width))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(Block(width, 2) for _ in range(num_layers))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, projected))

    @torch.no_grad()
    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids (B, 77) -> the states before the last layer, and the projected last one at the highest id."""
        mask = torch.full((77, 77), float("-inf")).triu(1)
        states = before = self.token_embedding(ids) + self.positional_embedding
        for block in self.transformer.resblocks:
            before, states = states, block(states, mask)
        ends = self.ln_final(states)[torch.arange(len(ids)), ids.argmax(dim=1)]
        return before, ends @ self.text_projection


def open_clip_of(family_models: FamilyModels, name: str, prefix: str, model: OpenClip) -> OpenClip:
    tensors = read_checkpoint(family_models[name]).tensors
    own = {key.removeprefix(prefix): tensor.float() for key, tensor in tensors.items() if key.startswith(prefix)}
    own.pop("logit_scale", None)
    model.load_state_dict(own)
    return model.eval()


def padded_with_zeros(bundle: ModelBundle, prompt: str, chunk: int = 0) -> Tensor:
    """The ids of one chunk as OpenCLIP's own tokenizer fills them up."""
    ids = bundle.tokenizer.chunks(prompt)[chunk]
    return torch.tensor([ids[: ids.index(END) + 1] + [0] * (76 - ids.index(END))])


def test_sd2_is_told_the_state_before_the_last_layer_normed(load: Load, family_models: FamilyModels) -> None:
    bundle = load("sd2")
    reference = open_clip_of(family_models, "sd2", "cond_stage_model.model.", OpenClip())
    before, _ = reference(padded_with_zeros(bundle, SHORT))
    encoded = encode(bundle, SHORT)
    with torch.no_grad():
        torch.testing.assert_close(encoded.hidden_states, reference.ln_final(before), rtol=1e-4, atol=1e-4)
    assert encoded.pooled is None


def test_sdxl_is_told_both_penultimate_states_and_the_pooled_one(load: Load, family_models: FamilyModels) -> None:
    bundle = load("sdxl")
    second = OpenClip(num_layers=3, projected=96)
    reference = open_clip_of(family_models, "sdxl", "conditioner.embedders.1.model.", second)
    before, pooled = reference(padded_with_zeros(bundle, SHORT))
    encoded = encode(bundle, SHORT)
    assert encoded.hidden_states.shape == (1, 77, 64 + 128)
    torch.testing.assert_close(encoded.hidden_states[..., 64:], before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoded.pooled, pooled, rtol=1e-4, atol=1e-4)


def test_the_pooled_state_of_a_long_prompt_is_the_first_chunks(load: Load, family_models: FamilyModels) -> None:
    bundle = load("sdxl")
    second = OpenClip(num_layers=3, projected=96)
    reference = open_clip_of(family_models, "sdxl", "conditioner.embedders.1.model.", second)
    encoded = encode(bundle, LONG, SHORT)
    for row, prompt in enumerate((LONG, SHORT)):
        _, pooled = reference(padded_with_zeros(bundle, prompt))
        torch.testing.assert_close(encoded.pooled[row : row + 1], pooled, rtol=1e-4, atol=1e-4)
    before, _ = reference(padded_with_zeros(bundle, LONG, chunk=1))
    torch.testing.assert_close(encoded.hidden_states[:1, 77:, 64:], before, rtol=1e-4, atol=1e-4)
    empty, _ = reference(padded_with_zeros(bundle, ""))
    torch.testing.assert_close(encoded.hidden_states[1:, 77:, 64:], empty, rtol=1e-4, atol=1e-4)


def test_transformers_agrees_on_what_it_calls_pooled(load: Load) -> None:
    bundle = load("sdxl")
    ids = padded_with_zeros(bundle, SHORT)
    with torch.no_grad():
        outputs = bundle.text_encoders["text_encoder_2"](ids, output_hidden_states=True)
        first = bundle.text_encoder(torch.tensor(bundle.tokenizer.chunks(SHORT)), output_hidden_states=True)
    encoded = encode(bundle, SHORT)
    torch.testing.assert_close(encoded.pooled, outputs.text_embeds)
    torch.testing.assert_close(encoded.hidden_states[..., 64:], outputs.hidden_states[-2])
    torch.testing.assert_close(encoded.hidden_states[..., :64], first.hidden_states[-2])


def test_placeholders_do_not_disturb_the_pooled_state(load: Load) -> None:
    """Ids above the vocabulary are the highest of all; the pooled state is still the end token's."""
    bundle = load("sdxl")
    table = bundle.text_encoders["text_encoder_2"].text_model.embeddings.token_embedding
    placeholder = bundle.tokenizer.num_vocabulary
    stands_for = bundle.tokenizer.tokenize("cat")[0]
    handles = [
        encoder.text_model.embeddings.token_embedding.register_forward_pre_hook(
            lambda module, inputs: (inputs[0].masked_fill(inputs[0] == placeholder, stands_for),)
        )
        for encoder in bundle.text_encoders.values()
    ]
    try:
        chunks = bundle.tokenizer.chunks("a zbadge here", {"zbadge": [placeholder]})
        assert placeholder in chunks[0] and placeholder >= table.num_embeddings
        with torch.no_grad():
            found = encode_prompts(bundle, batch_chunks([chunks], bundle.tokenizer))
    finally:
        for handle in handles:
            handle.remove()
    expected = encode(bundle, "a cat here")
    assert torch.equal(found.pooled, expected.pooled)
    assert torch.equal(found.hidden_states, expected.hidden_states)


@pytest.mark.parametrize(("name", "changes"), [("sd1", True), ("sd2", False), ("sdxl", False)])
def test_clip_skip_counts_only_where_the_webui_heeds_it(load: Load, name: str, changes: bool) -> None:
    bundle = load(name)
    last, earlier = encode(bundle, SHORT), encode(bundle, SHORT, clip_skip=2)
    assert torch.equal(last.hidden_states, earlier.hidden_states) is not changes


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_gradients_reach_every_encoder(load: Load, name: str) -> None:
    bundle = load(name)
    projections = [encoder.text_model.encoder.layers[0].mlp.fc1.weight for encoder in bundle.text_encoders.values()]
    for weight in projections:
        weight.requires_grad_(True)
    encoded = encode_prompts(bundle, batch_chunks([bundle.tokenizer.chunks(SHORT)], bundle.tokenizer))
    encoded.hidden_states.square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in projections)
    if encoded.pooled is not None:
        layer = bundle.text_encoders["text_encoder_2"].text_model.encoder.layers[-1].mlp.fc1.weight
        layer.requires_grad_(True)
        encode_prompts(bundle, batch_chunks([bundle.tokenizer.chunks(SHORT)], bundle.tokenizer)).pooled.sum().backward()
        assert layer.grad.abs().sum() > 0  # the last layer reaches the UNet through the pooled state alone


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_diffusers_pipelines_encode_alike(load: Load, name: str, tmp_path: Path) -> None:
    bundle = load(name)
    pipeline, encoded = make_pipeline(bundle, tmp_path), encode(bundle, SHORT)
    if name == "sdxl":
        hidden_states, _, pooled, _ = pipeline.encode_prompt(SHORT, device="cpu", do_classifier_free_guidance=False)
        torch.testing.assert_close(encoded.pooled, pooled)
    else:
        hidden_states, _ = pipeline.encode_prompt(SHORT, "cpu", 1, False)
    torch.testing.assert_close(encoded.hidden_states, hidden_states)


def test_a_row_of_zeros(tokenizer: PromptTokenizer) -> None:
    pair = Conditioning(torch.ones(2, 77, 4), torch.ones(2, 3))
    zeroed = pair.zeroed(0)
    assert zeroed.hidden_states.sum(dim=(1, 2)).tolist() == [0, 308]
    assert zeroed.pooled.sum(dim=1).tolist() == [0, 3]
    assert dataclasses.replace(pair, pooled=None).zeroed(1).pooled is None
