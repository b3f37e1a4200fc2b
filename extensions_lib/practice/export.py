"""The practice model for a WebUI: the checkpoint, its yaml, and the folder that yaml names.

The WebUI builds a text encoder of another width than CLIP-L's only from a folder with its config and vocabulary.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..errors import OutputError
from ..models.vocabulary import write_vocabulary
from . import practice_checkpoint

CLIP_FOLDER = "practice-clip"
START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL_TOKENS = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}


def export_practice_model(folder: Path) -> list[Path]:
    """Copy everything to `folder`, a WebUI's models/Stable-diffusion. Raises OutputError when it cannot be written."""
    checkpoint = practice_checkpoint()
    clip = folder / CLIP_FOLDER
    try:
        clip.mkdir(parents=True, exist_ok=True)
        for source in (checkpoint, checkpoint.with_suffix(".yaml")):
            shutil.copyfile(source, folder / source.name)
        shutil.copyfile(checkpoint.parent / CLIP_FOLDER / "config.json", clip / "config.json")
        write_vocabulary(clip)
        (clip / "special_tokens_map.json").write_text(json.dumps(SPECIAL_TOKENS), encoding="utf-8")
        config = {**SPECIAL_TOKENS, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
        (clip / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror or error}.", "Choose another folder."
        ) from error
    return [folder / checkpoint.name, folder / f"{checkpoint.stem}.yaml", clip]
