"""The `<stem>.yaml` beside a checkpoint: what tensor shapes cannot tell. The WebUI reads the same file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError, UnsupportedModelError
from .bundle import SD1
from .schedule import check_num_timesteps

_PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction"}
_HUB_CLIP = "openai/clip-vit-large-patch14"
_ENVIRONMENT = re.compile(r"\$\{oc\.env:([^,}]+)(?:,([^}]*))?\}")


@dataclass(frozen=True)
class SiblingFacts:
    """Stable Diffusion 1.5's values, or those of the yaml.

    The UNet has `num_heads` attention heads everywhere, or heads of `num_head_channels` when that is given.
    `clip_version` names the text encoder: a folder with its config.json, or OpenAI's CLIP-L.
    """

    num_heads: int = 8
    num_head_channels: int | None = None
    prediction_type: str = SD1.prediction_type
    latent_scale: float = SD1.latent_scale
    linear_start: float = 0.00085
    linear_end: float = 0.012
    clip_version: str = _HUB_CLIP


def read_sibling(checkpoint: Path) -> SiblingFacts:
    """What `<stem>.yaml` beside `checkpoint` says, Stable Diffusion 1.5's values where it says nothing or is missing.

    Raises FormatError for a file that is not YAML or has text where a number belongs, UnsupportedModelError for
    parameterizations other than eps and v and for other than 1000 timesteps.
    """
    path = checkpoint.with_suffix(".yaml")
    if not path.is_file():
        return SiblingFacts()
    params = _table(_load_yaml(path), "model", "params")
    unet = _table(params, "unet_config", "params")
    clip = _table(params, "cond_stage_config", "params")
    default = SiblingFacts()
    check_num_timesteps(int(_number(path, params, "timesteps", 1000)), checkpoint.name)
    num_heads = int(_number(path, unet, "num_heads", default.num_heads))
    head_channels = int(_number(path, unet, "num_head_channels", -1))
    return SiblingFacts(
        num_heads=num_heads if num_heads > 0 else default.num_heads,
        num_head_channels=head_channels if head_channels > 0 else None,
        prediction_type=_prediction_type(path, params),
        latent_scale=_number(path, params, "scale_factor", default.latent_scale),
        linear_start=_number(path, params, "linear_start", default.linear_start),
        linear_end=_number(path, params, "linear_end", default.linear_end),
        clip_version=_expand(str(clip.get("version") or default.clip_version)),
    )


def find_clip_folder(checkpoint: Path, version: str) -> Path | None:
    """The folder with config.json that `version` names, or None.

    The WebUI takes a relative name from its working directory; beside the checkpoint, and from every folder above it,
    the name is looked for too, so that the model also works outside the WebUI.
    """
    name = Path(version)
    starts = [Path(), *checkpoint.absolute().parents]
    candidates = [start / name for start in starts] + [checkpoint.parent / name.name]
    return next((folder for folder in candidates if (folder / "config.json").is_file()), None)


def _load_yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FormatError(
            f"{path} cannot be read: {error}.", "Correct or delete it; without it the model counts as a plain SD 1.5."
        ) from error


def _table(data: Any, *names: str) -> Mapping[str, Any]:
    """The table at this place; empty when there is none."""
    for name in names:
        data = data.get(name) if isinstance(data, Mapping) else None
    return data if isinstance(data, Mapping) else {}


def _number(path: Path, table: Mapping[str, Any], name: str, default: float) -> float:
    value = table.get(name)
    if value is None:
        return default
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path}: {name} is {value!r}, not a number.", "Correct the file.") from error


def _prediction_type(path: Path, params: Mapping[str, Any]) -> str:
    value = params.get("parameterization", "eps")
    if value not in _PREDICTION_TYPES:
        raise UnsupportedModelError(
            f"{path}: parameterization is {value!r}; accepted are 'eps' and 'v'.", "Choose another model."
        )
    return _PREDICTION_TYPES[value]


def _expand(text: str) -> str:
    """Replace OmegaConf's `${oc.env:NAME,default}`, as the WebUI does."""
    return _ENVIRONMENT.sub(lambda match: os.environ.get(match[1].strip()) or (match[2] or "").strip(), text)
