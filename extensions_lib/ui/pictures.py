"""The preview pictures of a run and its results, as HTML."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..config.job import TrainJobConfig
from ..config.preview import PreviewPrompt, caption_of
from ..errors import ExtensionError
from ..jobs.status import JobStatus, SavedResult
from ..jobs.store import RunFolder
from ..preview.grid import picture_name
from ..preview.record import read_prompts
from .infotext import infotext, names_of_words, preview_prompt, prompt_text, use_note
from .markup import attributes, button, job_button, part, picture_link, preview_url, said, use_button

MAX_MOMENTS = 40  # keeps a fragment small; the others are in the run's folder
SMALL_PX = 128


@dataclass(frozen=True)
class RunPictures:
    """What is known of a run's previews: its settings (None when they cannot be read), prompts, and files."""

    job_id: str
    config: TrainJobConfig | None
    prompts: tuple[PreviewPrompt, ...]
    stamps: dict[str, int]

    @classmethod
    def of(cls, folder: RunFolder) -> RunPictures:
        """Read a run's folder."""
        try:
            config = folder.training()
        except (ExtensionError, ValueError):
            config = None
        prompts = read_prompts(folder.previews)
        if not prompts and config is not None:
            prompts = config.preview.prompts or (PreviewPrompt(prompt="[name]"),)
        return cls(folder.job_id, config, prompts, _stamps(folder.previews))

    @property
    def is_small(self) -> bool:
        """Whether the pictures are so small that they are enlarged in whole pixels."""
        return self.config is not None and self.config.dataset.resolution_px <= SMALL_PX

    def size_px(self, index: int) -> tuple[int, int] | None:
        """Width and height of a prompt's pictures."""
        if self.config is None:
            return None
        prompt, side = self.prompts[index], self.config.dataset.resolution_px
        return prompt.width_px or side, prompt.height_px or side

    def text(self, index: int) -> str:
        """The prompt as it was drawn."""
        text = caption_of(self.prompts[index])
        return preview_prompt(text, self.config) if self.config is not None else text

    def link(self, step: int | None, index: int) -> str:
        """A thumbnail, '' when there is no such picture."""
        name = picture_name(step, index)
        if name not in self.stamps:
            return ""
        caption = "base model" if step is None else f"step {step}"
        class_ = "ts-thumb ts-pixels" if self.is_small else "ts-thumb"
        url = preview_url(self.job_id, name, self.stamps[name])
        return picture_link(url, f"{self.text(index)}, {caption}", class_, self.size_px(index))


def _stamps(folder: Path) -> dict[str, int]:
    """When each picture in the folder was written."""
    stamps = {}
    for path in folder.glob("*.png"):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            stamps[path.name] = path.stat().st_mtime_ns
    return stamps


def timeline(status: JobStatus, pictures: RunPictures) -> str:
    """One row a prompt: the base model's picture, then each preview, the newest at the end."""
    steps = status.preview_steps[-MAX_MOMENTS:]
    if not steps and picture_name(None, 0) not in pictures.stamps:
        return ""
    left_out = len(status.preview_steps) - len(steps)
    note = f'<p class="ts-note">The first {left_out} previews are in the run\'s folder.</p>' if left_out else ""
    return note + "".join(_row(pictures, index, steps) for index in range(len(pictures.prompts)))


def _row(pictures: RunPictures, index: int, steps: Sequence[int]) -> str:
    newest = steps[-1] if steps else None
    figures = [_figure(pictures.link(None, index), "base model", "ts-base")]
    figures += [
        _figure(pictures.link(step, index), f"step {step}", "ts-newest" if step == newest else "") for step in steps
    ]
    strip = attributes(class_="ts-strip", data_ts_keep=f"strip-{index}-{pictures.job_id}", tabindex=0, role="group")
    return (
        f'<div class="ts-prompt-row"><p class="ts-prompt">{escape(pictures.text(index))}</p>'
        f"<div{strip}>{''.join(figures)}</div></div>"
    )


def _figure(link: str, caption: str, class_: str) -> str:
    inner = link or '<span class="ts-gap">no picture</span>'
    return f"<figure{attributes(class_=class_ or None)}>{inner}<figcaption>{escape(caption)}</figcaption></figure>"


def results(status: JobStatus, pictures: RunPictures, has_prompt: bool) -> str:
    """Every saved step: its file, what the host said of it, its previews, and what can be done with it."""
    saved = sorted(status.results, key=lambda result: result.step)
    items = "".join(_result(status, result, pictures, has_prompt) for result in saved)
    return f'<ul class="ts-results">{items}</ul>' if items else ""


def _result(status: JobStatus, saved: SavedResult, pictures: RunPictures, has_prompt: bool) -> str:
    path = Path(saved.path)
    return (
        f'<li class="ts-result"><div class="ts-result-text">'
        f'<p><strong{attributes(title=str(path))}>{escape(path.name)}</strong> <span class="ts-note">step {saved.step}'
        f"</span></p>{said(saved)}"
        f'<div class="ts-buttons">{_use(status, path, pictures, has_prompt)}{_keep(status, saved, path)}</div></div>'
        f'<div class="ts-result-pictures">{_drawn(saved, pictures, has_prompt)}</div></li>'
    )


def _use(status: JobStatus, path: Path, pictures: RunPictures, has_prompt: bool) -> str:
    names = names_of_words(pictures.config, path.stem) if pictures.config is not None else {}
    text = prompt_text(status.method, path.stem, names.get(status.trigger_word, status.trigger_word))
    is_negative = pictures.config is not None and pictures.config.is_negative
    return use_button(text, use_note(status.method, path.name), has_prompt, is_negative=is_negative)


def _keep(status: JobStatus, saved: SavedResult, path: Path) -> str:
    others = sum(other.step != saved.step for other in status.results)
    if others < 1 or status.is_active or status.state == "queued":
        return ""
    files = "the other result file" if others == 1 else f"the other {others} result files"
    question = f"Keep {path.name} and delete {files} of this run? This cannot be undone."
    return job_button("Keep only this one", status.job_id, "keep", {"step": saved.step}, confirm=question)


def _drawn(saved: SavedResult, pictures: RunPictures, has_prompt: bool) -> str:
    """The previews of that step, each with the way to draw it again."""
    parts = []
    for index, prompt in enumerate(pictures.prompts):
        link = pictures.link(saved.step, index)
        if link and pictures.config is not None:
            text = infotext(pictures.config, prompt, Path(saved.path).stem)
            again = (
                button(
                    "Reproduce",
                    reproduce=text,
                    title="Reproduce this preview: sets prompt, seed, size, sampler in txt2img",
                )
                if has_prompt
                else button("Copy settings", copy=text, title="Prompt, seed, size and sampler of this preview")
            )
            parts.append(f"<figure>{link}<figcaption>{again}</figcaption></figure>")
    return "".join(parts)


def picture_parts(status: JobStatus, folder: RunFolder, has_prompt: bool) -> str:
    """The parts of the page with previews and results."""
    pictures = RunPictures.of(folder)
    return part("timeline", timeline(status, pictures), "Previews") + part(
        "results", results(status, pictures, has_prompt), "Results"
    )
