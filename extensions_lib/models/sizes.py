"""The settings of the three networks, from the shapes of a checkpoint's tensors.

Names are those of a single-file checkpoint. What shapes cannot tell (numbers of heads) comes from the yaml beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError, KeyMismatchError, ModelError
from ..formats.keys import PREFIXES
from ..formats.safetensors_io import TensorInfo
from .configs import base_config
from .sibling import SiblingFacts, find_clip_folder

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

_CLIP_L_WIDTH = 768


def part_shapes(header: Mapping[str, TensorInfo], part: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of 'unet', 'vae' or 'text', without their prefix."""
    prefix = PREFIXES[part]
    return {name.removeprefix(prefix): info.shape for name, info in header.items() if name.startswith(prefix)}


def unet_config(shapes: Shapes, facts: SiblingFacts) -> Config:
    """Settings of UNet2DConditionModel. Raises KeyMismatchError when the blocks follow no known pattern."""
    levels = _unet_levels(shapes)
    widths = [width for width, _, _ in levels]
    attentions = [has_attention for _, _, has_attention in levels]
    if len({num_layers for _, num_layers, _ in levels}) != 1:
        counts = [num_layers for _, num_layers, _ in levels]
        raise KeyMismatchError(
            f"The UNet's levels have {counts} layers; all must have as many.", "Choose another model."
        )
    down = ["CrossAttnDownBlock2D" if flag else "DownBlock2D" for flag in attentions]
    up = ["CrossAttnUpBlock2D" if flag else "UpBlock2D" for flag in reversed(attentions)]
    return base_config("unet") | {
        "in_channels": _shape(shapes, "input_blocks.0.0.weight")[1],
        "out_channels": _shape(shapes, "out.2.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": levels[0][1],
        "down_block_types": down,
        "up_block_types": up,
        "transformer_layers_per_block": _count(shapes, r"middle_block\.1\.transformer_blocks\.(\d+)\."),
        "cross_attention_dim": _shape(shapes, "middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1],
        "attention_head_dim": _num_heads(widths, facts),
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


def text_config(shapes: Shapes, facts: SiblingFacts, checkpoint: Path) -> Config:
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
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read: {error}.", "Copy or download the folder again.") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} holds {type(content).__name__}, not a JSON object.", "Copy the folder again.")
    return content


def _unet_levels(shapes: Shapes) -> list[tuple[int, int, bool]]:
    """(width, number of layers, has attention) of each resolution, from the finest to the coarsest."""
    levels: list[tuple[int, int, bool]] = []
    starts_level = True
    for block in range(1, _count(shapes, r"input_blocks\.(\d+)\.")):
        if f"input_blocks.{block}.0.op.weight" in shapes:
            starts_level = True
            continue
        width = _shape(shapes, f"input_blocks.{block}.0.out_layers.3.weight")[0]
        has_attention = f"input_blocks.{block}.1.norm.weight" in shapes
        num_layers = 1 if starts_level else levels.pop()[1] + 1
        levels.append((width, num_layers, has_attention))
        starts_level = False
    if not levels:
        raise KeyMismatchError("The UNet has no input blocks.", "The file is incomplete; choose another model.")
    return levels


def _num_heads(widths: list[int], facts: SiblingFacts) -> int | list[int]:
    """What diffusers' setting `attention_head_dim` of SD 1.x means: the number of heads, of all levels or of each."""
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
