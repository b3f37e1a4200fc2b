"""The parts of an SD 1.x checkpoint, and the names of its text encoder (Hugging Face CLIP-L names under a prefix)."""

from __future__ import annotations

from ...errors import KeyMismatchError

# Where each part of an SD 1.x checkpoint lies.
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text": "cond_stage_model.transformer.",
}

_ROOT = "text_model."
_CHILDREN = ("embeddings.", "encoder.", "final_layer_norm.")


def text_to_ldm(name: str) -> str:
    """The name of a `CLIPTextModel` tensor in a checkpoint, without the prefix: unchanged.

    Raises KeyMismatchError for a name that a CLIP text model does not have.
    """
    if not name.startswith(tuple(_ROOT + child for child in _CHILDREN)):
        raise _unknown(name)
    return name


def text_from_ldm(name: str) -> str:
    """The `CLIPTextModel` name of a checkpoint's tensor; files made before transformers 4.0 lack `text_model.`.

    Raises KeyMismatchError for an unknown name.
    """
    if name.startswith(_CHILDREN):
        return _ROOT + name
    return text_to_ldm(name)


def _unknown(name: str) -> KeyMismatchError:
    return KeyMismatchError(
        f"Text encoder: the name {name!r} is unknown.",
        "Stable Diffusion 1 uses the CLIP-L text model; this file holds another one, or is damaged.",
    )
