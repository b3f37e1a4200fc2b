"""A job from pictures to a verified file on every family's small model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.config.codec import load
from extensions_lib.control import JobControl
from extensions_lib.events import Event, PreviewReady, StepCompleted, Warned
from extensions_lib.formats.hypernetwork import read_hypernetwork
from extensions_lib.formats.safetensors_io import read_header
from extensions_lib.jobs.run import start
from extensions_lib.models.load import outline_bundle
from extensions_lib.practice.families import VARIANTS

from ..model_families import FamilyModels

TEXT_LAYERS = {"sd1": ("lora_te_",), "sd2": ("lora_te_",), "sdxl": ("lora_te1_", "lora_te2_")}
BASE_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}


@pytest.mark.parametrize("name", ["sd1-v-ztsnr", "sd1-inpaint", "sd2-v", "sdxl", "sdxl-v-ztsnr", "sdxl-inpaint"])
def test_a_lora_is_trained_on_every_family(
    job: Callable[..., dict[str, Any]], family_models: FamilyModels, name: str
) -> None:
    events: list[Event] = []
    table = job(
        base_model=str(family_models[name]),
        method={"kind": "lora", "rank": 2, "alpha": 2.0, "layer_filter": "attn2|self_attn", "train_text_encoder": True},
        training={
            "max_train_steps": 2,
            "train_batch_size": 2,
            "gradient_checkpointing": True,
            "loss_weighting": "debiased",
        },
        preview={"enabled": True, "every_steps": 2, "prompts": [{"prompt": "a [name]", "num_steps": 2}]},
    )
    outcome = start(load(table), JobControl(), (events.append,))
    steps = [event for event in events if isinstance(event, StepCompleted)]
    assert outcome.reason == "completed" and len(steps) == 2
    assert all(math.isfinite(step.loss) and step.loss > 0 for step in steps)
    assert any(isinstance(event, PreviewReady) for event in events)
    assert not [event.text for event in events if isinstance(event, Warned)]
    assert outcome.path is not None
    check_file(outcome.path, VARIANTS[name].family.name)


def check_file(path: Path, family: str) -> None:
    """Every text encoder of the family is in the file, under the names and the version the WebUI knows."""
    header, metadata = read_header(path)
    assert metadata["ss_base_model_version"].startswith(BASE_VERSIONS[family])
    for prefix in TEXT_LAYERS[family]:
        assert any(key.startswith(prefix) for key in header), prefix
    texts = {key.split("_")[1] for key in header if key.startswith("lora_te")}
    assert texts == {prefix.split("_")[1] for prefix in TEXT_LAYERS[family]}


@pytest.mark.parametrize("name", ["sd1-v-ztsnr", "sd1-inpaint", "sd2-v", "sdxl"])
def test_a_hypernetwork_is_trained_on_every_family(
    job: Callable[..., dict[str, Any]], family_models: FamilyModels, name: str
) -> None:
    """It has a pair of networks for each width of the model, in which training left its marks."""
    table = job(
        base_model=str(family_models[name]),
        method={"kind": "hypernetwork", "activation": "relu"},
        optimizer={"learning_rate": 1e-3},
        training={"max_train_steps": 2, "train_batch_size": 2, "gradient_checkpointing": True},
    )
    outcome = start(load(table), JobControl())
    assert outcome.reason == "completed" and outcome.path is not None
    found = read_hypernetwork(outcome.path)
    unet = outline_bundle(family_models[name]).unet
    attentions = [module for module in unet.modules() if type(module).__name__ == "Attention"]
    assert set(found.networks) == {attention.to_k.in_features for attention in attentions}
    assert all(bool(part["linear.2.bias"].any()) for pair in found.networks.values() for part in pair)


def test_a_caveat_is_said_once_at_the_start(job: Callable[..., dict[str, Any]], family_models: FamilyModels) -> None:
    events: list[Event] = []
    table = job(
        base_model=str(family_models["sdxl-v-ztsnr"]),
        method={"kind": "lora", "rank": 2, "layer_filter": "attn2"},
        training={"max_train_steps": 1, "loss_weighting": "min_snr"},
    )
    start(load(table), JobControl(), (events.append,))
    warnings = [event.text for event in events if isinstance(event, Warned)]
    assert len(warnings) == 1 and "pure noise would weigh 0" in warnings[0]
