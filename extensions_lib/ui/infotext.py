"""Generation parameters of a preview picture, in the text format that the WebUI reads back."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..config.job import TrainJobConfig
from ..config.preview import PreviewPrompt

# Names of sampler and schedule in A1111 1.10. Its 'Automatic' means Karras for DPM++ 2M, and even spacing elsewhere.
WEBUI_SAMPLERS = {
    "ddim": ("DDIM", "Automatic"),
    "euler": ("Euler", "Automatic"),
    "euler_a": ("Euler a", "Automatic"),
    "heun": ("Heun", "Automatic"),
    "dpmpp_2m": ("DPM++ 2M", "Uniform"),
    "dpmpp_2m_karras": ("DPM++ 2M", "Karras"),
}


def prompt_text(kind: str, stem: str, trigger_word: str) -> str:
    """What calls a result file in a prompt: '<lora:cat:1> zcat', or an embedding's own name."""
    return f"<lora:{stem}:1> {trigger_word}".rstrip() if kind == "lora" else stem


def preview_prompt(text: str, config: TrainJobConfig) -> str:
    """The prompt as it was drawn, [name] replaced by the trigger word."""
    return text.replace("[name]", config.trigger_word)


def infotext(config: TrainJobConfig, prompt: PreviewPrompt, stem: str) -> str:
    """The parameters with which the WebUI draws `prompt` with the result file called `stem`.

    A LoRA's tag is appended; an embedding is called by its file's name, so that stands for the trigger word.
    """
    texts = [preview_prompt(text, config) for text in (prompt.prompt, prompt.negative_prompt)]
    if config.method.kind == "lora":
        texts[0] = f"{texts[0]} <lora:{stem}:1>".lstrip()
    else:
        texts = [_renamed(text, config.trigger_word, stem) for text in texts]
    sampler, schedule = WEBUI_SAMPLERS[prompt.sampler]
    side = config.dataset.resolution_px
    parameters = {
        "Steps": prompt.num_steps,
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": f"{prompt.guidance_scale:g}",
        "Seed": prompt.seed,
        "Size": f"{prompt.width_px or side}x{prompt.height_px or side}",
        "Model": re.sub(r"\.(safetensors|ckpt)$", "", Path(config.base_model).name),
        "RNG": "CPU",
    }
    if config.training.clip_skip != 1:
        parameters["Clip skip"] = config.training.clip_skip
    last = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in parameters.items())
    return f"{texts[0]}\nNegative prompt: {texts[1]}\n{last}"


def _renamed(text: str, word: str, stem: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", lambda _: stem, text)


def _quoted(value: str) -> str:
    """As the WebUI quotes a value that holds one of its own separators."""
    return json.dumps(value, ensure_ascii=False) if any(sign in value for sign in ",:\n") else value
