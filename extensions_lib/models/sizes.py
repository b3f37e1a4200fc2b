"""The settings of the networks, from the shapes of a checkpoint's tensors.

Names are those of a single-file checkpoint. What shapes cannot tell (numbers of heads) comes from the yaml beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.json_text import parse_json
from ..errors import FormatError, KeyMismatchError, ModelError
from ..formats.keys import UNetLayout
from ..formats.safetensors_io import TensorInfo
from .build import PROJECTED_TEXT
from .configs import base_config
from .family import ModelFamily, TextEncoderKind
from .ldm import part_prefix
from .sibling import SiblingFacts, find_clip_folder

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

NUM_SIZES = 6  # height and width of the original, top and left of the crop, height and width of the target
_LABELS = "label_emb.0.0.weight"
_CLIP_L_WIDTH = 768
_OPEN_CLIP_HEAD = 64  # in all of OpenCLIP's text encoders that checkpoints use


def part_shapes(header: Mapping[str, TensorInfo], part: str, family: ModelFamily) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of 'unet', 'vae' or a text encoder, without their prefix."""
    prefix = part_prefix(part, family)
    return {name.removeprefix(prefix): info.shape for name, info in header.items() if name.startswith(prefix)}


def unet_config(shapes: Shapes, facts: SiblingFacts, pooled_width: int = 0) -> Config:
    """Settings of UNet2DConditionModel. Raises KeyMismatchError when the blocks follow no known pattern.

    `pooled_width` is P, the width of the pooled text state, for a UNet that is told of it and of sizes.
    """
    levels = _unet_levels(shapes)
    widths = [level.width for level in levels]
    if len({level.num_layers for level in levels}) != 1:
        counts = [level.num_layers for level in levels]
        raise KeyMismatchError(
            f"The UNet's levels have {counts} layers; all must have as many.", "Choose another model."
        )
    middle = _depth(shapes, "middle_block.1")
    depths = [level.depth or 1 for level in levels[:-1]] + [middle]
    config = base_config("unet") | {
        "in_channels": _shape(shapes, "input_blocks.0.0.weight")[1],
        "out_channels": _shape(shapes, "out.2.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": levels[0].num_layers,
        "down_block_types": ["CrossAttnDownBlock2D" if level.depth else "DownBlock2D" for level in levels],
        "up_block_types": ["CrossAttnUpBlock2D" if level.depth else "UpBlock2D" for level in reversed(levels)],
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
        "cross_attention_dim": _shape(shapes, "middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1],
        "attention_head_dim": _num_heads(widths, facts),
        "use_linear_projection": len(_shape(shapes, "middle_block.1.proj_in.weight")) == 2,
    }
    return config | _size_conditioning(shapes, pooled_width)


def _size_conditioning(shapes: Shapes, pooled_width: int) -> Config:
    """SDXL: the pooled text (P) and six sizes, each as waves of `addition_time_embed_dim` numbers, enter together."""
    if _LABELS not in shapes:
        return {}
    entering = shapes[_LABELS][1]
    if entering <= pooled_width or (entering - pooled_width) % NUM_SIZES:
        raise KeyMismatchError(
            f"The UNet takes {entering} numbers beside the text; of these {pooled_width} are the pooled text, and the "
            f"rest must be {NUM_SIZES} sizes of equal width.",
            "This is not the conditioning of Stable Diffusion XL; choose another model.",
        )
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (entering - pooled_width) // NUM_SIZES,
        "projection_class_embeddings_input_dim": entering,
    }


def vae_config(shapes: Shapes, latent_scale: float) -> Config:
    """Settings of AutoencoderKL. Raises KeyMismatchError when tensors that give the sizes are missing."""
    num_levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    widths = [_shape(shapes, f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(num_levels)]
    return base_config("vae") | {
        "in_channels": _shape(shapes, "encoder.conv_in.weight")[1],
        "out_channels": _shape(shapes, "decoder.conv_out.weight")[0],
        "latent_channels": _shape(shapes, "post_quant_conv.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": _count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * num_levels,
        "up_block_types": ["UpDecoderBlock2D"] * num_levels,
        "scaling_factor": latent_scale,
    }


def text_config(kind: TextEncoderKind, shapes: Shapes, facts: SiblingFacts, checkpoint: Path) -> Config:
    """Settings of one text encoder. Raises as `clip_config` and `open_clip_config`."""
    if kind.layout == "open_clip":
        return open_clip_config(kind, shapes)
    return clip_config(shapes, facts, checkpoint)


def open_clip_config(kind: TextEncoderKind, shapes: Shapes) -> Config:
    """Settings of an OpenCLIP text encoder, whose heads are 64 wide at every size.

    Raises KeyMismatchError when tensors are missing, ModelError for a width that is no multiple of 64.
    """
    vocabulary, width = _shape(shapes, "token_embedding.weight")
    if width % _OPEN_CLIP_HEAD:
        raise ModelError(
            f"The OpenCLIP text encoder is {width} wide; accepted are multiples of {_OPEN_CLIP_HEAD}, a head's width.",
            "Choose another model.",
        )
    projected = _shape(shapes, "text_projection")[1] if kind.has_pooled else width
    return base_config("text_encoder") | {
        "architectures": [PROJECTED_TEXT] if kind.has_pooled else [],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "hidden_act": "gelu",
        "projection_dim": projected,
        "num_attention_heads": width // _OPEN_CLIP_HEAD,
        "intermediate_size": _shape(shapes, "transformer.resblocks.0.mlp.c_fc.weight")[0],
        "num_hidden_layers": _count(shapes, r"transformer\.resblocks\.(\d+)\.") - kind.num_unused_layers,
        "max_position_embeddings": _shape(shapes, "positional_embedding")[0],
    }


def clip_config(shapes: Shapes, facts: SiblingFacts, checkpoint: Path) -> Config:
    """Settings of CLIPTextModel; for other widths than CLIP-L's they are completed by the folder the yaml names.

    Raises ModelError when that folder is missing: the number of heads shows in no shape.
    """
    vocabulary, width = _shape(shapes, "text_model.embeddings.token_embedding.weight")
    given = _clip_config(checkpoint, facts.clip_version)
    if given is None and width != _CLIP_L_WIDTH:
        raise ModelError(
            f"The text encoder of {checkpoint.name} is {width} wide, which is not CLIP-L ({_CLIP_L_WIDTH}), and "
            f"the folder that describes it ({facts.clip_version!r}) was not found.",
            f"Put {checkpoint.stem}.yaml and the folder its cond_stage_config names beside the checkpoint.",
        )
    return (
        base_config("text_encoder")
        | (given or {})
        | {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "projection_dim": width,
            "intermediate_size": _shape(shapes, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
            "num_hidden_layers": _count(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
            "max_position_embeddings": _shape(shapes, "text_model.embeddings.position_embedding.weight")[0],
        }
    )


def _clip_config(checkpoint: Path, version: str) -> Config | None:
    """What the named CLIP folder says of heads and activation."""
    folder = find_clip_folder(checkpoint, version)
    if folder is None:
        return None
    config = read_json(folder / "config.json")
    # A full CLIP (text and vision) keeps the text model's settings in a table of their own.
    config = config.get("text_config") or config
    return {name: config[name] for name in ("num_attention_heads", "hidden_act", "layer_norm_eps") if name in config}


def read_json(path: Path) -> Config:
    """A JSON object. Raises FormatError when the file cannot be read or is something else."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read: {error}.", "Copy or download the folder again.") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} holds {type(content).__name__}, not a JSON object.", "Copy the folder again.")
    return content


def layout_of_shapes(shapes: Shapes) -> UNetLayout:
    """How the blocks of a checkpoint's UNet are numbered. Raises KeyMismatchError for tensors that give no blocks."""
    levels = _unet_levels(shapes)
    return UNetLayout(levels[0].num_layers, tuple(level.depth > 0 for level in reversed(levels)))


@dataclass(frozen=True)
class _Level:
    """One resolution of a UNet; `depth` is the number of transformer layers in each attention, 0 without any."""

    width: int
    num_layers: int
    depth: int


def _unet_levels(shapes: Shapes) -> list[_Level]:
    """The resolutions from the finest to the coarsest."""
    levels: list[_Level] = []
    starts_level = True
    for block in range(1, _count(shapes, r"input_blocks\.(\d+)\.")):
        if f"input_blocks.{block}.0.op.weight" in shapes:
            starts_level = True
            continue
        width = _shape(shapes, f"input_blocks.{block}.0.out_layers.3.weight")[0]
        num_layers = 1 if starts_level else levels.pop().num_layers + 1
        levels.append(_Level(width, num_layers, _depth(shapes, f"input_blocks.{block}.1")))
        starts_level = False
    if not levels:
        raise KeyMismatchError("The UNet has no input blocks.", "The file is incomplete; choose another model.")
    return levels


def _depth(shapes: Shapes, attention: str) -> int:
    return _count(shapes, re.escape(attention) + r"\.transformer_blocks\.(\d+)\.")


def _num_heads(widths: list[int], facts: SiblingFacts) -> int | list[int]:
    """What diffusers' setting `attention_head_dim` means in a UNet: the number of heads, of all levels or of each."""
    if facts.num_head_channels is None:
        heads = [facts.num_heads] * len(widths)
    else:
        heads = [width // facts.num_head_channels for width in widths]
    if any(count < 1 or width % count for width, count in zip(widths, heads, strict=True)):
        raise ModelError(
            f"The UNet's widths {widths} cannot be divided into {heads} attention heads.",
            "Correct num_heads or num_head_channels in the .yaml beside the checkpoint.",
        )
    return heads[0] if len(set(heads)) == 1 else heads


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise KeyMismatchError(
            f"The tensor {name} is missing.", "The file is incomplete; choose another version of it."
        )
    return shapes[name]


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number that `pattern` finds at the beginning of the names; 0 if it finds none."""
    found = (re.match(pattern, name) for name in shapes)
    return max((int(match[1]) + 1 for match in found if match), default=0)
