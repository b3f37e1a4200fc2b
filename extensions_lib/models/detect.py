"""What a model file is, from the names and shapes of its tensors alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import ModelError, UnsupportedModelError
from ..formats.keys import PREFIXES
from ..formats.safetensors_io import TensorInfo
from .family import SD1, SD2, SDXL, ModelFamily

Header = Mapping[str, TensorInfo]

_INPUT = PREFIXES["unet"] + "input_blocks.0.0.weight"
_CHANNELS_TRAINED = (4, 9)
_SUPPORTED = (
    "Stable Diffusion 1, 2 and XL checkpoints can be trained, their inpainting and v-prediction variants included."
)
_CHOOSE = "Choose a checkpoint of one of these."
_CHOOSE_BASE = "Choose a checkpoint as the base model, not a file that is added to one."
_CHANNELS = {8: "an instruct-pix2pix checkpoint (8 input channels)", 5: "a depth checkpoint (5 input channels)"}
# The tensor that says which text encoder there is.
_TOKENS = {"clip": "text_model.embeddings.token_embedding.weight", "open_clip": "token_embedding.weight"}


@dataclass(frozen=True)
class Sign:
    """A file is `what` when a tensor's name matches `pattern`; `hint` says what to choose instead."""

    what: str
    pattern: str
    hint: str = _CHOOSE


# In this order: the first that matches names the file.
_SIGNS = (
    Sign(
        "a LoRA or LyCORIS file",
        r"lora_(up|down|mid|A|B)\b|\.hada_w1|\.lokr_w|\boft_(blocks|diag)|^lora_",
        _CHOOSE_BASE,
    ),
    Sign("a ControlNet", r"^control_model\.|input_hint_block\.|controlnet_(cond|down)", _CHOOSE_BASE),
    Sign("a Stable Diffusion 3 checkpoint", r"^(model\.diffusion_model\.)?(x_embedder\.proj|joint_blocks\.)"),
    Sign("a Flux checkpoint", r"^(model\.diffusion_model\.)?double_blocks\."),
    Sign("a Stable Diffusion XL refiner", r"^conditioner\.embedders\.0\.model\.ln_final\."),
    Sign("a checkpoint in the EDM formulation (Playground 2.5, CosXL)", r"^edm_(mean|std|vpred)"),
    Sign("a Stable unCLIP checkpoint", r"^embedder\.model\."),
    Sign("an AltDiffusion checkpoint", r"^cond_stage_model\.(roberta|transformation)"),
    Sign(
        "a single network in diffusers layout",
        r"^(unet\.|vae\.)?(down_blocks|encoder\.down_blocks|decoder\.up_blocks)\.\d+\.",
        "Choose the whole diffusers folder (the one with model_index.json), or a single-file checkpoint.",
    ),
)
_ALONE = (
    Sign(
        "a VAE",
        r"^(first_stage_model\.)?(encoder|decoder)\.(conv_in|mid)\.",
        "Name it as the VAE file, and choose a checkpoint as the base model.",
    ),
    Sign("a text encoder", r"^(cond_stage_model\.transformer\.)?text_model\.(embeddings|encoder)\.", _CHOOSE_BASE),
    Sign("a hypernetwork", r"^(\d+\.)?\d+\.linear|^linear\.\d+\.weight$|^layer_structure$", _CHOOSE_BASE),
)


def detect_family(header: Header, name: str = "This file") -> ModelFamily:
    """The family of a checkpoint, by its text encoder or else its UNet, at any width, with the width of its text.

    `header` is under present-day names. `name` begins the messages. Raises UnsupportedModelError saying what the file
    is when it is something else, ModelError when it is nothing we know. Parts that are missing are not an error here:
    see `check_parts`.
    """
    _refuse(header, name, _SIGNS)
    if _INPUT not in header:
        _refuse(header, name, _ALONE)
        raise _no_unet(header, name)
    channels = header[_INPUT].shape[1]
    if channels not in _CHANNELS_TRAINED:
        raise _unsupported(name, Sign(_CHANNELS.get(channels, f"a checkpoint with {channels} input channels"), ""))
    family = _family(header)
    return replace(family, text_width=_text_width(header, family))


def check_parts(header: Header, name: str, family: ModelFamily, *, needs_vae: bool) -> None:
    """Raises ModelError unless all text encoders and, if needed, the VAE are there; the hint says what to do."""
    if needs_vae and PREFIXES["vae"] + "decoder.conv_in.weight" not in header:
        raise ModelError(
            f"{name} holds no VAE; training needs one to turn pictures into latents.",
            "Name a VAE file, such as vae-ft-mse-840000-ema-pruned.safetensors, or choose another checkpoint.",
        )
    found = [kind.prefix + _TOKENS[kind.layout] in header for kind in family.text_encoders]
    if not all(found):
        lacking = "no text encoder" if not any(found) else "only one of its two text encoders"
        raise ModelError(
            f"{name} holds {lacking}; training needs what reads captions.",
            "Choose a complete checkpoint; a VAE file can be named apart, a text encoder cannot.",
        )


def _family(header: Header) -> ModelFamily:
    """By what only one family has: SDXL's second text encoder or size conditioning, SD 2's text encoder or UNet."""
    second = SDXL.text_encoders[1].prefix
    if any(name.startswith((second, PREFIXES["unet"] + "label_emb.")) for name in header):
        return SDXL
    text = SD2.text_encoders[0].prefix
    projections = (info for name, info in header.items() if name.endswith(".proj_in.weight") and _is_unet(name))
    if any(name.startswith(text) for name in header) or any(len(info.shape) == 2 for info in projections):
        return SD2
    return SD1


def _is_unet(key: str) -> bool:
    return key.startswith(PREFIXES["unet"])


def _text_width(header: Header, family: ModelFamily) -> int:
    """D: what the UNet's cross attention takes in."""
    for key, info in header.items():
        if _is_unet(key) and key.endswith("attn2.to_k.weight"):
            return info.shape[1]
    return family.text_width


def _refuse(header: Header, name: str, signs: tuple[Sign, ...]) -> None:
    for sign in signs:
        if any(re.search(sign.pattern, key) for key in header):
            raise _unsupported(name, sign)


def _unsupported(name: str, sign: Sign) -> UnsupportedModelError:
    return UnsupportedModelError(f"{name} is {sign.what}. {_SUPPORTED}", sign.hint)


def _no_unet(header: Header, name: str) -> ModelError:
    if header and len(header) <= 4 and all(len(info.shape) <= 2 for info in header.values()):
        return _unsupported(name, Sign("an embedding (textual inversion)", "", _CHOOSE_BASE))
    first = ", ".join(list(header)[:3]) or "none"
    return ModelError(f"{name} is no model we know; its first tensors are: {first}. {_SUPPORTED}", _CHOOSE)
