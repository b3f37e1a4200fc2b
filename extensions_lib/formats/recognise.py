"""What a file is, from the names and shapes of its tensors: tables of signs, most specific first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .safetensors_io import TensorInfo
from .suffixes import lora_algorithms, plain_name

Header = Mapping[str, TensorInfo]

# Beginnings of a checkpoint's UNet or transformer, in single-file and in diffusers layout.
_CHECKPOINT = (
    (r"^(model\.diffusion_model\.)?double_blocks\.\d+\.img_attn\.", "flux"),
    (r"^(model\.diffusion_model\.)?(joint_blocks\.|x_embedder\.proj\.)", "sd3"),
    (r"^conditioner\.embedders\.1\.model\.", "sdxl"),
    (r"^conditioner\.embedders\.0\.model\.ln_final\.", "sdxl-refiner"),
    (r"^(model\.diffusion_model\.label_emb\.|label_emb\.)", "sdxl"),
    (r"^cond_stage_model\.model\.transformer\.", "sd2"),
    (r"^cond_stage_model\.roberta\.", "altdiffusion"),
)
_UNET = r"^(model\.diffusion_model\.)?(input_blocks|joint_blocks|double_blocks)\.|^(unet\.)?down_blocks\."
_VAE = r"^(first_stage_model\.|vae\.)?(encoder\.conv_in|decoder\.conv_in)\."
_TEXT_ENCODER = r"^(cond_stage_model\.|conditioner\.|text_encoders\.|text_encoder\.|text_model\.)"
_CONTROLNET = r"^(control_model\.|controlnet_)|input_hint_block\."
_LORA_FAMILY = (
    (r"^(lora_unet|transformer)[_.](double_blocks|single_blocks|single_transformer_blocks)", "flux"),
    (r"^(lora_unet|transformer)[_.](joint_blocks|transformer_blocks)", "sd3"),
    (r"^lora_te2_|^(text_encoder_2|clip_g)\.", "sdxl"),
    (r"(input_blocks_[478]_1|attentions[_.][01])[_.]transformer_blocks[_.][1-9]", "sdxl"),
)
_FAMILY_BY_WIDTH = {768: "sd1", 1024: "sd2", 1280: "sdxl", 2048: "sdxl"}
_ATTENTION_INPUT = re.compile(r"attn2[_.]to_[kv]\.(lora_down\.weight|hada_w1_b|dora_scale|diff)$")
_TEXT_INPUT = re.compile(
    r"^(lora_te1?[_.]|text_encoder\.|clip_l\.).*self_attn[_.]q_proj\.(lora_down\.weight|hada_w1_b|diff)$"
)
_LOKR_INPUT = re.compile(r"(.*attn2[_.]to_[kv])\.lokr_w1(?:_b)?$")
_CROSS_ATTENTION = re.compile(r"attn2\.to_k\.weight$")
_INPUT_BLOCK = re.compile(r"^(model\.diffusion_model\.)?input_blocks\.0\.0\.weight$|^(unet\.)?conv_in\.weight$")
_INPUT_VARIANTS = {9: "inpainting", 8: "instruct-pix2pix", 5: "depth"}


@dataclass(frozen=True)
class Recognised:
    """`kind`: checkpoint, unet, lora, embedding, vae, text_encoder, controlnet or unknown; family '' when not known.

    `variant` says more ('inpainting', 'LoHa', 'v_prediction marker', ...), `parts` what a checkpoint contains.
    """

    kind: str
    family: str = ""
    variant: str = ""
    parts: tuple[str, ...] = ()


def recognise(header: Header, metadata: Mapping[str, str] | None = None) -> Recognised:
    """What the tensors of one file are; what those of a LoRA leave open (other widths, no attention) its metadata may
    say, by the WebUI's own rules.
    """
    algorithms = lora_algorithms(header)
    if algorithms:
        family = _lora_family(header) or _stated_family(metadata or {})
        return Recognised("lora", family, ", ".join(algorithms))
    if _any(_CONTROLNET, header):
        return Recognised("controlnet")
    if _any(_UNET, header):
        return _checkpoint(header)
    if _any(_VAE, header):
        return Recognised("vae", variant=_vae_variant(header))
    if _any(_TEXT_ENCODER, header):
        return Recognised("text_encoder")
    return _embedding(header) or Recognised("unknown")


def _stated_family(metadata: Mapping[str, str]) -> str:
    if metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        return "sdxl"
    if metadata.get("ss_v2") == "True":
        return "sd2"
    return "sd1" if "ss_base_model_version" in metadata else ""


def _any(pattern: str, names: Iterable[str]) -> bool:
    compiled = re.compile(pattern)
    return any(compiled.search(name) for name in names)


def _checkpoint(header: Header) -> Recognised:
    found = {"vae": _any(_VAE, header), "text_encoder": _any(_TEXT_ENCODER, header)}
    parts = tuple(part for part, present in found.items() if present)
    kind = "checkpoint" if parts else "unet"
    return Recognised(kind, _checkpoint_family(header), _checkpoint_variant(header), ("unet", *parts))


def _checkpoint_family(header: Header) -> str:
    turbo = header.get("conditioner.embedders.0.model.ln_final.weight")
    if turbo is not None and turbo.shape == (1024,):  # SD 2 turbo in the layout of SDXL
        return "sd2"
    for pattern, family in _CHECKPOINT:
        if _any(pattern, header):
            return family
    width = next((info.shape[-1] for name, info in header.items() if _CROSS_ATTENTION.search(name)), 0)
    by_width = _FAMILY_BY_WIDTH.get(width, "")
    # A text model of the first kind under its own name: Stable Diffusion 1 at any width, such as a small test model.
    return "sd1" if not by_width and _any(r"^cond_stage_model\.transformer\.", header) else by_width


def _checkpoint_variant(header: Header) -> str:
    channels = next((i.shape[1] for name, i in header.items() if _INPUT_BLOCK.search(name) and len(i.shape) == 4), 4)
    variants = [_INPUT_VARIANTS[channels]] if channels in _INPUT_VARIANTS else []
    variants += [f"{marker} marker" for marker in ("v_pred", "ztsnr") if marker in header]
    return ", ".join(variants)


def _vae_variant(header: Header) -> str:
    channels = next((i.shape[1] for name, i in header.items() if name.endswith("decoder.conv_in.weight")), 0)
    return f"{channels} latent channels" if channels else ""


def _lora_family(raw: Header) -> str:
    header = {plain_name(name): info for name, info in raw.items()}
    for pattern, family in _LORA_FAMILY:
        if _any(pattern, header):
            return family
    found = (info.shape for name, info in header.items() if _ATTENTION_INPUT.search(name))
    widths = (shape[-1] for shape in found if len(shape) > 1 and shape[-1] in _FAMILY_BY_WIDTH)
    width = next(widths, 0) or _lokr_width(header)
    return _FAMILY_BY_WIDTH.get(width, "") or _family_by_text_width(header)


def _lokr_width(header: Header) -> int:
    """The width of the text conditioning that a LoKr of it is for: that of the Kronecker product of its matrices."""
    for name, info in header.items():
        layer = _LOKR_INPUT.search(name)
        second = layer and (header.get(f"{layer[1]}.lokr_w2") or header.get(f"{layer[1]}.lokr_w2_b"))
        if second:
            return info.shape[-1] * second.shape[-1]
    return 0


def _family_by_text_width(header: Header) -> str:
    """A file for the text encoder alone: its layers are as wide as the vectors of its family."""
    width = next((info.shape[-1] for name, info in header.items() if _TEXT_INPUT.search(name)), 0)
    return _FAMILY_BY_WIDTH.get(width, "")


def _embedding(header: Header) -> Recognised | None:
    if {"clip_l", "clip_g"} <= set(header):
        return Recognised("embedding", "sdxl", f"{_rows(header['clip_g'])} vectors")
    if len(header) == 1 or "emp_params" in header:
        info = header.get("emp_params") or next(iter(header.values()))
        if len(info.shape) in (1, 2) and info.dtype.startswith(("F", "BF")):
            return Recognised("embedding", _FAMILY_BY_WIDTH.get(info.shape[-1], ""), f"{_rows(info)} vectors")
    return None


def _rows(info: TensorInfo) -> int:
    return info.shape[0] if len(info.shape) == 2 else 1
