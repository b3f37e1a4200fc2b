"""From a form or an API request to a tool's job, with what the host knows and allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.errors import AccessError, ConfigError
from extensions_lib.jobs.submission import prepare_tool
from extensions_lib.ports import AccessPolicy, BaseModel

from ..merge.conftest import small_lora, small_model, stored

TITLE = "base.safetensors [1234567890]"


def merge_of(*paths: Path | str, **changes: Any) -> dict[str, Any]:
    return {"tool": "merge", "name": "mixed", "models": [{"path": str(path)} for path in paths], **changes}


@pytest.mark.parametrize("folder", [{}, {"folder": ""}, {"folder": "  "}])
def test_the_host_gives_the_folder_of_the_kind(recording_host: Any, folder: dict[str, Any]) -> None:
    results = recording_host.folders().results
    assert prepare_tool(merge_of("a", "b", **folder), recording_host).folder == str(results["checkpoint"])
    resize = {"tool": "resize", "name": "small", "network": "cat.safetensors", **folder}
    assert prepare_tool(resize, recording_host).folder == str(results["lora"])


def test_a_folder_for_diffusers_is_not_put_among_checkpoints(recording_host: Any) -> None:
    table = {"tool": "convert", "name": "x", "model": "a.safetensors"}
    folders = recording_host.folders()
    assert prepare_tool(table, recording_host).folder == str(folders.results["checkpoint"])
    assert prepare_tool({**table, "to": "diffusers"}, recording_host).folder == str(folders.work / "diffusers")


def test_the_users_folder_wins(recording_host: Any) -> None:
    assert prepare_tool(merge_of("a", "b", folder="mine"), recording_host).folder == "mine"


def test_titles_of_the_host_name_files_wherever_their_kind_is_asked_for(recording_host: Any) -> None:
    recording_host.models = (BaseModel(TITLE, Path("/models/sd/base.safetensors")),)
    path = str(Path("/models/sd/base.safetensors"))
    merged = prepare_tool(merge_of(TITLE, "b"), recording_host)
    assert [model.path for model in merged.models] == [path, "b"]
    lines = prepare_tool({**merge_of(), "models": ["base.safetensors", "b"]}, recording_host)
    assert lines.models == merged.models
    extract = {"tool": "extract", "name": "cat", "base": "base.safetensors [fedcba9876]", "tuned": "b"}
    assert prepare_tool(extract, recording_host).base == path
    recording_host.files = {"lora": (BaseModel("people/cat", Path("/models/Lora/people/cat.safetensors")),)}
    baked = {"tool": "bake", "name": "cat", "base": TITLE, "networks": [{"path": "people/cat"}, TITLE]}
    networks = prepare_tool(baked, recording_host).networks
    assert [each.path for each in networks] == [str(Path("/models/Lora/people/cat.safetensors")), TITLE]
    again = {"tool": "rebuild", "name": "cat", "file": "people/cat", "models": ["x"]}
    assert prepare_tool(again, recording_host).file == networks[0].path


def test_a_file_made_again_goes_to_the_folder_of_its_kind(recording_host: Any, tmp_path: Path) -> None:
    results = recording_host.folders().results
    checkpoint = stored(tmp_path / "model.safetensors", small_model(0))
    lora = small_lora(tmp_path, "cat.safetensors", ("lora_unet_mid_block_attentions_0_proj_in", 6, 5))
    (tmp_path / "other.safetensors").write_bytes(b"damaged")
    for tool, settings in {"merge": {"models": []}, "resize": {"network": "cat.safetensors", "rank": 2}}.items():
        recipe = {"settings": settings, "models": [], "vae": None, "version": "1"}
        (tmp_path / f"{tool}.json").write_text(json.dumps(recipe), encoding="utf-8")
    wanted = {
        checkpoint: results["checkpoint"],
        lora: results["lora"],
        tmp_path / "merge.json": results["checkpoint"],
        tmp_path / "resize.json": results["lora"],
        tmp_path / "none.json": tmp_path,
        tmp_path / "other.safetensors": tmp_path,
        tmp_path / "none.safetensors": tmp_path,
    }
    for file, folder in wanted.items():
        table = {"tool": "rebuild", "name": "again", "file": str(file), "models": [{"path": str(tmp_path)}]}
        assert prepare_tool(table, recording_host).folder == str(folder), file


def test_of_two_files_the_very_title_counts(recording_host: Any) -> None:
    recording_host.models = (BaseModel("a.ckpt [1234567890]", Path("/one")), BaseModel("a.ckpt", Path("/two")))
    models = prepare_tool(
        merge_of("a.ckpt", "a.ckpt [1234567890]", "a.ckpt [x]", formula="ties"), recording_host
    ).models
    assert [model.path for model in models] == [str(Path("/two")), str(Path("/one")), "a.ckpt [x]"]


@pytest.mark.parametrize("given", [{}, {"models": []}])
def test_models_are_looked_for_in_the_hosts_folders(recording_host: Any, given: dict[str, Any]) -> None:
    results = recording_host.folders().results
    config = prepare_tool({"tool": "rebuild", "name": "again", "file": "x.json", **given}, recording_host)
    assert [folder.path for folder in config.models] == [str(results["checkpoint"]), str(results["lora"])]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({}, "tool: is '', accepted are merge, "),
        ({"tool": "melt"}, "tool: is 'melt', accepted are merge, "),
        ({"tool": 7}, "tool: is '7', accepted are merge, "),
        (merge_of("a", "b", formual="ties"), "formual: is not a setting; did you mean 'formula'"),
        (merge_of("a", "b", folder=7), "folder: must be a text, is 7"),
        ({**merge_of(), "models": 7}, "models: must be a list, is 7"),
        ({**merge_of(), "models": [7, {"path": 8}]}, r"models\[1\].path: must be a text, is 8"),
        (merge_of("a"), "models: are 1; weighted_sum takes 2 or more"),
        (merge_of("a", "b", name="con"), "name: is 'con', accepted are plain file names"),
    ],
)
def test_mistakes_are_reported(recording_host: Any, table: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        prepare_tool(table, recording_host)


@pytest.fixture
def allowed(recording_host: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "allowed"
    folder.mkdir()
    recording_host.policy = AccessPolicy(roots=(folder,), allow_pickles=False)
    return folder


def test_statement_32_every_path_of_a_tool_is_looked_at(recording_host: Any, allowed: Path, tmp_path: Path) -> None:
    inside, outside = allowed / "a.safetensors", tmp_path / "b.safetensors"
    prepare_tool(merge_of(inside, inside), recording_host)
    refused = {
        r"models\[1\].path": merge_of(inside, outside),
        "bake_vae": merge_of(inside, inside, bake_vae=str(outside)),
        "folder": merge_of(inside, inside, folder=str(tmp_path)),
        r"networks\[0\].path": {"tool": "bake", "name": "x", "base": str(inside), "networks": [str(outside)]},
        "tuned": {"tool": "extract", "name": "x", "base": str(inside), "tuned": str(allowed / ".." / "b.safetensors")},
        "network": {"tool": "resize", "name": "x", "network": str(outside)},
        r"models\[0\].path": {"tool": "rebuild", "name": "x", "file": str(inside), "models": [str(tmp_path)]},
    }
    for setting, table in refused.items():
        with pytest.raises(AccessError, match=f"{setting} is .*outside the folders that may be used"):
            prepare_tool(table, recording_host)


def test_statement_32_pickles_are_refused_unless_the_host_lists_them(recording_host: Any, allowed: Path) -> None:
    pickle = allowed / "a.ckpt"
    table = merge_of(allowed / "b.safetensors", pickle)
    with pytest.raises(AccessError, match=r"models\[1\].path names a pickle"):
        prepare_tool(table, recording_host)
    recording_host.models = (BaseModel("a", pickle),)
    prepare_tool(table, recording_host)
    vae = allowed.parent / "VAE" / "v.pt"
    table = merge_of(allowed / "b.safetensors", pickle, bake_vae=str(vae))
    with pytest.raises(AccessError, match="bake_vae is .*outside"):
        prepare_tool(table, recording_host)
    recording_host.files = {"vae": (BaseModel("v.pt", vae),)}
    prepare_tool(table, recording_host)


def test_statement_32_a_result_does_not_go_beside_a_listed_file_outside(
    recording_host: Any, allowed: Path, tmp_path: Path
) -> None:
    """Without a folder, and with a file of no kind the host has a folder for."""
    listed = tmp_path / "elsewhere" / "odd.safetensors"
    recording_host.models = (BaseModel("odd", listed),)
    table = {"tool": "rebuild", "name": "again", "file": str(listed), "models": [str(allowed)]}
    with pytest.raises(AccessError, match="folder is .*elsewhere, which lies outside"):
        prepare_tool(table, recording_host)


def test_statement_33_hidden_paths_are_neither_accepted_nor_shown(
    recording_host: Any, allowed: Path, tmp_path: Path
) -> None:
    recording_host.policy = AccessPolicy(roots=(allowed,), hide_paths=True)
    with pytest.raises(AccessError) as refused:
        prepare_tool(merge_of(allowed / "a.safetensors", "b"), recording_host)
    assert str(tmp_path) not in str(refused.value)
    own = recording_host.folders().results["checkpoint"]
    prepare_tool(merge_of(own / "a.safetensors", own / "b.safetensors"), recording_host)
