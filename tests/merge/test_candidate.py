"""What would be written, without writing: the very tensors of the file, wherever it would have gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from extensions_lib.config.tools import load_tool
from extensions_lib.control import JobControl
from extensions_lib.errors import ConfigError, JobStopped
from extensions_lib.events import Event, PhaseProgress
from extensions_lib.formats.safetensors_io import read_tensors
from extensions_lib.merge.candidate import candidate_of
from extensions_lib.ports import Candidate

from ..model_families import FamilyModels
from .conftest import small_lora


def tensors_of(candidate: Candidate) -> dict[str, Tensor]:
    return dict(candidate.tensors(JobControl(), lambda event: None))


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


@pytest.mark.parametrize("formula", ["weighted_sum", "cosine_a", "ties"])
def test_a_merge_has_the_tensors_of_its_file(formula: str, abc: list[Path], merge: Callable[..., Any]) -> None:
    written = merge(abc[:2], formula=formula, alpha="0.3").path
    # The name is taken: where it would go does not matter.
    table = {"models": [{"path": str(path)} for path in abc[:2]], "formula": formula, "alpha": "0.3"}
    candidate = candidate_of(load_tool("merge", table | {"name": written.stem, "folder": str(written.parent)}))
    expected = read_tensors(written)
    assert same(tensors_of(candidate), expected)
    assert {name: tuple(tensor.shape) for name, tensor in expected.items()} == candidate.shapes
    assert candidate.title == f"{formula} of {abc[0].stem} + {abc[1].stem}; alpha 0.3"
    assert candidate.family == "sd1"


def test_a_bake_has_the_tensors_of_its_file(
    tmp_path: Path, family_models: FamilyModels, baking: Callable[..., Any]
) -> None:
    base = family_models["sd2"]
    lora = small_lora(tmp_path, "style.safetensors", ("lora_te_text_model_encoder_layers_1_self_attn_k_proj", 128, 128))
    network = {"path": str(lora), "strength": "0.7"}
    written = baking(base, network).path
    candidate = candidate_of(
        load_tool("bake", {"base": str(base), "networks": [network], "name": "x", "dtype": "fp32"})
    )
    assert same(tensors_of(candidate), read_tensors(written))
    assert candidate.title == f"{base.stem} with style (0.7)"


def test_it_can_be_stopped_and_says_how_far_it_is(abc: list[Path]) -> None:
    table = {"models": [{"path": str(path)} for path in abc[:2]], "name": "x"}
    candidate = candidate_of(load_tool("merge", table))
    control, events = JobControl(), list[Event]()
    tensors = candidate.tensors(control, events.append)
    next(tensors)
    assert events == [PhaseProgress(phase="merge", done=1, total=len(candidate.shapes))]
    control.request_stop()
    with pytest.raises(JobStopped):
        list(tensors)


def test_other_tools_make_no_candidate(abc: list[Path]) -> None:
    with pytest.raises(ConfigError, match="accepted are merge, bake"):
        candidate_of(load_tool("extract", {"base": str(abc[0]), "tuned": str(abc[1]), "name": "x"}))
