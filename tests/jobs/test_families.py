from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.config.presets import preset_values
from extensions_lib.formats.safetensors_io import write_atomic
from extensions_lib.jobs.families import family_of, read_job, with_family


@pytest.fixture
def sdxl(tmp_path: Path) -> Path:
    tensors = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3),
               "conditioner.embedders.1.model.token_embedding.weight": torch.zeros(4, 4)}  # fmt: skip
    return write_atomic(tmp_path / "xl.safetensors", tensors, {})


@pytest.mark.parametrize("base", ["", "  ", None, 5, ["x"], "none.safetensors", "a\0b", "/"])
def test_what_cannot_be_told_is_left_open(base: Any) -> None:
    assert family_of(base) == "auto"
    assert with_family({"base_model": base}) == {"base_model": base}


def test_a_job_has_the_start_values_of_its_base_model(sdxl: Path, tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    table = {"name": "cat", "base_model": str(sdxl), "method": "lora", "dataset": {"folder": "p"}}
    path.write_text(json.dumps(table), encoding="utf-8")
    job = read_job(path)
    assert (job.family, job.method.rank, job.dataset.resolution_px) == ("sdxl", 32, 1024)
    assert preset_values("lora_character", "sdxl")["method"]["rank"] == 32


def test_a_family_that_is_given_stays(sdxl: Path) -> None:
    assert with_family({"base_model": str(sdxl), "family": "sd2"})["family"] == "sd2"
    assert with_family({"base_model": str(sdxl), "family": "auto"})["family"] == "sdxl"
