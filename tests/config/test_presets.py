"""Every cell of the matrix of purposes and families: it loads strictly, and each of its numbers has its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from extensions_lib.config.codec import dump, load
from extensions_lib.config.job import TrainJobConfig
from extensions_lib.config.methods import METHOD_CONFIGS
from extensions_lib.config.presets import (
    FAMILY_NAMES,
    PRESETS,
    default_preset,
    merge,
    method_of,
    preset_reasons,
    preset_values,
)
from extensions_lib.config.presets.families import ALL, OVERLAYS, PARTS
from extensions_lib.config.presets.purposes import PURPOSES

JOB = {"name": "cat", "base_model": "m.safetensors", "dataset": {"folder": "p"}}
CELLS = [(preset, family) for preset in PRESETS for family in FAMILY_NAMES]


def job(preset: str, family: str) -> TrainJobConfig:
    return load({**JOB, "preset": preset, "family": family})


def leaves(table: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{before}{key}.")
        elif f"{before}{key}" != "method.kind":
            yield before + key


@pytest.mark.parametrize(("preset", "family"), CELLS)
def test_every_cell_loads_and_every_number_has_a_reason_of_one_line(preset: str, family: str) -> None:
    config = job(preset, family)
    assert load(dump(config)) == config
    assert config.training.num_steps > 0
    values, reasons = preset_values(preset, family), preset_reasons(preset, family)
    assert set(leaves(values)) == set(reasons)
    for path, because in reasons.items():
        section, _, name = path.partition(".")
        assert values[section][name] == because.value
        assert 10 < len(because.reason) < 90
        assert "\n" not in because.reason


def test_all_purposes_are_of_a_method_and_each_method_has_one() -> None:
    assert {method_of(name) for name in PURPOSES} == set(METHOD_CONFIGS)
    assert [default_preset(kind) for kind in ("lora", "textual_inversion")] == ["lora_character", "embedding_subject"]
    with pytest.raises(KeyError):
        default_preset("magic")


def test_every_overlay_is_for_something_there_is() -> None:
    scopes = {ALL, *PURPOSES, *(method_of(name) for name in PURPOSES)}
    assert {scope for overlay in OVERLAYS.values() for scope in overlay} <= scopes
    assert {part for parts in PARTS.values() for part in parts} == set(OVERLAYS)
    assert preset_values("lora_character") == preset_values("lora_character", "sd1") == PRESETS["lora_character"]


# The matrix of start values: rank / alpha, rate, the text encoder's, samples, pictures a step, side.
@pytest.mark.parametrize(
    ("preset", "family", "expected"),
    [
        ("lora_character", "sd1", (16, 8.0, 2e-4, 5e-5, 2400, 2, 512, "min_snr")),
        ("lora_style", "sd1", (32, 16.0, 1e-4, 2e-5, 4000, 4, 512, "min_snr")),
        ("lora_character", "sd2", (16, 8.0, 1e-4, None, 2400, 2, 512, "min_snr")),
        ("lora_character", "sd2_v", (16, 8.0, 1e-4, None, 2400, 2, 768, "none")),
        ("lora_character", "sdxl", (32, 16.0, 1e-4, None, 2400, 2, 1024, "min_snr")),
        ("lora_style", "sdxl", (32, 16.0, 1e-4, None, 5000, 4, 1024, "min_snr")),
        ("lora_character", "sdxl_v", (32, 16.0, 1e-4, None, 2400, 2, 1024, "none")),
        ("lora_loha", "sd1", (8, 4.0, 2e-4, 5e-5, 2400, 2, 512, "min_snr")),
        ("lora_loha", "sd2_v", (8, 4.0, 1e-4, None, 2400, 2, 768, "none")),
        ("lora_loha", "sdxl", (8, 4.0, 1e-4, None, 2400, 2, 1024, "min_snr")),
        ("lora_quick_look", "sdxl", (8, 8.0, 2e-4, None, 600, 2, 1024, "min_snr")),
    ],
)
def test_the_cells_of_loras(preset: str, family: str, expected: tuple[Any, ...]) -> None:
    config = job(preset, family)
    method, training = config.method, config.training
    text_rate = method.text_encoder_learning_rate if method.train_text_encoder else None
    assert expected == (
        method.rank, method.alpha, config.optimizer.learning_rate, text_rate, training.num_samples,
        training.samples_per_step, config.dataset.resolution_px, training.loss_weighting,
    )  # fmt: skip


@pytest.mark.parametrize(("family", "rate"), [("sd1", 2e-4), ("sd2_v", 1e-4), ("sdxl", 1e-4), ("sdxl_v", 1e-4)])
def test_the_cells_of_lokr(family: str, rate: float) -> None:
    config = job("lora_lokr", family)
    assert (config.method.algorithm, config.method.lokr_whole, config.method.lokr_factor) == ("lokr", True, 8)
    assert config.optimizer.learning_rate == rate


@pytest.mark.parametrize(
    ("preset", "family", "expected"),
    [
        ("embedding_subject", "sd1", (4, 2e-3, 0.0, 1500, 512, "none")),
        ("embedding_subject", "sd2_v", (4, 1e-3, 0.0, 1500, 768, "none")),
        ("embedding_subject", "sdxl", (4, 2e-3, 0.05, 1500, 1024, "none")),
        ("embedding_style", "sd1", (8, 1e-3, 0.0, 2500, 512, "none")),
        ("embedding_style", "sdxl", (8, 1e-3, 0.025, 2500, 1024, "none")),
        ("embedding_webui", "sd2", (1, "5e-3:200, 1e-3:1000, 5e-4", 0.0, 2000, 512, "none")),
    ],
)
def test_the_cells_of_embeddings(preset: str, family: str, expected: tuple[Any, ...]) -> None:
    config = job(preset, family)
    assert expected == (
        config.method.vectors_per_token, config.optimizer.learning_rate, config.method.relative_learning_rate,
        config.training.num_steps, config.dataset.resolution_px, config.training.loss_weighting,
    )  # fmt: skip
    assert config.optimizer.weight_decay == 0.0


@pytest.mark.parametrize(
    ("preset", "family", "expected"),
    [
        ("dreambooth_face", "sd1", ("adamw", 1e-6, 1e-6, 1000, 2, 512)),
        ("dreambooth_object", "sd1", ("adamw", 2e-6, 1e-6, 600, 2, 512)),
        ("dreambooth_face", "sd2_v", ("adamw", 1e-6, None, 1000, 2, 768)),
        ("dreambooth_object", "sd2_v", ("adamw", 1e-6, None, 1000, 2, 768)),
        ("dreambooth_face", "sdxl", ("adafactor", 5e-6, None, 1500, 2, 1024)),
    ],
)
def test_the_cells_of_dreambooth(preset: str, family: str, expected: tuple[Any, ...]) -> None:
    config = job(preset, family)
    method = config.method
    text_rate = method.text_encoder_learning_rate if method.train_text_encoder else None
    assert expected == (
        config.optimizer.optimizer, config.optimizer.learning_rate, text_rate, config.training.num_steps,
        config.training.samples_per_step, config.dataset.resolution_px,
    )  # fmt: skip
    assert config.training.loss_weighting == "none"


def test_the_cell_of_hypernetworks() -> None:
    config = job("hypernetwork_style", "sd1")
    assert (config.method.layer_structure, config.optimizer.learning_rate, config.training.num_steps) == (
        "1, 2, 1", 1e-5, 5000,
    )  # fmt: skip


def test_what_the_user_gives_wins_over_the_family() -> None:
    table = {**JOB, "preset": "lora_character", "family": "sdxl", "method": {"kind": "lora", "rank": 3}}
    assert (load(table).method.rank, load(table).method.alpha) == (3, 16.0)
    assert load({**table, "dataset": {"folder": "p", "resolution_px": 640}}).dataset.resolution_px == 640


def test_merging_leaves_both_tables_as_they_are() -> None:
    under, over = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}, "e": 5}
    assert merge(under, over) == {"a": {"b": 4, "c": 2}, "d": 3, "e": 5}
    assert (under, over) == ({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}, "e": 5})
