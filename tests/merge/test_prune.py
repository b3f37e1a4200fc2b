"""Pruning: what stays, what goes, what is repaired, and that nothing is written when something cannot be."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.config.tools import load_tool
from extensions_lib.control import JobControl
from extensions_lib.errors import DiskFullError, FormatError, JobStopped, MergeError, OutputError
from extensions_lib.events import Warned
from extensions_lib.formats import atomic
from extensions_lib.formats.hashes import file_sha256
from extensions_lib.formats.lineage import lineage, lineage_lines
from extensions_lib.formats.safetensors_io import read_header, read_tensors
from extensions_lib.merge.rebuild import rebuild
from extensions_lib.merge.recipe import own_key
from extensions_lib.merge.tools import ToolResult, run_tool
from extensions_lib.models.load import load_bundle

from ..model_families import FAMILY_MODELS
from .conftest import POSITIONS, SHAPES, UNET, small_model, stored

INPUT = UNET + "input_blocks.0.0.weight"
VAE = "first_stage_model."
TABLE = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
LEFTOVERS = {"first_stage_model.loss.logvar": torch.zeros(1), "optimizer.state.0": torch.ones(3)}
SCHEDULE = {"alphas_cumprod": torch.linspace(1, 0.01, 10), "v_pred": torch.tensor([])}


def averaged(tensors: dict[str, torch.Tensor], add: float = 1.0) -> dict[str, torch.Tensor]:
    """LDM's copies of the UNet: no dots in the names."""
    found = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): (tensor.float() + add)
        for name, tensor in tensors.items()
        if name.startswith(UNET)
    }
    return {**found, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}


def pruned(
    path: Path, events: list[Any] | None = None, control: JobControl | None = None, **settings: Any
) -> ToolResult:
    table = {"name": "small", "model": str(path), "folder": str(path.parent / "out"), **settings}
    emit = (events if events is not None else []).append
    return run_tool(load_tool("prune", table), control or JobControl(), emit)


def test_everything_but_the_model_goes_and_fp32_becomes_fp16(tmp_path: Path) -> None:
    model = small_model(0, torch.float32)
    path = stored(tmp_path / "full.safetensors", {**model, **averaged(model), **LEFTOVERS, **SCHEDULE})
    result = pruned(path)
    found = read_tensors(result.path)
    assert found.keys() == {*model, *SCHEDULE}
    for name in SHAPES:
        expected = model[name] if name.startswith(VAE) else model[name].half()
        assert found[name].dtype == expected.dtype and torch.equal(found[name], expected), name
    for name in (*SCHEDULE, "betas"):
        assert torch.equal(found[name], SCHEDULE.get(name, model["betas"])), "schedules keep their precision"
    assert "Left out: averaged weights (7 tensors" in result.text
    assert (
        "leftovers of a training (2 tensors, 0.0 MB): first_stage_model.loss.logvar, optimizer.state.0." in result.text
    )
    assert result.kind == "checkpoint" and "MB became" in result.text


def test_keep_changes_no_number(tmp_path: Path) -> None:
    model = {**small_model(0), UNET + "out.2.bias": torch.tensor([1.0, 2.0, 3.0, 1e6]).bfloat16()}
    path = stored(tmp_path / "a.safetensors", model)
    found = read_tensors(pruned(path, dtype="keep").path)
    assert found.keys() == model.keys()
    assert all(found[name].dtype == model[name].dtype and torch.equal(found[name], model[name]) for name in model)


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_number_formats(tmp_path: Path, dtype: str, expected: torch.dtype) -> None:
    found = read_tensors(pruned(stored(tmp_path / "a.safetensors", small_model(0)), dtype=dtype, vae_dtype="bf16").path)
    assert found[INPUT].dtype == expected and found[VAE + "quant_conv.weight"].dtype == torch.bfloat16
    assert found[POSITIONS].dtype == torch.int64


def test_small_floats_are_read_and_kept(tmp_path: Path) -> None:
    model = {name: t.to(torch.float8_e4m3fn) if name in SHAPES else t for name, t in small_model(0).items()}
    path = stored(tmp_path / "a.safetensors", model)
    kept = read_tensors(pruned(path, dtype="keep").path)[INPUT]
    assert torch.equal(kept.view(torch.uint8), model[INPUT].view(torch.uint8))
    assert torch.equal(read_tensors(pruned(path, name="half").path)[INPUT], model[INPUT].half())


def test_averaged_weights_take_the_unets_place(tmp_path: Path) -> None:
    model = small_model(0, torch.float32)
    path = stored(tmp_path / "full.ckpt", {**model, **averaged(model)})
    result = pruned(path, ema="use", dtype="fp32")
    found = read_tensors(result.path)
    for name in SHAPES:
        assert torch.equal(found[name], model[name] + 1 if name.startswith(UNET) else model[name]), name
    assert "The UNet is the averaged one." in result.text


def test_averaged_weights_that_are_not_there(tmp_path: Path) -> None:
    model = small_model(0)
    path = stored(tmp_path / "plain.safetensors", model)
    with pytest.raises(MergeError, match="plain.safetensors holds none: averaged weights"):
        pruned(path, ema="use")
    some = averaged(model)
    del some["model_ema.diffusion_modelout2bias"]
    path = stored(tmp_path / "some.safetensors", {**model, **some})
    with pytest.raises(MergeError, match=r"lacks 1 of them \(model.diffusion_model.out.2.bias\)"):
        pruned(path, ema="use")
    assert not (tmp_path / "out").exists()


def test_parts_left_out(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.safetensors", small_model(0))
    result = pruned(path, leave_out_vae=True, leave_out_text_encoder=True)
    assert set(read_tensors(result.path)) == {"betas", *(name for name in SHAPES if name.startswith(UNET))}
    assert "Left out: the VAE (2 tensors" in result.text and "Left out: the text encoders (2 tensors" in result.text


@pytest.mark.parametrize("broken", [None, torch.tensor([[0, 1, 2, 2, 4]]), torch.tensor([0.0, 0.9, 2, 3, 4]).half()])
def test_positions_are_repaired(tmp_path: Path, broken: torch.Tensor | None) -> None:
    model = {**small_model(0), TABLE: torch.zeros(5, 8)}
    del model[POSITIONS]
    path = stored(tmp_path / "a.safetensors", model if broken is None else {**model, POSITIONS: broken})
    result = pruned(path)
    assert torch.equal(read_tensors(result.path)[POSITIONS], torch.arange(5)[None])
    assert f"Written anew as whole numbers from 0: {POSITIONS}." in result.text
    assert "Written anew" not in pruned(result.path, folder=str(tmp_path)).text, "a sound file needs no repair"


def broken_model() -> dict[str, torch.Tensor]:
    model = small_model(0, torch.float32)
    model[INPUT][1, 2, 0, :2] = torch.tensor([math.nan, math.inf])
    model[UNET + "out.2.bias"][3] = -math.inf
    return model


def test_nan_is_named_in_every_tensor_and_refused(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.safetensors", broken_model())
    with pytest.raises(MergeError) as caught:
        pruned(path)
    said = str(caught.value)
    assert "2 tensors of a.safetensors cannot be" in said and "set nan to 'zero'" in said
    assert f"\n  {INPUT}: 2 of 72 numbers NaN or infinite" in said
    assert f"\n  {UNET}out.2.bias: 1 of 4 numbers NaN or infinite" in said
    assert list((tmp_path / "out").iterdir()) == []


def test_nan_becomes_zero_when_asked_and_is_told(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.safetensors", broken_model())
    events: list[Any] = []
    result = pruned(path, events, nan="zero", dtype="fp32")
    found, model = read_tensors(result.path), broken_model()
    assert torch.equal(found[INPUT], model[INPUT].nan_to_num(0, 0, 0))
    assert found[UNET + "out.2.bias"][3] == 0
    (warning,) = [event.text for event in events if isinstance(event, Warned)]
    for text in (warning, result.text):
        assert f"{INPUT}: 2 of 72 numbers NaN or infinite" in text


def test_numbers_too_large_for_half_precision(tmp_path: Path) -> None:
    model = small_model(0, torch.float32)
    model[INPUT][0, 0, 0, 0] = 1e5
    path = stored(tmp_path / "a.safetensors", model)
    for nan in ("refuse", "zero"):
        with pytest.raises(MergeError, match=r"1 of 72 numbers too large for the number format\s+Choose bf16 or fp32"):
            pruned(path, nan=nan)
    assert read_tensors(pruned(path, dtype="bf16").path)[INPUT].max() > 9e4


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_every_family_is_the_same_model_afterwards(name: str, tmp_path: Path, family_models: Any) -> None:
    base = family_models[name]
    shutil.copytree(base.parent / "small-clip", tmp_path / "small-clip")
    tensors = {key: t for key, t in read_tensors(base).items() if "position_ids" not in key}
    path = stored(tmp_path / base.name, {**tensors, **averaged(tensors), **LEFTOVERS})
    shutil.copy(base.with_suffix(".yaml"), path.with_suffix(".yaml"))
    result = pruned(path, folder=str(tmp_path), dtype="keep")
    assert [each.name for each in result.beside] == ["small.yaml"]
    before, after = read_tensors(base), read_tensors(result.path)
    assert before.keys() == after.keys()
    assert all(before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]) for key in before)
    assert load_bundle(result.path).family == load_bundle(base).family


def test_the_same_bytes_from_the_recipe(tmp_path: Path) -> None:
    model = {**small_model(0, torch.float32), **LEFTOVERS}
    about = {"modelspec.title": "Mine", "modelspec.hash_sha256": "0xold", "train_studio.merge": "{}", "note": "x"}
    path = stored(tmp_path / "full.safetensors", model, about)
    result = pruned(path)
    metadata = read_header(result.path)[1]
    assert metadata["modelspec.title"] == "Mine" and metadata["note"] == "x"
    assert not {"modelspec.hash_sha256", "train_studio.merge"} & set(metadata)
    recipe = json.loads(metadata[own_key("prune")])
    assert recipe["models"][0]["sha256"] == file_sha256(path) and recipe["settings"]["model"] == "full.safetensors"
    assert lineage_lines("small", lineage(metadata))[0] == "small: Prune"
    path.rename(tmp_path / "renamed.safetensors")
    again = rebuild(result.path, [tmp_path], tmp_path / "again.safetensors", JobControl(), lambda event: event)
    assert again.is_same is True


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": small_model(0), "callbacks": Code()}, tmp_path / "a.ckpt")
    with pytest.raises(FormatError, match="were not loaded"):
        pruned(tmp_path / "a.ckpt")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_mistakes(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.safetensors", small_model(0))
    data = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-10])
    with pytest.raises(FormatError, match="is truncated"):
        pruned(tmp_path / "cut.safetensors")
    lora = stored(tmp_path / "lora.safetensors", {"lora_unet_a.lora_down.weight": torch.ones(2, 3)})
    with pytest.raises(MergeError, match="is no checkpoint that can be used here: it was recognised as 'lora'"):
        pruned(lora)
    with pytest.raises(OutputError, match="is one of the files"):
        pruned(path, name="a", folder=str(tmp_path), overwrite=True)
    result = pruned(path)
    with pytest.raises(OutputError, match="already exists"):
        pruned(path)
    assert pruned(path, overwrite=True).path == result.path and path.read_bytes() == data


@pytest.mark.parametrize("after", [0, 4])
def test_stop_leaves_nothing(tmp_path: Path, after: int) -> None:
    control, path = JobControl(), stored(tmp_path / "a.safetensors", small_model(0))

    class Listening(list):
        def append(self, event: Any) -> None:
            if getattr(event, "phase", "") == "prune" and event.done > after:
                control.request_stop()

    with pytest.raises(JobStopped):
        pruned(path, Listening(), control)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    path = stored(tmp_path / "a.safetensors", small_model(0))
    monkeypatch.setattr(atomic, "_write_through", full)
    with pytest.raises(DiskFullError):
        pruned(path)
    assert list((tmp_path / "out").iterdir()) == []
