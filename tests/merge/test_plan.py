"""What the headers show is refused before any work."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from extensions_lib.config.tools import load_tool
from extensions_lib.errors import DiskFullError, ExtensionError, FormatError, MergeError, ModelError, OutputError
from extensions_lib.merge.models import read_model
from extensions_lib.merge.plan import plan_merge

from .conftest import SHAPES, UNET, small_model, stored

INPUT = UNET + "input_blocks.0.0.weight"


def plan(models, **settings):
    paths = [str(model) for model in models]
    return plan_merge(load_tool("merge", {"name": "mixed", "models": paths, "folder": "/tmp", **settings}))


def refused(kind, models, **settings):
    with pytest.raises(kind) as caught:
        plan(models, **settings)
    return str(caught.value)


def sdxl(path: Path) -> Path:
    tensors = {name: tensor for name, tensor in small_model(0).items() if not name.startswith("cond_stage")}
    tensors["conditioner.embedders.1.model.ln_final.weight"] = torch.ones(8).half()
    return stored(path, tensors)


def test_another_family(tmp_path, abc):
    text = refused(MergeError, [abc[0], sdxl(tmp_path / "xl.safetensors")])
    assert "A (a.safetensors) is sd1, B (xl.safetensors) is sdxl" in text


def test_another_shape(tmp_path, abc):
    name = UNET + "output_blocks.3.0.out_layers.0.bias"
    other = stored(tmp_path / "other.safetensors", small_model(1, **{name: (7,)}))
    assert f"1 tensors have other shapes ({name} [[4], [7]])" in refused(MergeError, [abc[0], other])


def test_missing_and_unknown_tensors(tmp_path, abc):
    fewer = {n: t for n, t in small_model(1).items() if "middle_block" not in n}
    path = stored(tmp_path / "fewer.safetensors", fewer)
    said = f"B (fewer.safetensors) lacks 1 tensors of A's UNet: {UNET}middle_block.0.in_layers.0.weight"
    assert said in refused(MergeError, [abc[0], path])
    assert "B (b.safetensors) has 1 tensors in its UNet that A lacks" in refused(MergeError, [path, abc[1]])


def test_what_has_no_effect_may_be_missing(tmp_path, abc):
    without = {n: t for n, t in small_model(1).items() if not n.endswith("position_ids")}
    path = stored(tmp_path / "b2.safetensors", without)
    assert plan([abc[0], path]).tensors.keys() == plan([abc[0], abc[1]]).tensors.keys()
    assert plan([path, abc[0]]).tensors.keys() == without.keys()


def test_a_part_that_a_model_does_not_have(tmp_path, abc):
    without = {n: t for n, t in small_model(1).items() if not n.startswith("first_stage")}
    path = stored(tmp_path / "novae.safetensors", without)
    assert "B (novae.safetensors) holds no VAE" in refused(MergeError, [abc[0], path])
    assert "set vae to 'b'" in refused(MergeError, [path, abc[0]])
    assert plan([abc[0], path], vae="a").num_bytes == plan(abc[:2]).num_bytes
    assert plan([path, abc[0]], vae="b").num_bytes == plan(abc[:2]).num_bytes
    assert "holds no VAE" in refused(MergeError, [abc[0], path], vae="b")
    assert plan([path, path]).warnings == (
        "The result has no VAE, as its models have none; choose one in the WebUI, or bake one in.",
    )
    whole = plan([path, path], bake_vae=str(abc[0]))
    assert whole.warnings == () and whole.tensors.keys() == plan(abc[:2]).tensors.keys()


@pytest.mark.parametrize(
    ("channels", "said"), [((4, 9), "Put b2.safetensors first"), ((9, 8), "must have as many or 4")]
)
def test_models_of_different_input_channels(channels, said, tmp_path):
    paths = [
        stored(tmp_path / f"{letter}2.safetensors", small_model(1, **{INPUT: (2, count, 3, 3)}))
        for letter, count in zip("ab", channels, strict=True)
    ]
    assert said in refused(MergeError, paths)


def test_truncated_damaged_and_missing(tmp_path, abc):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(abc[1].read_bytes()[:-10])
    assert "is truncated" in refused(FormatError, [abc[0], cut])
    cut.write_bytes(b"<html>")
    assert "cut.safetensors" in refused(FormatError, [abc[0], cut])
    assert "cannot be read" in refused(ModelError, [abc[0], tmp_path / "none.safetensors"])
    assert "is a folder" in refused(MergeError, [abc[0], tmp_path])


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_a_pickle_with_code_never_runs(tmp_path, abc):
    evil = tmp_path / "evil.ckpt"
    torch.save({**small_model(1), "x": Malicious(tmp_path / "executed")}, evil)
    assert "they were not loaded" in refused(FormatError, [abc[0], evil])
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists(), "the test is worth something"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"lora_unet_a.lora_down.weight": (4, 8), "lora_unet_a.lora_up.weight": (8, 4)}, "recognised as 'lora'"),
        ({"decoder.conv_in.weight": (4, 4, 3, 3), "encoder.conv_in.weight": (4, 3, 3, 3)}, "recognised as 'vae'"),
        ({"something": (3,), "other": (2, 2)}, "recognised as 'unknown'"),
    ],
)
def test_other_files(tensors, said, tmp_path, abc):
    path = stored(tmp_path / "x.safetensors", {name: torch.ones(shape) for name, shape in tensors.items()})
    assert said in refused(MergeError, [abc[0], path])


def test_a_vae_that_does_not_fit(tmp_path, abc):
    parts = {n.removeprefix("first_stage_model."): s for n, s in SHAPES.items() if n.startswith("first_stage_model.")}
    incomplete = stored(tmp_path / "v.safetensors", {"decoder.conv_in.weight": torch.ones(3, 4, 3, 3)})
    assert "lacks 1 tensors of the VAE: first_stage_model.quant_conv" in refused(
        MergeError, abc[:2], bake_vae=str(incomplete)
    )
    other = {name: torch.ones(shape) for name, shape in parts.items()} | {"quant_conv.weight": torch.ones(5, 4, 1, 1)}
    assert "1 tensors have another shape" in refused(
        MergeError, abc[:2], bake_vae=str(stored(tmp_path / "w.safetensors", other))
    )
    lora = stored(tmp_path / "l.safetensors", {"x": torch.ones(2)})
    assert "holds no VAE" in refused(MergeError, abc[:2], bake_vae=str(lora))


def test_block_weights_are_read_before_work(abc):
    assert "cannot be read" in refused(MergeError, abc[:2], alpha="half")
    assert "A list of 3" in refused(MergeError, abc, formula="sum_twice", beta="1,2,3")


def test_weights_of_ties_must_be_positive(abc):
    models = [{"path": str(abc[0])}, {"path": str(abc[1])}, {"path": str(abc[2]), "weight": "1, IN=-1"}]
    with pytest.raises(MergeError, match="weight of model C is -1 somewhere; ties takes weights above 0"):
        plan_merge(load_tool("merge", {"name": "m", "models": models, "formula": "ties", "folder": "/tmp"}))


def test_a_name_that_is_taken(tmp_path, abc):
    (tmp_path / "mixed.safetensors").write_bytes(b"mine")
    assert "already exists and was not touched" in refused(OutputError, abc[:2], folder=str(tmp_path))
    assert plan(abc[:2], folder=str(tmp_path), overwrite=True).output == tmp_path / "mixed.safetensors"


def test_a_model_is_not_replaced_by_the_result(abc):
    settings = {"name": "a", "folder": str(abc[0].parent), "overwrite": True}
    assert "is one of the files that it is made from" in refused(OutputError, abc[:2], **settings)


def test_no_room_on_the_disk(tmp_path, abc, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    text = refused(DiskFullError, abc[:2], folder=str(tmp_path / "new" / "folder"))
    assert "mixed.safetensors needs 4 MB" in text and f"{tmp_path} has 0 MB" in text
    assert not (tmp_path / "new").exists()


def test_everything_discarded(abc):
    assert "leaves nothing" in refused(MergeError, abc[:2], discard=".")


@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl-inpaint", "sdxl-v-ztsnr"])
def test_checkpoints_of_every_family(name, family_models):
    path = family_models[name]
    found = read_model(path)
    assert found.family == name.split("-")[0]
    assert ("inpainting" in found.recognised.variant) == name.endswith("inpaint")
    half = plan([path, path], alpha="0.3, TE=0.1")
    assert half.tensors[INPUT].ratios.alpha == 0.3
    assert half.warnings == () and issubclass(MergeError, ExtensionError)
    text = next(name for name in half.tensors if "ln_final.weight" in name or "final_layer_norm.weight" in name)
    assert half.tensors[text].ratios.weights == (0.1,)
