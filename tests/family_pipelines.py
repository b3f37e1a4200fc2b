"""diffusers' own pipeline around a bundle's networks: sampling and conditioning that are not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.vocabulary import write_vocabulary
from extensions_lib.preview.schedulers import betas_of


def make_pipeline(bundle: ModelBundle, folder: Path) -> Any:
    """A text-to-image pipeline of SD 1, SD 2 or SDXL with Euler's method; `folder` receives the tokenizer's files.

    The tokenizers fill up as those of the families do: CLIP-L with end tokens, OpenCLIP with '!', id 0.
    """
    import diffusers
    from transformers import CLIPTokenizer

    write_vocabulary(folder)
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    tokenizers = {
        kind.part.replace("text_encoder", "tokenizer"): CLIPTokenizer(
            *files, model_max_length=77, pad_token="!" if kind.layout == "open_clip" else "<|endoftext|>"
        )
        for kind in bundle.family.text_encoders
    }
    scheduler = diffusers.EulerDiscreteScheduler(
        trained_betas=betas_of(bundle.alphas_cumprod),
        prediction_type=bundle.family.prediction_type,
        timestep_spacing="linspace",
        steps_offset=1,
    )
    parts = {"vae": bundle.vae, "unet": bundle.unet, "scheduler": scheduler, **bundle.text_encoders, **tokenizers}
    if bundle.family.name == "sdxl":
        pipeline = diffusers.StableDiffusionXLPipeline(add_watermarker=False, **parts)
    else:
        pipeline = diffusers.StableDiffusionPipeline(
            safety_checker=None, feature_extractor=None, requires_safety_checker=False, **parts
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
