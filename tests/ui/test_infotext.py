"""Generation parameters in the WebUI's format, read back with the WebUI's own rules."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from extensions_lib.config.preview import SAMPLERS, PreviewPrompt
from extensions_lib.ui.infotext import WEBUI_SAMPLERS, infotext, prompt_text, use_note

from .runs import job_config

# modules/infotext_utils.py of A1111 1.10: how one parameter of the last line is recognised.
WEBUI_PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def read_back(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and parameters as the WebUI takes them from an infotext."""
    *lines, last = text.strip().split("\n")
    prompt, negative, is_negative = [], [], False
    for line in lines:
        if line.startswith("Negative prompt:"):
            is_negative, line = True, line[16:].strip()
        (negative if is_negative else prompt).append(line)
    values = {
        name: json.loads(value) if value.startswith('"') else value for name, value in WEBUI_PARAMETER.findall(last)
    }
    return "\n".join(prompt), "\n".join(negative), values


def test_statement_30_a_preview_is_described_with_prompt_negative_seed_and_size() -> None:
    prompt = PreviewPrompt(
        prompt="a [name] on grass", negative_prompt="blurry, [name]", seed=7, width_px=96, num_steps=12,
        guidance_scale=6.5, sampler="dpmpp_2m_karras",
    )  # fmt: skip
    config = job_config(dataset={"folder": "/p", "resolution_px": 64, "trigger_word": "zword"})
    assert infotext(config, prompt, "zbadge-000400") == (
        "a zword on grass <lora:zbadge-000400:1>\n"
        "Negative prompt: blurry, zword\n"
        "Steps: 12, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 7, Size: 96x64, "
        "Model: practice, RNG: CPU"
    )


def test_the_webui_reads_it_back() -> None:
    config = job_config(
        base_model="/models/mine, v1.5: best.safetensors", training={"max_train_steps": 10, "clip_skip": 2}
    )
    prompt = PreviewPrompt(prompt="first line\nsecond, line: [name]", negative_prompt="bad\nworse")
    assert read_back(infotext(config, prompt, "zbadge")) == (
        "first line\nsecond, line: zbadge <lora:zbadge:1>",
        "bad\nworse",
        {
            "Steps": "20",
            "Sampler": "DPM++ 2M",
            "Schedule type": "Uniform",
            "CFG scale": "7",
            "Seed": "1",
            "Size": "64x64",
            "Model": "mine, v1.5: best",
            "RNG": "CPU",
            "Clip skip": "2",
        },
    )


def test_an_empty_negative_prompt_is_said_too() -> None:
    assert "\nNegative prompt: \n" in infotext(job_config(), PreviewPrompt(prompt="[name]"), "zbadge")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a [name], blue", "a zemb-000400, blue"),
        ("zemb and zembra", "zemb-000400 and zembra"),
        ("(zemb:1.2)", "(zemb-000400:1.2)"),
    ],
)
def test_an_embedding_is_called_by_its_file(text: str, expected: str) -> None:
    config = job_config("zemb", "textual_inversion")
    assert read_back(infotext(config, PreviewPrompt(prompt=text), "zemb-000400"))[0] == expected


def test_every_word_of_a_run_is_called_by_the_file_of_that_step() -> None:
    method = {"kind": "textual_inversion", "further_words": ["zemb hat", "zbag"]}
    config = job_config("zemb", "textual_inversion", method=method)
    prompt = PreviewPrompt(prompt="a [name], a zemb hat and zbags", negative_prompt="zbag")
    text, negative, _ = read_back(infotext(config, prompt, "zemb-000400"))
    assert text == "a zemb-000400, a zemb hat-000400 and zbags"
    assert negative == "zbag-000400"
    assert read_back(infotext(config, prompt, "zemb"))[0] == "a zemb, a zemb hat and zbags"


@pytest.mark.parametrize(("embedding_files", "word"), [("bundled", "zword"), ("beside", "zword-000400")])
def test_a_word_inside_a_lora_keeps_its_name(embedding_files: str, word: str) -> None:
    dataset = {"folder": "/p", "trigger_word": "zword"}
    config = job_config("zlora", method={"kind": "pivotal", "embedding_files": embedding_files}, preset="",
                        dataset=dataset)  # fmt: skip
    text = read_back(infotext(config, PreviewPrompt(prompt="a [name]"), "zlora-000400"))[0]
    assert text == f"a {word} <lora:zlora-000400:1>"


def test_every_sampler_has_a_name_in_the_webui() -> None:
    assert set(WEBUI_SAMPLERS) == set(SAMPLERS)


@pytest.mark.parametrize("name", ["v1-5.safetensors", "v1-5.ckpt", "v1-5"])
def test_model_is_named_as_the_webui_does(name: str) -> None:
    values: dict[str, Any] = read_back(
        infotext(job_config(base_model=f"/models/{name}"), PreviewPrompt(prompt="x"), "zbadge")
    )[2]
    assert values["Model"] == "v1-5"


def test_what_calls_a_result() -> None:
    assert prompt_text("lora", "zbadge-000400", "zword") == "<lora:zbadge-000400:1> zword"
    assert prompt_text("lora", "zbadge", "") == "<lora:zbadge:1>"
    assert prompt_text("textual_inversion", "zemb-000400", "zemb") == "zemb-000400"
    assert prompt_text("of an older version", "zbadge", "zword") == "zword"


def test_a_hypernetwork_has_a_tag_of_its_own() -> None:
    assert prompt_text("hypernetwork", "zbadge-000400", "zword") == "<hypernet:zbadge-000400:1> zword"
    config = job_config(kind="hypernetwork", dataset={"folder": "/p", "trigger_word": "zword"})
    text = infotext(config, PreviewPrompt(prompt="a [name]"), "zbadge-000400")
    assert read_back(text)[0] == "a zword <hypernet:zbadge-000400:1>"


def test_a_checkpoint_is_the_model_and_has_to_be_selected() -> None:
    assert prompt_text("dreambooth", "zbadge-000400", "zword") == "zword"
    assert use_note("dreambooth", "zbadge.safetensors") == "select zbadge.safetensors as the checkpoint yourself"
    assert use_note("textual_inversion", "zemb.safetensors") == "nothing else changes"
    config = job_config(kind="dreambooth")
    prompt, _, values = read_back(infotext(config, PreviewPrompt(prompt="a [name]"), "zbadge-000400"))
    assert (prompt, values["Model"]) == ("a zbadge", "zbadge-000400")
