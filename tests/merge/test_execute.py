"""Whole merges of small files: what comes out, and that nothing comes out when something is wrong."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from extensions_lib.config.merge import FORMULAS
from extensions_lib.config.tools import load_tool
from extensions_lib.control import JobControl
from extensions_lib.errors import DiskFullError, JobStopped, MergeError
from extensions_lib.events import PhaseProgress, Warned
from extensions_lib.formats import atomic
from extensions_lib.formats.hashes import autov1, file_sha256
from extensions_lib.formats.safetensors_io import read_header, read_tensors
from extensions_lib.merge import work
from extensions_lib.merge.catalogue import METHODS, Ratios
from extensions_lib.merge.execute import execute, merged_tensors
from extensions_lib.merge.plan import key_seed, plan_merge
from extensions_lib.merge.work import is_finite
from extensions_lib.models.load import load_bundle

from .conftest import POSITIONS, SHAPES, UNET, small_model, stored

TOKENS = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
INPUT = UNET + "input_blocks.0.0.weight"


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("formula", FORMULAS)
def test_every_formula_tensor_by_tensor(formula, abc, merge):
    count = max(FORMULAS[formula].min_models, FORMULAS[formula].max_models or 2)
    settings = {"beta": "0.25"} if "beta" in FORMULAS[formula].settings else {}
    found = read_tensors(merge(abc[:count], formula=formula, alpha="0.5", **settings).path)
    models = [read_tensors(path) for path in abc[:count]]
    for name in SHAPES:
        inputs = [model[name].float() for model in models]
        weight = 0.5 if formula == "weighted_sum" else 1.0
        ratios = Ratios(
            alpha=0.5, beta=0.25, weights=(weight,) * (count - 1), density=0.5, epsilon=0.15, top=0.01,
            seeds=tuple(key_seed(0, name, index) for index in range(count - 1)),
        )  # fmt: skip
        if not formula.startswith("cosine"):
            assert torch.equal(found[name], METHODS[formula].merge(inputs, ratios).half()), name
    assert torch.equal(found[POSITIONS], torch.arange(5)[None])
    assert torch.equal(found["betas"], models[0]["betas"])


def test_ratio_zero_is_a_and_one_is_b_to_the_last_bit(abc, merge):
    same(read_tensors(merge(abc[:2], alpha="0").path), read_tensors(abc[0]))
    expected = {**read_tensors(abc[1]), "betas": read_tensors(abc[0])["betas"]}
    same(read_tensors(merge(abc[:2], name="one", alpha="1").path), expected)


def test_several_models_by_weight(abc, merge):
    models = [{"path": str(abc[0])}, {"path": str(abc[1]), "weight": "0.25"}, {"path": str(abc[2]), "weight": "0.5"}]
    found = read_tensors(merge(models).path)[INPUT]
    a, b, c = (read_tensors(path)[INPUT].float() for path in abc)
    torch.testing.assert_close(found.float(), 0.25 * a + 0.25 * b + 0.5 * c, rtol=1e-3, atol=1e-3)


def test_pieces_do_not_show(abc, merge, monkeypatch):
    whole = merge(abc, formula="train_difference").path.read_bytes()
    monkeypatch.setattr(work, "PIECE_NUMBERS", 7)
    assert merge(abc, formula="train_difference", overwrite=True).path.read_bytes() == whole


def test_blocks_layers_and_parts(abc, merge):
    alpha = "0, M00=1, attn2=0.5, TE=1"
    found = read_tensors(merge(abc[:2], alpha=alpha, vae="b").path)
    a, b = read_tensors(abc[0]), read_tensors(abc[1])
    key = UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    assert torch.equal(found[key], torch.lerp(a[key].float(), b[key].float(), 0.5).half())
    for name in SHAPES:
        from_b = name.startswith(("first_stage_model", "cond_stage_model")) or "middle_block" in name
        if name != key:
            assert torch.equal(found[name], (b if from_b else a)[name]), name


def test_the_other_parts_from_other_models(abc, merge):
    found = read_tensors(merge(abc, formula="add_difference", unet="b", text_encoder="c", vae="a").path)
    a, b, c = (read_tensors(path) for path in abc)
    assert torch.equal(found[INPUT], b[INPUT]) and torch.equal(found[TOKENS], c[TOKENS])
    assert torch.equal(found["betas"], b["betas"]), "the schedule belongs to the UNet"
    assert torch.equal(found["first_stage_model.quant_conv.weight"], a["first_stage_model.quant_conv.weight"])


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_number_formats(abc, merge, dtype, torch_dtype):
    found = read_tensors(merge(abc[:2], dtype=dtype).path)
    assert found[INPUT].dtype == torch_dtype and found[POSITIONS].dtype == torch.int64
    assert found["first_stage_model.quant_conv.weight"].dtype == torch.float16, "the VAE as it was"
    assert found["betas"].dtype == torch.float32
    found = read_tensors(merge(abc[:2], name="two", dtype=dtype, vae_dtype="fp32").path)
    assert found["first_stage_model.quant_conv.weight"].dtype == torch.float32


def test_positions_are_never_averaged_and_repaired(tmp_path, merge):
    broken = {**small_model(0), POSITIONS: torch.tensor([[0.0, 0.9, 2.1, 3.0, 4.0]]).half()}
    a = stored(tmp_path / "a.safetensors", broken)
    b = stored(tmp_path / "b.safetensors", small_model(1))
    found = read_tensors(merge([a, b]).path)[POSITIONS]
    assert found.dtype == torch.int64 and found.tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("channels", [9, 8])
def test_a_model_with_more_input_channels_keeps_them(channels, tmp_path, abc, merge):
    wide = small_model(5, **{INPUT: (2, channels, 3, 3)})
    a = stored(tmp_path / "wide.safetensors", wide)
    merged = merge([a, *abc[1:]], formula="add_difference", alpha="0.5")
    found = read_tensors(merged.path)[INPUT]
    b, c = (read_tensors(path)[INPUT].float() for path in abc[1:])
    assert torch.equal(found[:, 4:], wide[INPUT][:, 4:])
    assert torch.equal(found[:, :4], (wide[INPUT][:, :4].float() + 0.5 * (b - c)).half())
    recipe = json.loads(read_header(merged.path)[1]["sd_merge_recipe"])
    assert (recipe["is_inpainting"], recipe["is_instruct_pix2pix"]) == (channels == 9, channels == 8)


def test_markers_and_description_are_kept(tmp_path, abc, merge):
    a = stored(tmp_path / "v.safetensors", {**small_model(7), "v_pred": torch.tensor([]), "ztsnr": torch.tensor([])})
    a.with_suffix(".yaml").write_text("model: {params: {parameterization: v}}\n", encoding="utf-8")
    merged = merge([a, abc[1]])
    assert {"v_pred", "ztsnr"} <= read_header(merged.path)[0].keys()
    assert merged.yaml == merged.path.with_suffix(".yaml")
    assert merged.yaml.read_bytes() == a.with_suffix(".yaml").read_bytes()
    assert read_header(merged.path)[1]["modelspec.prediction_type"] == "v"


def test_a_baked_vae_replaces_every_value(tmp_path, abc, merge):
    vae = {name.removeprefix("first_stage_model."): torch.full(shape, 0.5) for name, shape in SHAPES.items()
           if name.startswith("first_stage_model.")}  # fmt: skip
    vae["loss.logvar"] = torch.zeros(1)
    vae["quant_conv.weight"] = vae["quant_conv.weight"].reshape(4, 4)
    path = stored(tmp_path / "vae.safetensors", vae)
    merged = merge(abc[:2], bake_vae=str(path))
    found = {name: tensor for name, tensor in read_tensors(merged.path).items() if name.startswith("first_stage")}
    assert set(found) == {name for name in SHAPES if name.startswith("first_stage")}
    assert all((tensor == 0.5).all() and tensor.dtype == torch.float32 for tensor in found.values())
    assert found["first_stage_model.quant_conv.weight"].shape == (4, 4, 1, 1)
    assert json.loads(read_header(merged.path)[1]["sd_merge_recipe"])["bake_in_vae"] == "vae.safetensors"


def test_discard(abc, merge):
    found = read_tensors(merge(abc[:2], discard=r"^first_stage_model\.|^betas$").path)
    assert not any(name.startswith(("first_stage", "betas")) for name in found)
    assert INPUT in found


def test_pickles_and_old_names(tmp_path, abc, merge):
    """The WebUI's oldest names of the text encoder, in a .ckpt; copies of the weights (EMA) are not carried along."""
    old = {name.replace(".text_model.", "."): tensor for name, tensor in small_model(1).items()}
    old["model_ema.decay"] = torch.tensor(0.999)
    path = stored(tmp_path / "old.ckpt", old)
    same(read_tensors(merge([abc[0], path]).path), read_tensors(merge(abc[:2], name="new").path))
    assert TOKENS in read_header(merge([path, abc[0]], name="first").path)[0]


def test_random_formulas_depend_on_the_seed_and_not_on_the_order_of_tensors(tmp_path, abc, merge):
    first = read_tensors(merge(abc[:2], formula="dare").path)
    same(read_tensors(merge(abc[:2], name="again", formula="dare").path), first)
    other = read_tensors(merge(abc[:2], name="other", formula="dare", seed=1).path)
    assert any(not torch.equal(other[name], first[name]) for name in SHAPES)
    smaller = [
        stored(tmp_path / path.name, {n: t for n, t in read_tensors(path).items() if "middle" not in n})
        for path in abc[:2]
    ]
    fewer = read_tensors(merge(smaller, name="fewer", formula="dare").path)
    assert all(torch.equal(fewer[name], first[name]) for name in fewer)
    assert key_seed(0, "a", 0) != key_seed(0, "a", 1) != key_seed(1, "a", 1)


def test_the_recipe_in_the_webuis_form(abc, merge):
    metadata = read_header(merge(abc, formula="add_difference").path)[1]
    recipe, models = json.loads(metadata["sd_merge_recipe"]), json.loads(metadata["sd_merge_models"])
    hashes = [file_sha256(path) for path in abc]
    assert [recipe[f"{which}_model_hash"] for which in ("primary", "secondary", "tertiary")] == hashes
    assert (recipe["type"], recipe["interp_method"], recipe["multiplier"]) == ("train_studio", "Add difference", 1.0)
    assert (recipe["save_as_half"], recipe["custom_name"], recipe["discard_weights"]) == (True, "mixed", "")
    assert models[hashes[1]] == {"name": "b", "legacy_hash": autov1(abc[1]), "sd_merge_recipe": None}
    assert metadata["format"] == "pt" and metadata["modelspec.merged_from"] == "a, b, c"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert str(abc[0].parent) not in json.dumps(metadata), "no folder names"


def test_progress_and_warnings(tmp_path, abc):
    v = stored(tmp_path / "v.safetensors", {**small_model(1), "v_pred": torch.tensor([])})
    noise = stored(tmp_path / "noise.safetensors", small_model(2))
    noise.with_suffix(".yaml").write_text("model: {params: {parameterization: eps}}\n", encoding="utf-8")
    config = load_tool(
        "merge", {"name": "m", "models": [str(v), str(noise)], "folder": str(tmp_path), "formula": "cosine_b"}
    )
    events = []
    execute(plan_merge(config), JobControl(), events.append, hash_of=lambda path: "0" * 64)
    (warning,) = [event for event in events if isinstance(event, Warned)]
    assert "A (v.safetensors): v_prediction, B (noise.safetensors): epsilon" in warning.text
    phases = [(event.phase, event.done, event.total) for event in events if isinstance(event, PhaseProgress)]
    assert ("compare", 6, 6) in phases and phases[-1] == ("merge", 11, 11)
    assert not any(phase.startswith("hash") for phase, *_ in phases)


def test_tensors_without_a_file(abc, merge):
    """For trying a merge before it is saved."""
    settings = {"name": "m", "models": [str(path) for path in abc[:2]], "folder": "/nowhere", "formula": "slerp"}
    plan = replace(
        plan_merge(load_tool("merge", {**settings, "folder": "/tmp"})), output=Path("/nowhere/m.safetensors")
    )
    found = dict(merged_tensors(plan, JobControl(), lambda event: event))
    same(found, read_tensors(merge(abc[:2], formula="slerp").path))


def test_a_real_architecture_can_be_loaded(tmp_path, family_models, merge):
    first = family_models["sd1"]
    second = {n: t * 1.5 if t.is_floating_point() else t for n, t in read_tensors(first).items()}
    path = merge([first, stored(tmp_path / "second.safetensors", second)], alpha="0.5, VAE=0").path
    shutil.copytree(first.parent / "small-clip", path.parent / "small-clip")
    merged, base = (load_bundle(each, dtype=torch.float32) for each in (path, first))
    weight = "down_blocks.1.attentions.0.proj_in.weight"
    found, expected = (bundle.unet.state_dict()[weight] for bundle in (merged, base))
    torch.testing.assert_close(found, expected * 1.25, rtol=1e-3, atol=0)
    same(merged.vae.state_dict(), base.vae.state_dict())


@pytest.mark.parametrize("after", [0, 3])
def test_stop_leaves_nothing(after, tmp_path, abc):
    control = JobControl()
    out = tmp_path / "out"
    plan = plan_merge(load_tool("merge", {"name": "m", "models": [str(path) for path in abc[:2]], "folder": str(out)}))

    def listen(event):
        if getattr(event, "phase", "") == "merge" and event.done > after:
            control.request_stop()

    with pytest.raises(JobStopped, match="The job was stopped. Nothing was written."):
        execute(plan, control, listen)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("formula", ["weighted_sum", "slerp"])
def test_nan_in_a_model_is_named_and_nothing_written(formula, tmp_path, abc, merge):
    broken = small_model(3)
    broken[INPUT][1, 2, 0, 0] = float("nan")
    b = stored(tmp_path / "broken.safetensors", broken)
    with pytest.raises(MergeError) as caught:
        merge([abc[0], b], formula=formula)
    assert f"the tensor {INPUT} of B (broken.safetensors) holds NaN" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_numbers_too_large_for_half_precision(tmp_path, abc, merge):
    large = {**small_model(3, torch.float32), INPUT: torch.full(SHAPES[INPUT], 1e6)}
    b = stored(tmp_path / "large.safetensors", large)
    with pytest.raises(MergeError, match=r"became too large for torch.float16.*bf16 or fp32"):
        merge([abc[0], b])
    assert list((tmp_path / "out").iterdir()) == []
    assert read_tensors(merge([abc[0], b], dtype="fp32").path)[INPUT].max() > 1e5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_is_finite(dtype, bad):
    tensor = torch.linspace(-1, 1, 100_000).to(dtype)
    tensor[5], tensor[7] = torch.finfo(dtype).max, torch.finfo(dtype).min
    assert is_finite(tensor) and is_finite(torch.arange(3)) and is_finite(torch.empty(0, dtype=dtype))
    for place in (0, 1, 31, 50_000, 99_999):
        broken = tensor.clone()
        broken[place] = bad
        assert not is_finite(broken), place


def test_a_full_disk_leaves_the_old_file(tmp_path, abc, merge, monkeypatch):
    path = merge(abc[:2]).path
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "_write_through", full)
    with pytest.raises(DiskFullError):
        merge(abc[:2], alpha="0.1", overwrite=True)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_a_model_that_changes_meanwhile(tmp_path, abc):
    out = tmp_path / "out"
    plan = plan_merge(load_tool("merge", {"name": "m", "models": [str(path) for path in abc[:2]], "folder": str(out)}))

    def touch(event):
        if getattr(event, "phase", "") == "merge":
            os.utime(abc[1], (1, 1))

    with pytest.raises(MergeError, match="b.safetensors changed while it was merged; nothing was written"):
        execute(plan, JobControl(), touch)
    assert list(out.iterdir()) == []


KILLED = """
import sys, time
from extensions_lib.config.tools import load_tool
from extensions_lib.control import JobControl
from extensions_lib.merge.execute import execute
from extensions_lib.merge.plan import plan_merge

def listen(event):
    if getattr(event, "phase", "") == "merge" and event.done > 3:
        print("at work", flush=True)
        time.sleep(60)

execute(plan_merge(load_tool("merge", eval(sys.argv[1]))), JobControl(), listen)
"""


def test_kill_in_the_middle_leaves_no_output_and_no_change(tmp_path, abc):
    before = {path: path.read_bytes() for path in abc}
    settings = {"name": "m", "models": [str(path) for path in abc[:2]], "folder": str(tmp_path / "out")}
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, repr(settings)], stdout=subprocess.PIPE, cwd=root, text=True
    )
    try:
        assert process.stdout.readline() == "at work\n"
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL
    finally:
        process.kill()
        process.stdout.close()
    deadline = time.monotonic() + 5
    while not (tmp_path / "out").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [path.suffix for path in (tmp_path / "out").iterdir() if ".tmp-" not in path.name] == []
    assert {path: path.read_bytes() for path in abc} == before
