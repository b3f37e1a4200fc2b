"""Where the parts of a checkpoint lie, and the names of its text encoders.

A CLIP-L has Hugging Face's names under a prefix; SD 2.x's and SDXL's larger ones have OpenCLIP's, see `open_clip`.
"""

from __future__ import annotations

from ...errors import KeyMismatchError

# The same in every family; 'text' is SD 1.x's.
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text": "cond_stage_model.transformer.",
}

# family -> text encoder -> what its tensors' names begin with.
TEXT_PREFIXES = {
    "sd1": {"text_encoder": PREFIXES["text"]},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
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
        "It should be a CLIP-L text model; this file holds another one, or is damaged.",
    )
