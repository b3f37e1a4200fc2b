"""The `<stem>.yaml` beside a checkpoint: what tensor shapes cannot tell. The WebUI reads the same file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError, UnsupportedModelError
from .family import ModelFamily
from .schedule import NUM_TIMESTEPS, check_num_timesteps

_PARAMETERIZATIONS = {"eps": "epsilon", "v": "v_prediction"}
_SCALINGS = {"EpsScaling": "epsilon", "VScaling": "v_prediction"}
_HUB_CLIP = "openai/clip-vit-large-patch14"
_VERSION_LINE = re.compile(r"(\s*version:\s*)([^#]*?)\s*(?:#.*)?$")
_ENVIRONMENT = re.compile(r"\$\{oc\.env:([^,}]+)(?:,([^}]*))?\}")


@dataclass(frozen=True)
class SiblingFacts:
    """The family's values, or those of the yaml.

    The UNet has `num_heads` attention heads everywhere, or heads of `num_head_channels` when that is given.
    `prediction_type` is None where there is no yaml. `clip_version` names the first text encoder, if that is a CLIP-L:
    a folder with its config.json, or OpenAI's.
    """

    num_heads: int
    num_head_channels: int | None
    latent_scale: float
    prediction_type: str | None = None
    linear_start: float = 0.00085
    linear_end: float = 0.012
    clip_version: str = _HUB_CLIP

    @classmethod
    def of(cls, family: ModelFamily) -> SiblingFacts:
        """What holds without a yaml."""
        return cls(family.num_heads, family.head_channels, family.latent_scale)


def sibling_path(checkpoint: Path) -> Path:
    """Where the yaml of a checkpoint is looked for."""
    return checkpoint.with_suffix(".yaml")


def read_sibling(checkpoint: Path, family: ModelFamily) -> SiblingFacts:
    """What `<stem>.yaml` beside `checkpoint` says, the family's values where it says nothing or is missing.

    Both layouts are read: that of SD 1 and 2 (`ldm`), and SDXL's (`sgm`). Raises FormatError for a file that is not
    YAML or has text where a number belongs, UnsupportedModelError for parameterizations other than eps and v and for
    other than 1000 timesteps.
    """
    path, default = sibling_path(checkpoint), SiblingFacts.of(family)
    if not path.is_file():
        return default
    params = _table(_load_yaml(path), "model", "params")
    unet = _table(params, "unet_config", "params") or _table(params, "network_config", "params")
    clip = _table(params, "cond_stage_config", "params") or _first_embedder(params)
    check_num_timesteps(int(_number(path, params, "timesteps", NUM_TIMESTEPS)), checkpoint.name)
    num_heads = int(_number(path, unet, "num_heads", -1))
    head_channels = int(_number(path, unet, "num_head_channels", -1))
    return SiblingFacts(
        num_heads=num_heads if num_heads > 0 else default.num_heads,
        num_head_channels=_head_channels(num_heads, head_channels, default),
        latent_scale=_number(path, params, "scale_factor", default.latent_scale),
        prediction_type=_prediction_type(path, params),
        linear_start=_number(path, params, "linear_start", default.linear_start),
        linear_end=_number(path, params, "linear_end", default.linear_end),
        clip_version=_expand(str(clip.get("version") or default.clip_version)),
    )


def _head_channels(num_heads: int, head_channels: int, default: SiblingFacts) -> int | None:
    """The yaml's width of a head; the family's when the yaml says neither that nor a number of heads."""
    if head_channels > 0:
        return head_channels
    return None if num_heads > 0 else default.num_head_channels


def _first_embedder(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of SDXL's first text encoder."""
    embedders = _table(params, "conditioner_config", "params").get("emb_models")
    return _table(embedders[0], "params") if isinstance(embedders, list) and embedders else {}


def find_clip_folder(checkpoint: Path, version: str) -> Path | None:
    """The folder with config.json that `version` names, or None.

    The WebUI takes a relative name from its working directory; beside the checkpoint, and from every folder above it,
    the name is looked for too, so that the model also works outside the WebUI.
    """
    name = Path(version)
    starts = [Path(), *checkpoint.absolute().parents]
    candidates = [start / name for start in starts] + [checkpoint.parent / name.name]
    return next((folder for folder in candidates if (folder / "config.json").is_file()), None)


def sibling_for_copy(checkpoint: Path, family: ModelFamily, folder: Path) -> bytes | None:
    """The yaml that a checkpoint in `folder` needs to be read like `checkpoint`; None when that has none.

    A copy of the yaml, in which the text encoder's folder is named in full where it would not be found from `folder`.
    """
    path = sibling_path(checkpoint)
    if checkpoint.is_dir() or not path.is_file():
        return None
    version = read_sibling(checkpoint, family).clip_version
    found = find_clip_folder(checkpoint, version)
    if found is None or find_clip_folder(folder.absolute() / checkpoint.name, version) is not None:
        return path.read_bytes()
    full = json.dumps(str(found.absolute()), ensure_ascii=False)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(_with_version(line, version, full) for line in lines).encode("utf-8")


def _with_version(line: str, version: str, full: str) -> str:
    found = _VERSION_LINE.match(line)
    return f"{found[1]}{full}\n" if found and _expand(found[2].strip("'\"")) == version else line


def _load_yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FormatError(
            f"{path} cannot be read: {error}.",
            "Correct or delete it; without it the model counts as a plain one of its kind.",
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
    """SD 1 and 2 say it as `parameterization`, SDXL by the class that scales its answers."""
    scaling = _table(params, "denoiser_config", "params", "scaling_config").get("target")
    if scaling is None:
        name, value, accepted = "parameterization", params.get("parameterization", "eps"), _PARAMETERIZATIONS
    else:
        name, value, accepted = "scaling_config", str(scaling).rpartition(".")[2], _SCALINGS
    if value not in accepted:
        known = " and ".join(map(repr, accepted))
        raise UnsupportedModelError(f"{path}: {name} is {value!r}; accepted are {known}.", "Choose another model.")
    return accepted[value]


def _expand(text: str) -> str:
    """Replace OmegaConf's `${oc.env:NAME,default}`, as the WebUI does."""
    return _ENVIRONMENT.sub(lambda match: os.environ.get(match[1].strip()) or (match[2] or "").strip(), text)
