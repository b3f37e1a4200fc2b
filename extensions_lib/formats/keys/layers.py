"""LoRA layer names read back: which module of a family's networks a name stands for, and how the WebUI finds it.

Programs write a UNet's layers under diffusers' and under checkpoint names, and a first text encoder as `lora_te_` or
`lora_te1_`. Which the WebUI 1.10.1 finds: `lora.lora_layer_name`.
"""

from __future__ import annotations

import re

from ...errors import KeyMismatchError
from .lora import lora_layer_name
from .unet import SD1_LAYOUT, SDXL_LAYOUT, unet_from_ldm, unet_to_ldm

_LAYOUTS = {"sd1": SD1_LAYOUT, "sd2": SD1_LAYOUT, "sdxl": SDXL_LAYOUT}
_PARTS = {
    "lora_unet_": "unet",
    "lora_te2_": "text_encoder_2",
    "lora_te1_": "text_encoder",
    "lora_te_": "text_encoder",
}
# Words of module paths that hold an underscore themselves.
_WORDS = (
    *("down_blocks", "up_blocks", "mid_block", "transformer_blocks", "time_emb_proj", "time_embedding"),
    *("add_embedding", "linear_1", "linear_2", "conv_in", "conv_out", "conv_norm_out", "conv_shortcut", "proj_in"),
    *("proj_out", "to_q", "to_k", "to_v", "to_out", "input_blocks", "middle_block", "output_blocks", "in_layers"),
    *("out_layers", "emb_layers", "skip_connection", "time_embed", "label_emb", "text_model", "self_attn", "q_proj"),
    *("k_proj", "v_proj", "out_proj", "layer_norm1", "layer_norm2", "final_layer_norm"),
)
_WORD = re.compile(rf"(?:(?<=_)|^)({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?=_|$)")
_LDM = re.compile(r"(input_blocks|middle_block|output_blocks|out|time_embed|label_emb)\.")
_IN_ATTENTIONS = re.compile(
    r".*\.attentions\.\d+\.(norm|proj_in|proj_out|transformer_blocks\.\d+\."
    r"(norm[123]|attn[12]\.to_[qkv]|attn[12]\.to_out\.0|ff\.net\.0\.proj|ff\.net\.2))"
)
_TEXT = re.compile(
    r"text_model\.(final_layer_norm|encoder\.layers\.\d+\."
    r"(layer_norm[12]|mlp\.fc[12]|self_attn\.(q|k|v|out)_proj))"
)


def layer_module(layer: str, family: str) -> tuple[str, str]:
    """('unet', 'down_blocks.1.attentions.0.proj_in') of 'lora_unet_input_blocks_4_1_proj_in': network and module path.

    Paths are diffusers' and transformers', whatever the name follows. Raises KeyMismatchError for a name that is none
    of a layer in the networks of `family` ('sd1', 'sd2' or 'sdxl').
    """
    prefix = next((prefix for prefix in _PARTS if layer.startswith(prefix)), None)
    if prefix is None or (_PARTS[prefix] == "text_encoder_2" and family != "sdxl"):
        raise _unknown(layer, family)
    path = _dotted(layer.removeprefix(prefix))
    if _PARTS[prefix] != "unet":
        if not _TEXT.fullmatch(path):
            raise _unknown(layer, family)
        return _PARTS[prefix], path
    layout = _LAYOUTS[family]
    if _LDM.match(path):
        path = unet_from_ldm(path, layout)
    unet_to_ldm(path, layout)
    if ".attentions." in path and not _IN_ATTENTIONS.fullmatch(path):
        raise _unknown(layer, family)
    return "unet", path


def canonical_layer(layer: str, family: str) -> str:
    """The name under which the WebUI finds a layer of `family`. Raises as `layer_module`."""
    part, path = layer_module(layer, family)
    return lora_layer_name(path, part, family)


def _dotted(name: str) -> str:
    """'down_blocks_1_attentions_0_proj_in' -> 'down_blocks.1.attentions.0.proj_in'."""
    kept = _WORD.sub(lambda found: found.group(1).replace("_", "\0"), name)
    return kept.replace("_", ".").replace("\0", "_")


def _unknown(layer: str, family: str) -> KeyMismatchError:
    return KeyMismatchError(
        f"{layer} is no layer of the networks of {family}.", "The file is for another kind of model."
    )
