"""What a model file is, from the names and shapes of its tensors alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import ModelError, UnsupportedModelError
from ..formats.keys import PREFIXES
from ..formats.safetensors_io import TensorInfo
from .bundle import SD1, ModelFamily

Header = Mapping[str, TensorInfo]

_INPUT = PREFIXES["unet"] + "input_blocks.0.0.weight"
_TOKENS = PREFIXES["text"] + "text_model.embeddings.token_embedding.weight"
_SD1_CHANNELS = 4
_SUPPORTED = "Only Stable Diffusion 1 checkpoints can be trained."
_CHOOSE_SD1 = "Choose a Stable Diffusion 1 checkpoint."
_CHOOSE_BASE = "Choose a checkpoint as the base model, not a file that is added to one."
_CHANNELS = {
    9: "an inpainting checkpoint (9 input channels)",
    8: "an instruct-pix2pix checkpoint (8 input channels)",
    5: "a depth checkpoint (5 input channels)",
}


@dataclass(frozen=True)
class Sign:
    """A file is `what` when a tensor's name matches `pattern`; `hint` says what to choose instead."""

    what: str
    pattern: str
    hint: str = _CHOOSE_SD1


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
    Sign("a Stable Diffusion XL checkpoint", r"^conditioner\.embedders\.1\."),
    Sign("a Stable Diffusion XL refiner", r"^conditioner\.embedders\.0\.model\.ln_final\."),
    Sign("a Stable Diffusion XL checkpoint", r"^conditioner\.embedders\.0\.|^model\.diffusion_model\.label_emb\."),
    Sign("a Stable unCLIP checkpoint", r"^embedder\.model\."),
    Sign("a Stable Diffusion 2 checkpoint", r"^cond_stage_model\.model\."),
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
    """The family of a checkpoint whose UNet and, if present, text encoder are Stable Diffusion 1's, at any width.

    `name` begins the messages. Raises UnsupportedModelError saying what the file is when it is something else,
    ModelError when it is nothing we know. Parts that are missing are not an error here: see `check_parts`.
    """
    turbo = header.get("conditioner.embedders.0.model.ln_final.weight")
    if turbo is not None and turbo.shape == (1024,):
        raise _unsupported(name, Sign("a Stable Diffusion 2 checkpoint", ""))
    _refuse(header, name, _SIGNS)
    if _INPUT not in header:
        _refuse(header, name, _ALONE)
        raise _no_unet(header, name)
    _check_unet(header, name)
    return replace(SD1, text_width=_text_width(header))


def check_parts(header: Header, name: str, *, needs_vae: bool) -> None:
    """Raises ModelError unless text encoder and, if needed, VAE are there; the hint says how to supply them."""
    if needs_vae and PREFIXES["vae"] + "decoder.conv_in.weight" not in header:
        raise ModelError(
            f"{name} holds no VAE; training needs one to turn pictures into latents.",
            "Name a VAE file, such as vae-ft-mse-840000-ema-pruned.safetensors, or choose another checkpoint.",
        )
    if _TOKENS not in header:
        raise ModelError(
            f"{name} holds no text encoder; training needs one to read captions.",
            "Choose a complete checkpoint; a VAE file can be named apart, a text encoder cannot.",
        )


def _check_unet(header: Header, name: str) -> None:
    channels = header[_INPUT].shape[1]
    if channels != _SD1_CHANNELS:
        what = _CHANNELS.get(channels, f"a checkpoint with {channels} input channels")
        raise _unsupported(name, Sign(what, ""))
    projections = (info for key, info in header.items() if key.endswith(".proj_in.weight") and _is_unet(key))
    if any(len(info.shape) == 2 for info in projections):
        raise _unsupported(name, Sign("a checkpoint with the UNet of Stable Diffusion 2", ""))


def _is_unet(key: str) -> bool:
    return key.startswith(PREFIXES["unet"])


def _text_width(header: Header) -> int:
    """D: what the UNet's cross attention takes in."""
    for key, info in header.items():
        if _is_unet(key) and key.endswith("attn2.to_k.weight"):
            return info.shape[1]
    return SD1.text_width


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
    return ModelError(f"{name} is no model we know; its first tensors are: {first}. {_SUPPORTED}", _CHOOSE_SD1)
