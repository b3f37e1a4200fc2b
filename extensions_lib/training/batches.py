"""The pictures and texts of a micro-batch: a pure function of (seed, step, micro-batch).

Letters: B examples, C latent channels, H W latent size (pixels / 8).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.job import TrainJobConfig
from ..data.caption_maker import CaptionMaker
from ..data.dataset import Dataset
from ..data.encode import sample_latents
from ..data.latent_cache import CachedLatents
from ..data.stream import BatchPlan, group_by_bucket
from ..diffusion.timesteps import step_generator


@dataclass(frozen=True)
class PicturesAndCaptions:
    """A dataset with its latents and the texts that go with it."""

    dataset: Dataset
    latents: CachedLatents
    captions: CaptionMaker


@dataclass(frozen=True)
class Batch:
    """`latents` (B, C, H, W) scaled; `sizes` (B, 6) of `Example.sizes`; `masks` (B, 1, H, W) or None."""

    latents: Tensor
    texts: list[str]
    sizes: Tensor
    masks: Tensor | None
    names: list[str]


class Batches:
    """The micro-batches of a set of pictures, on `device`; `latent_scale` is the family's."""

    def __init__(
        self, pictures: PicturesAndCaptions, config: TrainJobConfig, latent_scale: float, device: torch.device
    ) -> None:
        self._pictures, self._dataset, self._training = pictures, config.dataset, config.training
        self._scale, self._device = latent_scale, device
        self._plan = BatchPlan(
            group_by_bucket(pictures.dataset.examples),
            batch_size=config.training.train_batch_size,
            seed=config.training.seed,
            flip=config.dataset.flip,
        )

    def num_in_step(self, step: int) -> int:
        """Examples of all micro-batches of a step; the last batch of a bucket may be a small one."""
        count = self._training.gradient_accumulation_steps
        return sum(len(self._plan.micro_batch(step * count + place)) for place in range(count))

    def get(self, step: int, place: int, captions: CaptionMaker | None = None, *, shift: int = 0) -> Batch:
        """The micro-batch at `place` of a step's; with its own texts, or those of other `captions`.

        What is drawn of the latents' distribution depends on (step, place + `shift`).
        """
        index, seed = step * self._training.gradient_accumulation_steps + place, self._training.seed
        refs, epoch = self._plan.micro_batch(index), self._plan.epoch_of(index)
        is_random = self._dataset.latent_sampling == "random"
        generator = step_generator(seed, step, place + shift, "latents") if is_random else None
        latents = sample_latents(*self._pictures.latents.stack(refs), generator, self._scale).to(self._device)
        examples = [self._pictures.dataset.examples[ref.example_index] for ref in refs]
        maker = captions or self._pictures.captions
        pairs = list(zip(examples, refs, strict=True))
        masks = None
        if self._dataset.use_alpha_masks:
            weights = self._pictures.latents.stack_weights(refs, self._dataset.unmasked_weight)
            masks = weights.to(self._device)
        return Batch(
            latents=latents,
            texts=[maker.caption(example, seed=seed, epoch=epoch, repeat=ref.repeat) for example, ref in pairs],
            sizes=torch.tensor([example.sizes(flip=ref.flip) for example, ref in pairs], device=self._device),
            masks=masks,
            names=[example.name for example in examples],
        )
