"""The texts of a diffusers folder: which pipeline it is, the settings of its networks, its schedule and tokenizers.

`DiffusionPipeline.from_pretrained` reads the folder with them, without a network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .bundle import ModelBundle
from .sibling import SiblingFacts
from .vocabulary import write_vocabulary

Table = dict[str, Any]

# Family -> the pipeline for text, and the one for inpainting.
PIPELINES = {
    "sd1": ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"),
    "sd2": ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"),
    "sdxl": ("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline"),
}
_PIXELS_PER_LATENT = 8
_SD2_BASE_PX = 512  # SD 2 that predicts noise is of this size, the one that predicts v of the family's
_START, _END = "<|startoftext|>", "<|endoftext|>"


def write_folder_texts(bundle: ModelBundle, facts: SiblingFacts, folder: Path) -> None:
    """Write all but the weights to `folder`, which exists. `facts` are those of the checkpoint's yaml."""
    texts: dict[str, Table] = {"model_index.json": _model_index(bundle)}
    texts["scheduler/scheduler_config.json"] = _scheduler(bundle, facts)
    texts |= {f"{part}/config.json": table for part, table in _configs(bundle).items()}
    for name, table in texts.items():
        _write_json(folder / name, table)
    for kind in bundle.family.text_encoders:
        _write_tokenizer(folder / kind.part.replace("text_encoder", "tokenizer"), kind.pad_id)


def _model_index(bundle: ModelBundle) -> Table:
    import diffusers

    family = bundle.family
    networks = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", _scheduler_class(bundle)],
    }
    for kind in family.text_encoders:
        networks[kind.part] = ["transformers", type(bundle.text_encoders[kind.part]).__name__]
        networks[kind.part.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if family.has_size_conditioning:
        further: Table = {"force_zeros_for_empty_prompt": family.zeroes_empty_negative}
    else:
        further = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    return {
        "_class_name": PIPELINES[family.name][bundle.is_inpainting],
        "_diffusers_version": diffusers.__version__,
        **dict(sorted((further | networks).items())),
    }


def _scheduler_class(bundle: ModelBundle) -> str:
    return "EulerDiscreteScheduler" if bundle.family.has_size_conditioning else "DDIMScheduler"


def _scheduler(bundle: ModelBundle, facts: SiblingFacts) -> Table:
    import diffusers

    has_zero_snr = bundle.has_zero_terminal_snr
    own = {} if bundle.family.has_size_conditioning else {"clip_sample": False, "set_alpha_to_one": False}
    return {
        "_class_name": _scheduler_class(bundle),
        "_diffusers_version": diffusers.__version__,
        "beta_schedule": "scaled_linear",
        "beta_start": facts.linear_start,
        "beta_end": facts.linear_end,
        "num_train_timesteps": len(bundle.alphas_cumprod),
        "prediction_type": bundle.family.prediction_type,
        "rescale_betas_zero_snr": has_zero_snr,
        # Only a schedule that ends at the last timestep begins with the pure noise that such a model was taught.
        "timestep_spacing": "trailing" if has_zero_snr else "leading",
        "steps_offset": 1,
        "trained_betas": None,
        **own,
    }


def _configs(bundle: ModelBundle) -> dict[str, Table]:
    """The settings of each network, as its library writes them."""
    pixels = _native_px(bundle)
    unet: Table = json.loads(bundle.unet.to_json_string()) | {"sample_size": pixels // _PIXELS_PER_LATENT}
    if bundle.family.is_probed and bundle.family.prediction_type == "v_prediction":
        unet["upcast_attention"] = True  # in half precision its attention overflows
    vae: Table = json.loads(bundle.vae.to_json_string()) | {"sample_size": pixels}
    texts = {
        part: json.loads(module.config.to_json_string()) | {"architectures": [type(module).__name__]}
        for part, module in bundle.text_encoders.items()
    }
    return {"unet": unet, "vae": vae, **texts}


def _native_px(bundle: ModelBundle) -> int:
    is_small = bundle.family.is_probed and bundle.family.prediction_type == "epsilon"
    return _SD2_BASE_PX if is_small else bundle.family.native_resolution_px


def _write_tokenizer(folder: Path, pad_id: int | None) -> None:
    """OpenAI's, which all families share; they differ in what fills a prompt up."""
    folder.mkdir(parents=True)
    write_vocabulary(folder)
    vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    pad = next((token for token, number in vocabulary.items() if number == pad_id), _END)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "do_lower_case": True,
            "add_prefix_space": False,
            "errors": "replace",
            "bos_token": _START,
            "eos_token": _END,
            "unk_token": _END,
            "pad_token": pad,
        },
    )


def _write_json(path: Path, table: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
