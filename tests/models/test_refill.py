"""A bundle with the tensors of another checkpoint predicts and decodes what a bundle of that checkpoint does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from extensions_lib.formats.safetensors_io import read_tensors, write_atomic
from extensions_lib.models.ldm import bundle_to_ldm
from extensions_lib.models.load import load_bundle
from extensions_lib.models.refill import Refill

from ..model_families import FamilyModels


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_tensor_finds_its_place(family: str, family_models: FamilyModels, tmp_path: Path) -> None:
    bundle = load_bundle(family_models[family])
    tensors = read_tensors(family_models[family])
    others = {name: tensor + 0.5 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    folder = shutil.copytree(family_models[family].parent, tmp_path / "models")
    path = write_atomic(folder / family_models[family].name, others, {}, overwrite=True)
    pointers = [parameter.data_ptr() for part in bundle.parts.values() for parameter in part.parameters()]
    refill = Refill(bundle)
    assert refill([("no.such.tensor", torch.ones(1)), *others.items()]) == len(refill._part_of)
    expected, found = load_bundle(path), bundle
    for part, module in expected.parts.items():
        state = found.parts[part].state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    assert pointers == [parameter.data_ptr() for part in bundle.parts.values() for parameter in part.parameters()]
    refill(tensors.items())
    back = bundle_to_ldm(bundle)
    assert all(torch.equal(back[name], tensors[name]) for name in refill._part_of)
