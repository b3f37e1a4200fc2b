"""A merged file made again from its recipe, to the last bit, and its lineage."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from extensions_lib.config.merge import FORMULAS
from extensions_lib.config.tools import load_tool
from extensions_lib.control import JobControl
from extensions_lib.errors import ConfigError, FormatError, MergeError, ModelError
from extensions_lib.events import Warned
from extensions_lib.formats.lineage import lineage, lineage_lines
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic
from extensions_lib.merge.layers import layer_places
from extensions_lib.merge.models import read_model
from extensions_lib.merge.rebuild import read_recipe, rebuild
from extensions_lib.merge.recipe import own_key
from extensions_lib.merge.tools import run_tool

from .conftest import small_lora


def again(source, folder, output, events=None):
    return rebuild(source, [folder], output, JobControl(), (events if events is not None else []).append)


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_same_bytes_from_renamed_models(formula, tmp_path, abc, merge):
    count = max(FORMULAS[formula].min_models, FORMULAS[formula].max_models or 2)
    path = merge(abc[:count], formula=formula, seed=5, alpha="0.3, IN=0.6").path
    moved = tmp_path / "elsewhere" / "deep"
    moved.mkdir(parents=True)
    for index, model in enumerate(abc):
        shutil.move(model, moved / f"renamed{index}.safetensors")
    result = again(path, tmp_path / "elsewhere", tmp_path / "again.safetensors")
    assert result.is_same is True
    assert result.made.path.read_bytes() == path.read_bytes()


def test_a_baked_vae_and_parts_come_back_too(tmp_path, abc, merge):
    path = merge(abc[:2], bake_vae=str(abc[2]), text_encoder="b", discard="^betas$", dtype="bf16").path
    assert again(path, abc[0].parent, tmp_path / "again.safetensors").is_same is True


def test_models_of_the_same_content_under_two_names(tmp_path, abc, merge):
    shutil.copy(abc[1], abc[2])
    path = merge(abc, formula="add_difference").path
    assert again(path, abc[0].parent, tmp_path / "again.safetensors").is_same is True
    mixed = merge([path, abc[0]], name="with its own parent").path
    assert again(mixed, tmp_path, tmp_path / "too.safetensors").is_same is True


def test_from_the_recipe_alone(tmp_path, abc, merge):
    path = merge(abc[:2]).path
    recipe = tmp_path / "recipe.json"
    recipe.write_text(read_header(path)[1][own_key("merge")], encoding="utf-8")
    result = again(recipe, abc[0].parent, tmp_path / "again.safetensors")
    assert result.is_same is None and result.made.path.read_bytes() == path.read_bytes()


def test_a_model_that_is_not_there(tmp_path, abc, merge):
    path = merge(abc[:2]).path
    data = bytearray(abc[1].read_bytes())
    data[-1] ^= 1
    abc[1].write_bytes(data)
    with pytest.raises(MergeError) as caught:
        again(path, abc[0].parent, tmp_path / "again.safetensors")
    assert f"1 of 2 models were not found below {abc[0].parent}: b.safetensors (" in str(caught.value)


def test_a_file_that_was_changed_afterwards_is_told_from_the_rebuilt_one(tmp_path, abc, merge):
    path = merge(abc[:2]).path
    tensors = {name: tensor + 1 for name, tensor in read_tensors(path).items()}
    write_atomic(path, tensors, read_header(path)[1], overwrite=True)
    assert again(path, abc[0].parent, tmp_path / "again.safetensors").is_same is False


def test_another_version_is_said(tmp_path, abc, merge):
    recipe = json.loads(read_header(merge(abc[:2]).path)[1][own_key("merge")])
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({**recipe, "version": "0.0.1"}), encoding="utf-8")
    events = []
    again(path, abc[0].parent, tmp_path / "again.safetensors", events)
    assert any("version 0.0.1" in event.text for event in events if isinstance(event, Warned))


def test_files_without_a_recipe(tmp_path, abc):
    with pytest.raises(FormatError, match="a.safetensors holds no recipe"):
        read_recipe(abc[0])
    with pytest.raises(ModelError, match="cannot be read"):
        read_recipe(tmp_path / "none.json")
    for text in ("{}", "no", '{"models": [{"name": "x"}], "vae": null, "settings": {}, "version": "1"}'):
        (tmp_path / "bad.json").write_text(text, encoding="utf-8")
        with pytest.raises(FormatError, match="the recipe cannot be read"):
            read_recipe(tmp_path / "bad.json")


def test_the_lineage_of_a_merge_of_merges(abc, merge):
    first = merge(abc[:2], name="first").path
    second = merge([first, abc[2]], name="second", alpha="0.25").path
    tree = lineage(read_header(second)[1])
    assert [model["name"] for model in tree["models"]] == ["first", "c"]
    assert [model["name"] for model in tree["models"][0]["made_from"]["models"]] == ["a", "b"]
    lines = lineage_lines("second", tree)
    names = ["second: Weighted sum, 0.25", "|-- first", "|   |-- a", "|   `-- b", "`-- c"]
    assert [line.split(" [")[0] for line in lines] == names
    assert lines[1].endswith("]: Weighted sum, 0.5")


def test_more_than_three_models_and_none(abc, merge):
    weighted = [{"path": str(abc[0])}, *({"path": str(abc[i % 3]), "weight": "0.1"} for i in range(1, 5))]
    tree = lineage(read_header(merge(weighted).path)[1])
    assert [model["name"] for model in tree["models"]] == ["a", "b", "c", "a", "b"]
    assert tree["multiplier"] == "0.1 | 0.1 | 0.1 | 0.1"
    assert lineage({}) is None and lineage_lines("x", None) == ["x"]


def test_the_webuis_own_merges_and_damaged_ones():
    hashes = {"primary_model_hash": "aa", "secondary_model_hash": "bb", "tertiary_model_hash": None}
    recipe = {"interp_method": "Weighted sum", "multiplier": 0.3, **hashes}
    models = {"aa": {"name": "one", "sd_merge_recipe": json.dumps(recipe)}, "bb": 3}
    tree = lineage({"sd_merge_recipe": json.dumps(recipe), "sd_merge_models": json.dumps(models)})
    assert [model["name"] for model in tree["models"]] == ["one", "unknown"]
    assert lineage({"sd_merge_recipe": "no", "sd_merge_models": "[]"}) is None
    assert len(lineage_lines("x", tree)) < 100, "it names itself, and ends"


def test_a_chain_of_tools_and_each_of_its_files_again(tmp_path, family_models):
    """Baked, extracted, resized, converted, combined and baked again: one tree, and every file can be made again."""
    layer = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    outputs, inputs = layer_places(read_model(family_models["sd1"]))[layer].shape
    given = small_lora(tmp_path, "given.safetensors", (layer, outputs, inputs))

    def made(kind, name, **settings):
        table = {"name": name, "folder": str(tmp_path), **settings}
        return run_tool(load_tool(kind, table), JobControl(), lambda event: event).path

    base = {"base": str(family_models["sd1"])}
    tuned = made("bake", "tuned", networks=[str(given)], dtype="fp32", **base)
    found = made("extract", "found", tuned=str(tuned), rank=8, **base)
    small = made("resize", "small", network=str(found), rank=1)
    own = made("convert-lora", "own", network=str(given), family="sd1", scale=0.5, dtype="bf16")
    both = made("combine", "both", networks=[{"path": str(small), "weight": "0.7"}, str(own)], formula="concat")
    baked = made("bake", "baked", networks=[str(both)], **base)
    lines = lineage_lines("baked", lineage(read_header(baked)[1]))
    assert [line.split(" [")[0] for line in lines] == [
        "baked: Bake LoRA, 1",
        "|-- sd1",
        "`-- both",
        "    |-- small",
        "    |   `-- found",
        "    |       |-- sd1",
        "    |       `-- tuned",
        "    |           |-- sd1",
        "    |           `-- given",
        "    `-- own",
        "        `-- given",
    ]
    folders = [tmp_path, family_models["sd1"].parent]
    for path in (tuned, found, small, own, both, baked):
        again = tmp_path / f"again {path.stem}.safetensors"
        result = rebuild(path, folders, again, JobControl(), lambda event: event)
        assert result.is_same is True, path.name
        again.unlink()
    recipe = tmp_path / "recipe.json"
    kinds = {"bake": tuned, "extract": found, "resize": small, "convert-lora": own, "combine": both}
    for kind, path in kinds.items():
        recipe.write_text(read_header(path)[1][own_key(kind)], encoding="utf-8")
        assert read_recipe(recipe)[0] == kind


def edited(path, tmp_path, change):
    """The recipe of a file as a .json, changed by `change`."""
    tool = next(tool for tool in ("merge", "convert-lora") if own_key(tool) in read_header(path)[1])
    content = json.loads(read_header(path)[1][own_key(tool)])
    change(content)
    recipe = tmp_path / "edited.json"
    recipe.write_text(json.dumps(content), encoding="utf-8")
    return recipe


EDITS = {
    "models are a text": (lambda c: c["settings"].update(models="x"), ConfigError, "models: must be a list"),
    "models hold a number": (lambda c: c["settings"].update(models=[1, 2]), ConfigError, "must be a table"),
    "too few models": (lambda c: c["models"].pop(), FormatError, "name 2 files, it lists 1 models"),
    "too many settings": (lambda c: c["settings"]["models"].pop(), ConfigError, "models: are 1"),
    "a hash is a number": (lambda c: c["models"][0].update(sha256=5), FormatError, "no text"),
    "settings are a list": (lambda c: c.update(settings=[["name", "x"]]), FormatError, "no table"),
    "an expression": (lambda c: c["settings"].update(discard="(a+)+"), ConfigError, "repeats a group"),
    "unknown tool": (lambda c: c["settings"].update(fold=1), FormatError, "of no tool"),
    "deep": (lambda c: c.update(version=[[]]), MergeError, "were not found"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_recipe(tmp_path, abc, merge, edit):
    change, error, text = EDITS[edit]
    recipe = edited(merge(abc[:2]).path, tmp_path, change)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(error, match=text):
        again(recipe, empty, tmp_path / "again.safetensors")
    assert not (tmp_path / "again.safetensors").exists()


def test_a_recipe_has_no_say_in_folders(tmp_path):
    """Else a file from anywhere could have words written wherever it likes."""
    other, out = tmp_path / "other", tmp_path / "out"
    other.mkdir()
    lora = small_lora(tmp_path, "lora.safetensors", ("lora_te_text_model_encoder_layers_0_mlp_fc1", 8, 8))
    words = {"bundle_emb.zcat.string_to_param.*": torch.ones(1, 768)}
    write_atomic(lora, {**read_tensors(lora), **words}, {}, overwrite=True)
    table = {"name": "made", "folder": str(out), "network": str(lora), "family": "sd1", "embeddings": "beside"}
    made = run_tool(load_tool("convert-lora", table), JobControl(), lambda event: event)

    def change(content):
        content["settings"].update(embeddings_folder=str(other), folder=str(other), overwrite=True)

    made.beside[0].unlink()
    result = again(edited(made.path, tmp_path, change), tmp_path, out / "again.safetensors")
    assert list(other.iterdir()) == [] and result.made.path.parent == out


def test_a_folder_that_is_not_there(tmp_path, abc, merge):
    path = merge(abc[:2]).path
    with pytest.raises(MergeError, match="There is no folder .*nowhere"):
        again(path, tmp_path / "nowhere", tmp_path / "again.safetensors")
