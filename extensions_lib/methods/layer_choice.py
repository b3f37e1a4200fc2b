"""Which layers of a base model a LoRA changes, and what they are called in its file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..adapters.attach import select_layers
from ..errors import KeyMismatchError
from ..formats.keys.lora import lora_layer_name
from ..models.bundle import ModelBundle

WEIGHTS = (nn.Linear, nn.Conv2d)
NORMS = (nn.LayerNorm, nn.GroupNorm)
UNET_BLOCKS = ("Transformer2DModel",)
UNET_CONV_BLOCKS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
TEXT_ATTENTION = ("CLIPAttention", "CLIPSdpaAttention")
TEXT_MLP = ("CLIPMLP",)
TEXT_LAYERS = ("CLIPEncoderLayer",)

# Preset -> what must be found in the path of a layer within the UNet's transformers.
PRESETS = {
    "cross-attention": r"\.attn2\.",
    "attention": r"\.attn[12]\.",
    "attention+mlp": r"\.(attn[12]|ff)\.",
    "transformer": "",
    "full": "",
}
ATTENTION_ONLY = ("cross-attention", "attention")
ATTENTION_PARTS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class LayerChoice:
    """What to look for: a preset, whether larger convolutions and norm layers count, and a regular expression."""

    preset: str = "transformer"
    has_convolutions: bool = False
    has_norms: bool = False
    has_text_encoders: bool = False
    pattern: str = ""


@dataclass(frozen=True)
class ChosenLayer:
    """A layer to change. `part` is 'unet', 'text_encoder', ...; `path` its dotted path within it.

    `has_open_clip`: the WebUI runs this text encoder as OpenCLIP, whose attention is one module and whose norm layers
    cannot be named.
    """

    part: str
    path: str
    module: nn.Module
    has_open_clip: bool = False

    @property
    def is_norm(self) -> bool:
        """A norm layer, which has no factors."""
        return isinstance(self.module, NORMS)

    @property
    def is_large(self) -> bool:
        """A convolution of more than one pixel."""
        return any(side > 1 for side in self.module.weight.shape[2:])

    @property
    def has_trainable_bias(self) -> bool:
        """It has a bias that a file can change: in OpenCLIP's attention only the last layer's."""
        in_attention = self.has_open_clip and self.path.endswith(ATTENTION_PARTS[:3])
        return self.module.bias is not None and not in_attention


def choose_layers(bundle: ModelBundle, choice: LayerChoice) -> dict[str, ChosenLayer]:
    """The chosen layers by the name they have in a LoRA file. Raises KeyMismatchError for a wrong expression."""
    layers = [*_unet_layers(bundle, choice)]
    if choice.has_text_encoders:
        for part in bundle.text_encoders:
            layers.extend(_text_layers(bundle, part, choice))
    return {lora_layer_name(layer.path, layer.part, bundle.family.name): layer for layer in layers}


def check_whole_attention(layers: dict[str, ChosenLayer]) -> None:
    """Raises KeyMismatchError where an OpenCLIP attention is changed in part: the WebUI would skip all of it."""
    found: dict[tuple[str, str], set[str]] = {}
    for layer in layers.values():
        if layer.has_open_clip and layer.path.endswith(ATTENTION_PARTS):
            block, _, name = layer.path.rpartition(".")
            found.setdefault((layer.part, block), set()).add(name)
    for (part, block), names in found.items():
        if len(names) < len(ATTENTION_PARTS):
            raise KeyMismatchError(
                f"Of {block} in {part} only {', '.join(sorted(names))} would be trained; the WebUI applies a LoRA to "
                f"this text encoder's attention only when {', '.join(ATTENTION_PARTS)} are all there.",
                "Change layer_filter and block_ranks so that they take all four or none, such as 'self_attn'.",
            )


def is_open_clip(bundle: ModelBundle, part: str) -> bool:
    """Whether the WebUI runs a text encoder as OpenCLIP."""
    kind = bundle.family.text_encoder(part)
    return kind is not None and kind.layout == "open_clip"


def _unet_layers(bundle: ModelBundle, choice: LayerChoice) -> Iterator[ChosenLayer]:
    pattern, unet = choice.pattern, bundle.unet
    inside = select_layers(unet, UNET_BLOCKS, WEIGHTS, pattern)
    wanted = select_layers(unet, UNET_BLOCKS, WEIGHTS, PRESETS[choice.preset])
    found = {path: layer for path, layer in inside.items() if path in wanted}
    blocks = UNET_BLOCKS
    if choice.has_convolutions or choice.preset == "full":
        found |= select_layers(unet, UNET_CONV_BLOCKS, WEIGHTS, pattern)
        blocks += UNET_CONV_BLOCKS
    if choice.has_norms:
        norms = select_layers(unet, blocks, NORMS, pattern)
        found |= {path: norm for path, norm in norms.items() if norm.weight is not None}
    for path, layer in found.items():
        yield ChosenLayer("unet", path, layer)


def _text_layers(bundle: ModelBundle, part: str, choice: LayerChoice) -> Iterator[ChosenLayer]:
    blocks = TEXT_ATTENTION if choice.preset in ATTENTION_ONLY else TEXT_ATTENTION + TEXT_MLP
    encoder, has_open_clip = bundle.text_encoders[part], is_open_clip(bundle, part)
    found = select_layers(encoder, blocks, WEIGHTS, choice.pattern)
    if choice.has_norms and not has_open_clip:
        found |= select_layers(encoder, TEXT_LAYERS, NORMS, choice.pattern)
    for path, layer in found.items():
        yield ChosenLayer(part, path, layer, has_open_clip)
