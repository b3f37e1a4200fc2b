"""Generation parameters of a preview picture, in the text format that the WebUI reads back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from ..config.artefacts import ARTEFACTS
from ..config.job import TrainJobConfig
from ..config.methods import artefact_kind
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


def prompt_text(method: str, stem: str, trigger_word: str) -> str:
    """What calls a method's result file in a prompt: '<lora:cat:1> zcat', an embedding's name, a checkpoint's word."""
    artefact = ARTEFACTS.get(artefact_kind(method))
    return artefact.call(stem, trigger_word) if artefact is not None else trigger_word


def use_note(method: str, filename: str) -> str:
    """What the user has to know besides when the prompt is changed for a result file."""
    if artefact_kind(method) == "checkpoint":
        return f"select {filename} as the checkpoint yourself"
    return "nothing else changes"


def preview_prompt(text: str, config: TrainJobConfig) -> str:
    """The prompt as it was drawn, [name] replaced by the trigger word."""
    return text.replace("[name]", config.trigger_word)


def infotext(config: TrainJobConfig, prompt: PreviewPrompt, stem: str) -> str:
    """The parameters with which the WebUI draws `prompt` with the result file called `stem`.

    A LoRA's or hypernetwork's tag is appended; an embedding is called by its file's name, so that stands for the
    trigger word; a checkpoint is the model itself.
    """
    artefact = ARTEFACTS[config.method.artefact_kind]
    texts = [preview_prompt(text, config) for text in (prompt.prompt, prompt.negative_prompt)]
    texts = [_renamed(text, names_of_words(config, stem)) for text in texts]
    if artefact.has_trigger_word:
        texts[0] = f"{texts[0]} {artefact.tag.format(stem=stem)}".strip()
    model = stem if config.method.artefact_kind == "checkpoint" else Path(config.base_model).name
    sampler, schedule = WEBUI_SAMPLERS[prompt.sampler]
    side = config.dataset.resolution_px
    parameters = {
        "Steps": prompt.num_steps,
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": f"{prompt.guidance_scale:g}",
        "Seed": prompt.seed,
        "Size": f"{prompt.width_px or side}x{prompt.height_px or side}",
        "Model": re.sub(r"\.(safetensors|ckpt)$", "", model),
        "RNG": "CPU",
    }
    if config.training.clip_skip != 1:
        parameters["Clip skip"] = config.training.clip_skip
    last = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in parameters.items())
    return f"{texts[0]}\nNegative prompt: {texts[1]}\n{last}"


def names_of_words(config: TrainJobConfig, stem: str) -> dict[str, str]:
    """What calls the words that are files of their own: those of an earlier step carry it, as the result does."""
    is_embedding = config.method.artefact_kind == "embedding"
    if not is_embedding and getattr(config.method, "embedding_files", "") != "beside":
        return {}
    ending = stem.removeprefix(config.name) if stem.startswith(config.name) else ""
    names = {word: f"{word}{ending}" for word in config.new_words}
    return {**names, config.trigger_word: stem} if is_embedding else names


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """`text` with whole words replaced; the longest counts where one is part of another."""
    words = "|".join(re.escape(word) for word in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<!\w)({words})(?!\w)", lambda match: names[match[1]], text) if words else text


def _quoted(value: str) -> str:
    """As the WebUI quotes a value that holds one of its own separators."""
    return json.dumps(value, ensure_ascii=False) if any(sign in value for sign in ",:\n") else value
