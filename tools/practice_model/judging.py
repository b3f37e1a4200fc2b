"""Drawing prompts with the trained networks, and judging the pictures by their pixels."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from extensions_lib.models.tokenizer import PromptTokenizer
from extensions_lib.practice import drawing, scorer

from .networks import SCALE_FACTOR, new_text_encoder, new_unet, new_vae
from .pictures import sheet, to_pictures
from .workers import log


def token_ids(captions: list[str]) -> torch.Tensor:
    """CLIP tokens (B, 77): start, words, then end tokens to the end as Stable Diffusion 1 pads."""
    tokenizer = PromptTokenizer.from_open_clip()
    known = {caption: tokenizer.chunks(caption)[0] for caption in dict.fromkeys(captions)}
    return torch.tensor([known[caption] for caption in captions])


def load_models(out: Path) -> tuple[Any, Any, Any]:
    """UNet, text encoder and VAE from the state dicts of `save_models`, for drawing."""
    from safetensors.torch import load_file

    models = {"unet": new_unet(), "text_encoder": new_text_encoder(), "vae": new_vae()}
    for name, model in models.items():
        model.load_state_dict(load_file(out / f"{name}.safetensors"))
        model.eval().requires_grad_(False)
    return models["unet"], models["text_encoder"], models["vae"]


@torch.no_grad()
def draw(
    models: tuple[Any, Any, Any], prompts: list[str], seed: int, num_steps: int = 20, cfg: float = 5.0
) -> list[Image.Image]:
    """One picture for each prompt, with DPM++ 2M and classifier-free guidance `cfg`."""
    from diffusers import DPMSolverMultistepScheduler

    unet, text_encoder, vae = models
    scheduler = DPMSolverMultistepScheduler(1000, 0.00085, 0.012, "scaled_linear", steps_offset=1)
    scheduler.set_timesteps(num_steps)
    states = text_encoder(token_ids(prompts + [""] * len(prompts)))[0]
    latents = torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    for timestep in scheduler.timesteps:
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(torch.cat([latents, latents]), timestep, states, return_dict=False)[0].float()
        conditional, empty = predicted.chunk(2)
        latents = scheduler.step(empty + cfg * (conditional - empty), timestep, latents, return_dict=False)[0]
    return to_pictures(vae.decode(latents / SCALE_FACTOR, return_dict=False)[0])


def score(out: Path, num_prompts: int, seed: int) -> None:
    """Draw prompts of random colours, shapes and backgrounds; log how often the picture shows what was asked."""
    rng = random.Random(f"score {seed}")
    scenes = [drawing.random_scene(rng) for _ in range(num_prompts)]
    prompts = [f"a {scene.colour} {scene.shape} on a {scene.background} background" for scene in scenes]
    models = load_models(out)
    pictures = [p for i in range(0, len(prompts), 50) for p in draw(models, prompts[i : i + 50], seed + i)]
    sheet(pictures[:48], 12).save(out / "score.png")
    readings = [scorer.read_picture(picture) for picture in pictures]
    for attribute in ("colour", "shape", "background"):
        hits = sum(getattr(r, attribute) == getattr(s, attribute) for r, s in zip(readings, scenes, strict=True))
        log(f"{attribute} right: {hits} of {num_prompts} = {hits / num_prompts:.1%}")
