"""Preview pictures of a run: the base model's once, then one a prompt and step, and the grid of all."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..config.job import TrainJobConfig
from ..config.preview import PreviewPrompt, caption_of
from ..formats.atomic import write_bytes_atomic
from ..methods.base import Trainable
from ..models.bundle import ModelBundle
from ..preview.grid import folder_rows, picture_name, render_grid
from ..preview.record import write_prompts
from ..preview.sampler import sample_image
from .batches import PicturesAndCaptions

GRID_NAME = "grid.png"


def no_boundary() -> None:
    """For drawing outside a job, where nothing can ask it to stop."""


def prompts_for(config: TrainJobConfig, pictures: PicturesAndCaptions) -> tuple[PreviewPrompt, ...]:
    """The prompts asked for; else the trigger word, and the first picture's own caption.

    Of a negative embedding: the caption without the word, drawn with the word in the negative prompt and without it.
    """
    if config.preview.prompts:
        return config.preview.prompts
    caption = pictures.captions.caption(pictures.dataset.examples[0], seed=0, epoch=0)
    if config.is_negative:
        text = _without(caption, config.new_words) or "a photo"
        return (PreviewPrompt(prompt=text, negative_prompt="[name]"), PreviewPrompt(prompt=text))
    return tuple(PreviewPrompt(prompt=text) for text in dict.fromkeys(("[name]", caption or "[name]")))


def _without(caption: str, words: Iterable[str]) -> str:
    """`caption` without any of `words`, and without the commas and blanks that are left over."""
    for word in words:
        caption = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "", caption, flags=re.IGNORECASE)
    parts = (" ".join(part.split()) for part in caption.split(","))
    return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Previewer:
    """Draws the prompts of a run into `folder`. The random state of the training is untouched."""

    config: TrainJobConfig
    bundle: ModelBundle
    trainable: Trainable
    prompts: tuple[PreviewPrompt, ...]
    folder: Path
    boundary: Callable[[], None]

    def draw(self, step: int) -> tuple[Path, Path]:
        """Pictures after `step` steps, the base model's too where they are missing. Returns (first picture, grid)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_prompts(self.folder, self.prompts)
        for index, prompt in enumerate(self.prompts):
            base = self.folder / picture_name(None, index)
            if not base.exists():
                with self.trainable.multiplied(0.0):
                    self._draw(prompt, base)
            self._draw(prompt, self.folder / picture_name(step, index))
        grid = self.folder / GRID_NAME
        columns = [self._text(caption_of(prompt)) for prompt in self.prompts]
        _save_png(render_grid(columns, folder_rows(self.folder, len(columns))), grid)
        return self.folder / picture_name(step, 0), grid

    def newest_png(self) -> bytes | None:
        """The newest picture of the first prompt, for the card; None before there is one."""
        pictures = sorted(self.folder.glob("[0-9]*-0.png"))
        return pictures[-1].read_bytes() if pictures else None

    def _draw(self, prompt: PreviewPrompt, path: Path) -> None:
        side = self.config.dataset.resolution_px
        image = sample_image(
            self.bundle,
            prompt=self._text(prompt.prompt),
            negative_prompt=self._text(prompt.negative_prompt),
            seed=prompt.seed,
            width_px=prompt.width_px or side,
            height_px=prompt.height_px or side,
            num_steps=prompt.num_steps,
            guidance_scale=prompt.guidance_scale,
            sampler=prompt.sampler,
            clip_skip=self.config.training.clip_skip,
            tokens=self.trainable.all_tokens,
            boundary=self.boundary,
            adapters=(self.trainable.module,),
        )
        _save_png(image, path)

    def _text(self, text: str) -> str:
        return text.replace("[name]", self.config.trigger_word)


def _save_png(image: Image.Image, path: Path) -> None:
    write_bytes_atomic(path, png_bytes(image), overwrite=True)


def png_bytes(image: Image.Image) -> bytes:
    """`image` as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
