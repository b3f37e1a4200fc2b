"""The result of a merge or a bake without a file: what would be written, one tensor at a time."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from pathlib import Path

from ..config.merge import MergeConfig
from ..config.networks import BakeConfig
from ..config.tool import ToolConfig
from ..errors import ConfigError, Problem
from ..ports import Candidate
from .bake import baked_tensors, plan_bake
from .execute import merged_tensors
from .plan import plan_merge, unet_source

# Said of a merge in short, where they are not the defaults.
_TOLD = ("alpha", "beta", "density", "epsilon", "top", "seed", "unet", "text_encoder", "vae", "bake_vae", "discard")


def candidate_of(config: ToolConfig) -> Candidate:
    """What the settings of 'merge' or 'bake' make. Only headers are read, and LoRA files.

    Raises ConfigError for another tool; otherwise as `plan_merge` and `plan_bake`, but where it would go does not
    matter.
    """
    if isinstance(config, MergeConfig):
        merge = plan_merge(config, in_memory=True)
        shapes = {name: tuple(tensor.info.shape) for name, tensor in merge.tensors.items()}
        lead = merge.models[unet_source(config)]
        return Candidate(merge_title(config), lead.family, lead.prediction_type, shapes, partial(merged_tensors, merge))
    if isinstance(config, BakeConfig):
        bake = plan_bake(config, in_memory=True)
        shapes = {name: tuple(info.shape) for name, info in bake.infos.items()}
        return Candidate(
            bake_title(config), bake.model.family, bake.model.prediction_type, shapes, partial(baked_tensors, bake)
        )
    raise ConfigError([Problem("tool", "makes no checkpoint of other files; accepted are merge, bake")])


def merge_title(config: MergeConfig) -> str:
    """'weighted_sum of a + b (0.3); alpha 0.2'."""
    models = " + ".join(
        Path(model.path).stem + (f" ({model.weight})" if model.weight else "") for model in config.models
    )
    defaults = {field.name: field.default for field in fields(MergeConfig)}
    told = [f"{name} {value}" for name in _TOLD if (value := getattr(config, name)) != defaults[name]]
    return "; ".join([f"{config.formula} of {models}", *told])


def bake_title(config: BakeConfig) -> str:
    """'base with style (0.7) + subject (1)'."""
    files = " + ".join(f"{Path(entry.path).stem} ({entry.strength})" for entry in config.networks)
    return f"{Path(config.base).stem} with {files}"
