"""The tensor names of LoRA-family files: `<layer name>.<suffix>`, and which algorithm a suffix speaks of.

Names and suffixes are kohya's and LyCORIS's, which every WebUI reads; peft's and diffusers' are read as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ..errors import FormatError

BUNDLED_EMBEDDING = "bundle_emb."

# What marks an algorithm in a tensor's last name parts; the first that matches names it. LoRA itself comes last.
_MARKS = (
    ("dora_scale", "DoRA"),
    ("lora_mid.weight", "LoCon (CP)"),
    ("hada_w1_a", "LoHa"),
    ("hada_w1_b", "LoHa"),
    ("lokr_w1", "LoKr"),
    ("lokr_w1_a", "LoKr"),
    ("lokr_w1_b", "LoKr"),
    ("on_input", "IA3"),
    ("a1.weight", "GLoRA"),
    ("oft_blocks", "OFT"),
    ("oft_diag", "OFT"),
    ("diff", "full difference"),
    ("diff_b", "full difference"),
    ("w_norm", "norm difference"),
    ("lora_down.weight", "LoRA"),
    ("lora_A.weight", "LoRA"),
    ("lora_A.default.weight", "LoRA"),
    ("lora.down.weight", "LoRA"),
)
# Other programs' suffixes -> kohya's.
_ALIASES = {
    "lora_A.weight": "lora_down.weight",
    "lora_A.default.weight": "lora_down.weight",
    "lora.down.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_B.default.weight": "lora_up.weight",
    "lora.up.weight": "lora_up.weight",
}
_KNOWN = (
    "lora_down.weight",
    "lora_up.weight",
    "lora_mid.weight",
    "alpha",
    "scale",
    "dora_scale",
    *(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    "diff",
    "diff_b",
    "w_norm",
    "b_norm",
)
_SUFFIXES = {**{suffix: suffix for suffix in _KNOWN}, **_ALIASES}
# peft's and diffusers' dotted paths -> kohya's prefix.
_DOTTED_PREFIXES = {"unet.": "lora_unet_", "text_encoder.": "lora_te_", "text_encoder_2.": "lora_te2_"}


def lora_algorithms(names: Iterable[str]) -> list[str]:
    """The algorithms a LoRA or LyCORIS file uses, sorted, such as ['LoHa', 'LoRA']; empty for other files."""
    return sorted({algorithm for name in names if (algorithm := _algorithm(name)) is not None})


def tensors_by_layer(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{layer name: {suffix: tensor}} of a LoRA-family file, in kohya's names; a bundled embedding is left out.

    `path` is for the message. Raises FormatError for a suffix that none of the supported algorithms has.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not key.startswith(BUNDLED_EMBEDDING):
            name, suffix = _split(path, key)
            layers.setdefault(name, {})[suffix] = tensor
    return layers


def _algorithm(name: str) -> str | None:
    for mark, algorithm in _MARKS:
        if name.endswith("." + mark):
            return algorithm
    return None


def _split(path: Path, key: str) -> tuple[str, str]:
    """('lora_unet_x', 'lora_down.weight') of 'unet.x.lora_A.weight'."""
    for suffix, canonical in _SUFFIXES.items():
        if key.endswith("." + suffix):
            return _layer_name(key[: -len(suffix) - 1]), canonical
    raise FormatError(f"{path} holds the tensor {key!r}, which no LoRA has.", "Choose a plain LoRA or LoCon file.")


def _layer_name(path: str) -> str:
    """kohya's layer name of a module; peft writes dotted paths."""
    path = path.removeprefix("base_model.model.")
    for dotted, prefix in _DOTTED_PREFIXES.items():
        if path.startswith(dotted):
            path = prefix + path[len(dotted) :]
    return path.replace(".", "_")
