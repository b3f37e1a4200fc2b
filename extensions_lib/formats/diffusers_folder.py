"""What a diffusers folder is, from its texts and the headers of its weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ..config.json_text import parse_json
from ..errors import FormatError
from .safetensors_io import read_header

_FAMILY_BY_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl"}


def describe_folder(folder: Path) -> dict[str, object]:
    """The facts of `inspect.describe_file`, for a folder. Raises FormatError for a folder that is no model."""
    index = _table(folder / "model_index.json")
    unet, scheduler = _table(folder / "unet" / "config.json"), _table(folder / "scheduler" / "scheduler_config.json")
    if not index or not unet:
        raise FormatError(
            f"{folder} is no diffusers model: model_index.json or unet/config.json is missing or damaged.",
            "Choose a file, or the folder that holds model_index.json.",
        )
    weights = [path for path in sorted(folder.glob("*/*.safetensors")) if path.parent.name in index]
    headers = [read_header(path)[0] for path in weights]
    variants = ["inpainting"] if unet.get("in_channels") == 9 else []
    if scheduler.get("prediction_type") == "v_prediction":
        variants.append("v_prediction")
    return {
        "file": str(folder),
        "size_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "kind": "checkpoint",
        "family": _FAMILY_BY_WIDTH.get(unet.get("cross_attention_dim"), ""),
        "variant": ", ".join(variants),
        "num_tensors": sum(map(len, headers)),
        "dtypes": dict(Counter(info.dtype for header in headers for info in header.values())),
        "details": {"pipeline": index.get("_class_name"), "parts": [path.parent.name for path in weights]},
        "trained_on": {},
        "lineage": [],
        "made_by": [f"diffusers {index['_diffusers_version']}"] if "_diffusers_version" in index else [],
        "problems": [],
        "metadata": {},
        "hashes": {},
    }


def _table(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
