"""What is drawn while the training runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .field import option

SAMPLERS = ("ddim", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_karras")


@dataclass(frozen=True, kw_only=True)
class PreviewPrompt:
    """One preview picture. [name] in the texts becomes the trigger word."""

    prompt: str = option(help="What to draw.")
    negative_prompt: str = option("", help="What not to draw.")
    seed: int = option(1, help="Same seed, same picture.", min=0, max=2**32 - 1)
    width_px: int = option(0, help="0: the training resolution.", unit="px", min=0, max=4096)
    height_px: int = option(0, help="0: the training resolution.", unit="px", min=0, max=4096)
    num_steps: int = option(20, help="Denoising steps.", min=1, max=1000)
    guidance_scale: float = option(7.0, help="How strictly the prompt is followed.", min=0.0, max=100.0)
    sampler: str = option("dpmpp_2m", help="Sampling method.", choices=SAMPLERS)


def caption_of(prompt: PreviewPrompt) -> str:
    """What tells a preview from the others: its prompt, and what is not to be drawn where that is the word itself."""
    return f"{prompt.prompt}, without {prompt.negative_prompt}" if "[name]" in prompt.negative_prompt else prompt.prompt


def prompt_of_line(line: str) -> dict[str, Any]:
    """A line is the prompt."""
    return {"prompt": line}


def line_of_prompt(entry: Mapping[str, Any]) -> str:
    """The prompt is the line."""
    return entry["prompt"]


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Preview pictures, beside the base model's own."""

    every_steps: int = option(0, help="0: eight times in the run.", unit="steps", min=0, max=10_000_000)
    enabled: bool = option(True, help="Draw previews at all.")
    at_start: bool = option(True, help="Draw step 0 too, before anything is learnt.")
    prompts: tuple[PreviewPrompt, ...] = option(
        (),
        help="Empty: one picture of '[name]'.",
        item=PreviewPrompt,
        of_line=prompt_of_line,
        to_line=line_of_prompt,
    )
