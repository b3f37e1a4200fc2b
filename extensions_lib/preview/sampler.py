"""Draws pictures with the model in memory, leaving no trace in it.

Letters: B pictures drawn together, C latent channels, H W latent size (pixels / 8), K chunks of 77 tokens, D text
width.
The trainer's own sampler rather than the WebUI's: it needs no swap of models through the GPU, and touches neither
the global random state nor the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import ConfigError, Problem, TrainingError
from ..models.predict import PIXELS_PER_LATENT, predict
from ..models.text import Conditioning, batch_chunks, encode_prompts
from .schedulers import SamplerKind, build_scheduler, sampler_kind

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from ..models.bundle import ModelBundle

LATENT_CHANNELS = 4
AUTOCAST_DEVICES = ("cpu", "cuda")  # others have none in the oldest torch we support
NO_TOKENS: Mapping[str, Sequence[int]] = {}


def sample_image(
    bundle: ModelBundle,
    *,
    prompt: str,
    negative_prompt: str = "",
    seed: int,
    width_px: int,
    height_px: int,
    num_steps: int,
    guidance_scale: float,
    sampler: str,
    clip_skip: int = 1,
    tokens: Mapping[str, Sequence[int]] = NO_TOKENS,
    boundary: Callable[[], None],
    adapters: Sequence[nn.Module] = (),
) -> Image.Image:
    """One RGB picture; see `sample_images`."""
    (image,) = sample_images(
        bundle,
        prompt=prompt,
        negative_prompt=negative_prompt,
        seeds=(seed,),
        width_px=width_px,
        height_px=height_px,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
        clip_skip=clip_skip,
        tokens=tokens,
        boundary=boundary,
        adapters=adapters,
    )
    return image


def sample_images(
    bundle: ModelBundle,
    *,
    prompt: str,
    negative_prompt: str = "",
    seeds: Sequence[int],
    width_px: int,
    height_px: int,
    num_steps: int,
    guidance_scale: float,
    sampler: str,
    clip_skip: int = 1,
    tokens: Mapping[str, Sequence[int]] = NO_TOKENS,
    boundary: Callable[[], None],
    adapters: Sequence[nn.Module] = (),
    max_batch: int = 8,
) -> list[Image.Image]:
    """One RGB picture per seed, of the same prompt, at most `max_batch` of them in memory at once.

    A seed gives the same starting noise on every device and in every company: it is drawn on the CPU from the
    seed's own generator, and an ancestral sampler's later noise too. `guidance_scale` 1 skips the negative prompt
    and half the work. `tokens` maps trigger words to the ids of their vectors. `boundary` is called before every
    step and may raise. `adapters` are modules outside the networks (a LoRA's) that shall not drop out meanwhile.

    Training flags are as before afterwards, on errors too; no gradient is recorded, autocast is off.
    Raises ConfigError for a size that is no multiple of 8, an unknown sampler or less than one step, and
    TrainingError when the model answers with NaN.
    """
    kind = sampler_kind(sampler)
    _check_numbers(width_px, height_px, num_steps)
    shape = (LATENT_CHANNELS, height_px // PIXELS_PER_LATENT, width_px // PIXELS_PER_LATENT)
    images: list[Image.Image] = []
    with _undisturbed(bundle, adapters):
        prompts = (prompt,) if guidance_scale == 1 else (negative_prompt, prompt)
        conditioning = _encode(bundle, prompts, tokens, clip_skip)
        for first in range(0, len(seeds), max_batch):
            noise = _SeededNoise.of(seeds[first : first + max_batch], shape)
            scheduler = build_scheduler(
                kind, bundle.alphas_cumprod, bundle.family.prediction_type, num_steps, bundle.unet.device
            )
            latents = _denoise(bundle, scheduler, kind, noise, conditioning, guidance_scale, boundary)
            images.extend(_decode(bundle, single) for single in latents.split(1))
    return images


def _check_numbers(width_px: int, height_px: int, num_steps: int) -> None:
    problems = []
    for name, value in (("width_px", width_px), ("height_px", height_px)):
        if value < PIXELS_PER_LATENT or value % PIXELS_PER_LATENT:
            below = max(value // PIXELS_PER_LATENT, 1) * PIXELS_PER_LATENT
            nearest = f"{below}" if value < below else f"{below} and {below + PIXELS_PER_LATENT}"
            problems.append(Problem(name, f"is {value}; accepted are multiples of 8, the nearest: {nearest}"))
    if num_steps < 1:
        problems.append(Problem("num_steps", f"is {num_steps}; accepted is 1 or more"))
    if problems:
        raise ConfigError(problems)


@dataclass(frozen=True)
class _SeededNoise:
    """`start` (B, C, H, W) float32 on the CPU, and the generators it came from, one per picture."""

    start: Tensor
    generators: list[torch.Generator]

    @classmethod
    def of(cls, seeds: Sequence[int], shape: tuple[int, int, int]) -> _SeededNoise:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return cls(torch.stack([torch.randn(shape, generator=generator) for generator in generators]), generators)


@contextmanager
def _undisturbed(bundle: ModelBundle, adapters: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode, no gradients, no autocast; every module's training flag is put back at the end."""
    networks = tuple(bundle.parts.values())
    roots = (*networks, *adapters)
    was_training = {module: module.training for root in roots for module in root.modules()}
    try:
        for root in roots:
            root.eval()
        with torch.no_grad(), ExitStack() as stack:
            for device_type in sorted({root.device.type for root in networks} & set(AUTOCAST_DEVICES)):
                stack.enter_context(torch.autocast(device_type, enabled=False))
            yield
    finally:
        for module, flag in was_training.items():
            module.training = flag


def _encode(
    bundle: ModelBundle, prompts: Sequence[str], tokens: Mapping[str, Sequence[int]], clip_skip: int
) -> Conditioning:
    """(len(prompts), 77 * K, D) on the UNet's device and in its dtype; K is that of the longest prompt.

    Of two prompts the first is the negative one; where the WebUI makes an empty one zeros, so it is here.
    """
    chunks = [bundle.tokenizer.chunks(prompt, tokens) for prompt in prompts]
    ids = batch_chunks(chunks, bundle.tokenizer)
    conditioning = encode_prompts(bundle, ids, clip_skip).to(bundle.unet.device, bundle.unet.dtype)
    if bundle.family.zeroes_empty_negative and len(prompts) == 2 and not prompts[0]:
        return conditioning.zeroed(0)
    return conditioning


def _denoise(
    bundle: ModelBundle,
    scheduler: SchedulerMixin,
    kind: SamplerKind,
    noise: _SeededNoise,
    conditioning: Conditioning,
    guidance_scale: float,
    boundary: Callable[[], None],
) -> Tensor:
    """Latents (B, C, H, W) float32 from pure noise; arithmetic between the forwards is float32 whatever the UNet is."""
    latents = noise.start.to(bundle.unet.device) * scheduler.init_noise_sigma
    num_copies = len(conditioning)
    height_px, width_px = (PIXELS_PER_LATENT * side for side in latents.shape[-2:])
    conditioning = conditioning.repeated(len(latents))
    sizes = torch.tensor([[height_px, width_px, 0, 0, height_px, width_px]] * len(conditioning), device=latents.device)
    step_options = {"generator": noise.generators} if kind.draws_noise else {}
    for timestep in scheduler.timesteps:
        boundary()
        inputs = scheduler.scale_model_input(latents, timestep).repeat(num_copies, 1, 1, 1)
        model_pred = predict(bundle, inputs, timestep, conditioning, sizes).float()
        if num_copies == 2:
            unguided, guided = model_pred.chunk(2)
            model_pred = unguided + guidance_scale * (guided - unguided)
        latents = scheduler.step(model_pred, timestep, latents, return_dict=False, **step_options)[0]
    return _require_finite(latents, "UNet", str(bundle.unet.dtype))


def _decode(bundle: ModelBundle, latents: Tensor) -> Image.Image:
    """The RGB picture of latents (1, C, H, W); decoded one by one, because the decoder needs far more memory."""
    vae = bundle.vae
    scaled = (latents / bundle.family.latent_scale).to(vae.device, vae.dtype)
    decoded = _require_finite(vae.decode(scaled, return_dict=False)[0].float(), "VAE", str(vae.dtype))
    pixels = ((decoded[0] + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def _require_finite(values: Tensor, part: str, dtype: str) -> Tensor:
    if torch.isfinite(values).all():
        return values
    raise TrainingError(
        f"The preview cannot be drawn: the {part} ({dtype.removeprefix('torch.')}) answered with NaN or infinity.",
        "If the loss is still a number, use a wider precision for this part; otherwise lower the learning rate.",
    )
