"""The tensor names of LoRA-family files: `<layer name>.<suffix>`, and which algorithm a suffix speaks of.

Names and suffixes are kohya's and LyCORIS's, which every WebUI reads; those of peft, diffusers and OneTrainer are read
as well.
"""

from __future__ import annotations

import re
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
)
# peft's 'lora_A.<adapter>.weight', diffusers' 'lora.down.weight' and, older, 'processor.to_q_lora.down.weight'.
_FACTOR = re.compile(r"\.(?:lora_(A|B)(?:\.\w+)?|(?:lora|lora_linear_layer)\.(down|up))\.weight$")
_KOHYAS = {"A": "down", "B": "up", "down": "down", "up": "up"}
_PROCESSOR = re.compile(r"\.processor\.(to_[qkv]|to_out)_lora\.(down|up)\.weight$")
# peft's lengths of a DoRA, one for each output.
_MAGNITUDE = re.compile(r"\.lora_magnitude_vector(\.\w+)*$")
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
# What other programs' module paths begin with -> kohya's prefix, first match first.
_PREFIXES = (
    (r"unet\.", "lora_unet_"),
    (r"(text_encoder|clip_l)\.", "lora_te_"),
    (r"(text_encoder_2|clip_g)\.", "lora_te2_"),
    (r"(lycoris_)?(?=text_model[._])", "lora_te_"),
    (r"lycoris_|(?=(down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks)\.)", "lora_unet_"),
)
_PREFIX = [(re.compile(pattern), prefix) for pattern, prefix in _PREFIXES]


def lora_algorithms(names: Iterable[str]) -> list[str]:
    """The algorithms a LoRA or LyCORIS file uses, sorted, such as ['LoHa', 'LoRA']; empty for other files."""
    return sorted({algorithm for name in names if (algorithm := _algorithm(name)) is not None})


def tensors_by_layer(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{layer name: {suffix: tensor}} of a LoRA-family file, in kohya's names; a bundled embedding is left out.

    Lengths of a DoRA that peft wrote get the form (O, 1) or (O, 1, 1, 1). `path` is for the message. Raises FormatError
    for a suffix that none of the supported algorithms has.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    of_outputs: list[dict[str, Tensor]] = []
    for key, tensor in tensors.items():
        if key.startswith(BUNDLED_EMBEDDING):
            continue
        name, suffix = _split(path, key)
        layers.setdefault(name, {})[suffix] = tensor
        if _MAGNITUDE.search(key):
            of_outputs.append(layers[name])
    for parts in of_outputs:
        ones = (1 for _ in parts.get("lora_down.weight", tensor).shape[1:])
        parts["dora_scale"] = parts["dora_scale"].reshape(-1, *ones)
    return layers


def plain_name(key: str) -> str:
    """A tensor's name with kohya's suffix; its layer stays as it is written."""
    key = _PROCESSOR.sub(_of_processor, key)
    key = _FACTOR.sub(lambda found: f".lora_{_KOHYAS[found[1] or found[2]]}.weight", key)
    return _MAGNITUDE.sub(".dora_scale", key)


def _of_processor(found: re.Match[str]) -> str:
    return f".{found[1]}{'.0' if found[1] == 'to_out' else ''}.lora_{found[2]}.weight"


def _algorithm(name: str) -> str | None:
    plain = plain_name(name)
    for mark, algorithm in _MARKS:
        if plain.endswith("." + mark):
            return algorithm
    return None


def _split(path: Path, key: str) -> tuple[str, str]:
    """('lora_unet_x', 'lora_down.weight') of 'unet.x.lora_A.weight'."""
    plain = plain_name(key)
    for suffix in _KNOWN:
        if plain.endswith("." + suffix):
            return _layer_name(plain[: -len(suffix) - 1]), suffix
    raise FormatError(f"{path} holds the tensor {key!r}, which no LoRA has.", "Choose a plain LoRA or LoCon file.")


def _layer_name(path: str) -> str:
    """kohya's layer name of a module, whose path may be dotted."""
    path = path.removeprefix("base_model.model.")
    for pattern, prefix in _PREFIX:
        if found := pattern.match(path):
            path = prefix + path[found.end() :]
            break
    return path.replace(".", "_")
