"""The settings of the three networks of Stable Diffusion 1.5, as diffusers and transformers write them.

What a checkpoint's shapes show replaces the value here. In the UNet's file `attention_head_dim` is, as in diffusers'
own SD 1.x configs, the NUMBER of heads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def base_config(part: str) -> dict[str, Any]:
    """A fresh copy of the settings of 'unet', 'vae' or 'text_encoder'."""
    return json.loads((_FOLDER / f"sd1_{part}.json").read_text(encoding="utf-8"))
