"""Prior preservation: the second loss of a step, and the class pictures it may need.

L = mean(L_instance) + weight * mean(L_class), each a mean over all of a step's examples of that kind, noise levels
weighted in both before. Sources: Ruiz et al. 2022, "DreamBooth"; the variant without pictures asks the frozen base.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config.job import TrainJobConfig
from ..config.prior import PriorConfig
from ..control import JobControl
from ..data.caption_maker import CaptionMaker, Template
from ..data.example import Example
from ..errors import OutputError
from ..events import EventStream, PhaseProgress
from ..formats.atomic import write_bytes_atomic
from ..formats.safetensors_io import data_hash
from ..methods.base import Trainable
from ..models.bundle import ModelBundle
from ..preview.sampler import sample_images
from .actions import MicroBatch
from .batches import Batches
from .conditioning import TextConditioner
from .denoising import Denoiser, LossSettings, NoiseSettings
from .previews import png_bytes

DRAWN_TOGETHER = 4


class RenamedCaptions(CaptionMaker):
    """The captions of a job with the name of the class where they name the subject."""

    def __init__(self, captions: CaptionMaker, word: str, class_prompt: str) -> None:
        self._captions, self._class_prompt = captions.renamed(class_prompt), class_prompt
        self._word = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")

    @property
    def is_constant(self) -> bool:
        """As that of the job's captions."""
        return self._captions.is_constant

    def caption(self, example: Example, *, seed: int, epoch: int, repeat: int = 0) -> str:
        """As that of the job's captions, the word also replaced where a caption spells it out."""
        text = self._captions.caption(example, seed=seed, epoch=epoch, repeat=repeat)
        return self._word.sub(lambda _: self._class_prompt, text)


def class_captions(prior: PriorConfig) -> CaptionMaker:
    """The class prompt for every picture of a folder; without one, and for drawn pictures, each one's own caption."""
    is_given = bool(prior.folder and prior.class_prompt.strip())
    return CaptionMaker(Template((prior.class_prompt.strip() if is_given else "[filewords]",)))


def class_prompts(prior: PriorConfig) -> list[str]:
    """What the base model draws in turn: the parts of the class prompt between bars, each once."""
    return list(dict.fromkeys(part.strip() for part in prior.class_prompt.split("|") if part.strip()))


@dataclass(frozen=True)
class Preservation:
    """The class half of a step. `noise_settings` and `loss_settings` are those of the instance half.

    `batches` are of class pictures; with `class_texts` they are the subject's own under those captions, and the frozen
    base gives the target.
    """

    batches: Batches
    instance_batches: Batches
    conditioner: TextConditioner
    denoiser: Denoiser
    noise_settings: NoiseSettings
    loss_settings: LossSettings
    trainable: Trainable
    weight: float
    num_micro_batches: int
    class_texts: CaptionMaker | None = None

    def losses(self, step: int, place: int) -> MicroBatch:
        """The losses of the class half's micro-batch at `place`, each weighted so that the two means add up."""
        batch_losses = self._with_pictures if self.class_texts is None else self._with_the_base
        losses, names = batch_losses(step, place)
        share = self.weight * self.instance_batches.num_in_step(step) / self.batches.num_in_step(step)
        return MicroBatch(losses, torch.full_like(losses, share), names, is_prior=True)

    def _with_pictures(self, step: int, place: int) -> tuple[Tensor, list[str]]:
        """Class pictures are learnt like any others, with noise of their own."""
        shifted = self.num_micro_batches + place
        batch = self.batches.get(step, place, shift=self.num_micro_batches)
        noise, timesteps = self.denoiser.draw(batch.latents, self.noise_settings, step, shifted)
        conditioning = self.conditioner(batch.texts)
        losses = self.denoiser.losses(
            batch.latents, conditioning, batch.sizes, noise, timesteps, self.loss_settings, batch.masks
        )
        return losses, batch.names

    def _with_the_base(self, step: int, place: int) -> tuple[Tensor, list[str]]:
        """On the instance half's noisy latents, but told of the class, the model shall answer as the base does."""
        batch = self.batches.get(step, place, self.class_texts)
        noise, timesteps = self.denoiser.draw(batch.latents, self.noise_settings, step, place)
        noisy_latents = self.denoiser.noisy(batch.latents, noise, timesteps)
        with torch.no_grad(), self.trainable.multiplied(0.0):
            target = self.denoiser.predict(noisy_latents, timesteps, self.conditioner(batch.texts), batch.sizes)
        prediction = self.denoiser.predict(noisy_latents, timesteps, self.conditioner(batch.texts), batch.sizes)
        return self.denoiser.judged(prediction, target, timesteps, self.loss_settings), batch.names


def draw_class_pictures(
    config: TrainJobConfig, bundle: ModelBundle, cache: Path, events: EventStream, control: JobControl
) -> Path:
    """The folder below `cache` with the class pictures the base model draws; only missing ones are drawn.

    It is named by all that decides how they look. Raises JobStopped, OutputError or DiskFullError.
    """
    prompts, total = class_prompts(config.prior), config.prior.num_class_images
    folder = cache / _fingerprint(config, bundle)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error}.", "Choose another runs_folder.") from error
    missing = {
        prompt: [seed for seed in range(place, total, len(prompts)) if not picture_path(folder, seed).exists()]
        for place, prompt in enumerate(prompts)
    }
    done = total - sum(map(len, missing.values()))
    for prompt, seeds in missing.items():
        for first in range(0, len(seeds), DRAWN_TOGETHER):
            events.emit(PhaseProgress(phase="draw class pictures", done=done, total=total))
            together = seeds[first : first + DRAWN_TOGETHER]
            _draw(config, bundle, prompt, together, folder, control)
            done += len(together)
    events.emit(PhaseProgress(phase="draw class pictures", done=total, total=total))
    return folder


def _draw(
    config: TrainJobConfig, bundle: ModelBundle, prompt: str, seeds: list[int], folder: Path, control: JobControl
) -> None:
    """One picture a seed, each with its prompt as its caption beside it."""
    images = sample_images(
        bundle,
        prompt=prompt,
        seeds=seeds,
        width_px=_side(config),
        height_px=_side(config),
        num_steps=config.prior.num_steps,
        guidance_scale=config.prior.guidance_scale,
        sampler=config.prior.sampler,
        clip_skip=config.training.clip_skip,
        boundary=control.boundary,
    )
    for seed, image in zip(seeds, images, strict=True):
        path = picture_path(folder, seed)
        write_bytes_atomic(path.with_suffix(".txt"), prompt.encode(), overwrite=True)
        write_bytes_atomic(path, png_bytes(image), overwrite=True)


def picture_path(folder: Path, seed: int) -> Path:
    """The class picture drawn with `seed`."""
    return folder / f"class-{seed:06d}.png"


def _side(config: TrainJobConfig) -> int:
    """The resolution, on the sampler's grid."""
    return max(config.dataset.resolution_px // 8 * 8, 8)


def _fingerprint(config: TrainJobConfig, bundle: ModelBundle) -> str:
    prior = config.prior
    base = bundle.source.sha256 or data_hash(bundle.unet.state_dict())
    looks = (
        base, config.vae, prior.class_prompt.strip(), _side(config), prior.num_steps, prior.guidance_scale,
        prior.sampler, config.training.clip_skip,
    )  # fmt: skip
    return hashlib.sha256(repr(looks).encode()).hexdigest()[:16]
