"""The model that a written result makes of its base, put together without the code that trained it.

Weights are changed for good instead of hooked, new words are rows of a longer table, a checkpoint is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from extensions_lib.formats.keys import lora_layer_name
from extensions_lib.formats.network import LayerChange, read_network
from extensions_lib.formats.safetensors_io import read_tensors
from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.load import load_bundle

BUNDLED = "bundle_emb."
Tokens = dict[str, list[int]]


def model_with(base: Path, result: Path, kind: str, word: str) -> tuple[ModelBundle, Tokens, int]:
    """The model, the ids of new words, and how many modules the file speaks to: trained networks for a checkpoint,
    attentions for a hypernetwork, token tables for an embedding.
    """
    if kind == "checkpoint":
        bundle = load_bundle(result)
        return bundle, {}, len(bundle.parts) - 1  # all but the VAE
    bundle = load_bundle(base)
    if kind == "hypernetwork":
        return bundle, {}, _add_hypernetwork(bundle, result)
    if kind == "embedding":
        return bundle, _add_words(bundle, {word: read_tensors(result)}), len(bundle.text_encoders)
    num_modules = _change_weights(bundle, read_network(result).values())
    return bundle, _add_words(bundle, _bundled_words(result)), num_modules


def _change_weights(bundle: ModelBundle, changes: Iterable[LayerChange]) -> int:
    modules = {
        lora_layer_name(path, part, bundle.family.name): module
        for part in ("unet", *bundle.text_encoders)
        for path, module in bundle.parts[part].named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm))
    }
    num_modules = 0
    for change in changes:
        module = modules[change.name]
        module.weight.data += change.delta(module.weight)
        if (bias := change.bias_delta()) is not None:
            module.bias.data += bias
        num_modules += 1
    return num_modules


def _add_hypernetwork(bundle: ModelBundle, result: Path) -> int:
    """Networks of two layers with a swish between, before keys and values of every attention with inputs as wide."""
    content = torch.load(result, weights_only=True)
    networks = {width: pair for width, pair in content.items() if isinstance(width, int)}
    num_modules = 0
    for attention in bundle.unet.modules():
        if type(attention).__name__ != "Attention" or attention.to_k.in_features not in networks:
            continue
        for layer, state in zip((attention.to_k, attention.to_v), networks[attention.to_k.in_features], strict=True):
            layer.register_forward_pre_hook(_adding(state))
        num_modules += 1
    return num_modules


def _adding(state: dict[str, Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def change(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = functional.linear(inputs[0], state["linear.0.weight"], state["linear.0.bias"])
        hidden = functional.hardswish(hidden)  # what the WebUI calls swish
        return (inputs[0] + functional.linear(hidden, state["linear.2.weight"], state["linear.2.bias"]),)

    return change


def _bundled_words(result: Path) -> dict[str, dict[str, Tensor]]:
    words: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(result).items():
        if key.startswith(BUNDLED):
            word, _, name = key.removeprefix(BUNDLED).partition(".")
            words.setdefault(word, {})[name] = tensor
    return words


def _add_words(bundle: ModelBundle, words: dict[str, dict[str, Tensor]]) -> Tokens:
    """Longer token tables: 'clip_l' and 'clip_g' for two text encoders, otherwise the only tensor there is."""
    tokens: Tokens = {}
    for word, vectors in words.items():
        for name, encoder in zip(("clip_l", "clip_g"), bundle.text_encoders.values(), strict=False):
            embeddings = encoder.text_model.embeddings
            table = embeddings.token_embedding.weight
            (rows,) = vectors.values() if len(bundle.text_encoders) == 1 else (vectors[name],)
            embeddings.token_embedding = nn.Embedding.from_pretrained(torch.cat([table, rows]))
            tokens[word] = list(range(len(table), len(table) + len(rows)))
    return tokens
