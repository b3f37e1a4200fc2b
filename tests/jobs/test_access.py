"""What may be named: statements 32 and 33 of the host's contract, below the page and the API."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.config.codec import load
from extensions_lib.config.presets import merge
from extensions_lib.errors import AccessError, ConfigError
from extensions_lib.jobs.access import check_access, check_name, named_paths
from extensions_lib.ports import AccessPolicy, BaseModel


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    folder = tmp_path / "allowed"
    folder.mkdir()
    return folder


@pytest.fixture
def table(allowed: Path) -> dict[str, Any]:
    """A job in which every path is named, all of them below `allowed`."""
    return {
        "name": "cat",
        "base_model": str(allowed / "model.safetensors"),
        "vae": str(allowed / "vae.safetensors"),
        "dataset": {
            "folder": str(allowed / "pictures"),
            "validation_folder": str(allowed / "more"),
            "caption_template": str(allowed / "template.txt"),
        },
        "method": {
            "kind": "pivotal",
            "start_from": str(allowed / "old.safetensors"),
            "embedding_start_from": str(allowed / "word.safetensors"),
        },
        "output": {
            "folder": str(allowed / "out"),
            "lora_folder": str(allowed / "loras"),
            "embedding_folder": str(allowed / "embeddings"),
            "runs_folder": str(allowed / "runs"),
        },
    }


def at(setting: str, value: str) -> dict[str, Any]:
    """{'a': {'b': value}} for 'a.b'."""
    head, _, rest = setting.partition(".")
    return {head: at(rest, value) if rest else value}


def check(table: dict[str, Any], host: Any, policy: AccessPolicy) -> None:
    check_access(load(table), policy, host)


SETTINGS = (
    "base_model", "vae", "dataset.folder", "dataset.validation_folder", "dataset.caption_template",
    "method.start_from", "method.embedding_start_from",
    "output.folder", "output.lora_folder", "output.embedding_folder", "output.runs_folder",
)  # fmt: skip


def test_every_path_of_a_job_is_looked_at(table: dict[str, Any]) -> None:
    assert {named.setting for named in named_paths(load(table))} == set(SETTINGS)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("way", ["outside", "traversal", "link"])
def test_statement_32_paths_outside_the_roots_are_refused(
    table: dict[str, Any], allowed: Path, recording_host: Any, setting: str, way: str
) -> None:
    policy = AccessPolicy(roots=(allowed,))
    check(table, recording_host, policy)
    outside = allowed.parent / "outside"
    outside.mkdir()
    if way == "link":
        (allowed / "link").symlink_to(outside)
    named = {"outside": outside / "x", "traversal": allowed / ".." / "outside" / "x", "link": allowed / "link" / "x"}
    with pytest.raises(AccessError, match=f"{setting} is .*outside the folders that may be used: {allowed}"):
        check(merge(table, at(setting, str(named[way]))), recording_host, policy)
    check(merge(table, at(setting, str(named[way]))), recording_host, AccessPolicy())


def test_a_folder_that_only_begins_like_a_root_is_outside(
    table: dict[str, Any], allowed: Path, recording_host: Any
) -> None:
    with pytest.raises(AccessError):
        check(merge(table, at("dataset.folder", f"{allowed}-2/x")), recording_host, AccessPolicy(roots=(allowed,)))


@pytest.mark.parametrize("setting", ["base_model", "vae", "method.start_from"])
@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".BIN", ".pth"])
def test_statement_32_pickles_are_refused_unless_the_host_lists_them(
    table: dict[str, Any], allowed: Path, recording_host: Any, setting: str, ending: str
) -> None:
    path = allowed / f"model{ending}"
    changed = merge(table, at(setting, str(path)))
    strict = AccessPolicy(roots=(allowed,), allow_pickles=False)
    with pytest.raises(AccessError, match=f"{setting} names a pickle"):
        check(changed, recording_host, strict)
    check(changed, recording_host, dataclasses.replace(strict, allow_pickles=True))
    recording_host.models = (BaseModel("model", path),)
    check(changed, recording_host, strict)


def test_statement_32_a_model_folder_with_a_pickle_is_one(
    table: dict[str, Any], allowed: Path, recording_host: Any
) -> None:
    (allowed / "model" / "unet").mkdir(parents=True)
    changed = merge(table, at("base_model", str(allowed / "model")))
    strict = AccessPolicy(roots=(allowed,), allow_pickles=False)
    (allowed / "model" / "unet" / "weights.safetensors").touch()
    check(changed, recording_host, strict)
    (allowed / "model" / "unet" / "weights.bin").touch()
    with pytest.raises(AccessError, match="names a pickle"):
        check(changed, recording_host, strict)


def test_what_the_host_lists_and_its_own_folders_need_no_root(
    table: dict[str, Any], allowed: Path, recording_host: Any, tmp_path: Path
) -> None:
    folders, model = recording_host.folders(), tmp_path / "elsewhere" / "model.ckpt"
    recording_host.models = (BaseModel("model", model),)
    changed = merge(
        table,
        {
            "base_model": str(model),
            "output": {"folder": str(folders.results["lora"]), "runs_folder": str(folders.runs)},
        },
    )
    check(changed, recording_host, AccessPolicy(roots=(allowed,), allow_pickles=False))


def test_statement_33_hidden_paths_are_neither_accepted_nor_shown(
    table: dict[str, Any], allowed: Path, recording_host: Any, tmp_path: Path
) -> None:
    hidden = AccessPolicy(roots=(allowed,), hide_paths=True)
    with pytest.raises(AccessError) as refused:
        check(table, recording_host, hidden)
    assert str(tmp_path) not in str(refused.value)
    folders, model = recording_host.folders(), tmp_path / "model.safetensors"
    recording_host.models = (BaseModel("model", model),)
    own = {
        "name": "cat",
        "base_model": str(model),
        "dataset": {"folder": str(folders.work / "pictures" / "cat")},
        "method": "lora",
        "output": {"folder": str(folders.results["lora"]), "runs_folder": str(folders.runs)},
    }
    check(own, recording_host, hidden)


def test_a_path_with_a_nul_is_an_error_of_access(table: dict[str, Any], allowed: Path, recording_host: Any) -> None:
    with pytest.raises(AccessError, match="vae is no usable path"):
        check(merge(table, at("vae", "a\0b")), recording_host, AccessPolicy(roots=(allowed,)))


@pytest.mark.parametrize("name", ["..", ".hidden", "cat.", "con", "NUL.x", "com3", "a\nb", "a\0b", "x" * 101])
def test_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name: "):
        check_name(name)


@pytest.mark.parametrize("name", ["cat", "my cat v1.5", "Käse-猫", "console"])
def test_plain_names_are_accepted(name: str) -> None:
    check_name(name)


def test_statement_32_further_words_name_files_too(table: dict[str, Any], allowed: Path, recording_host: Any) -> None:
    policy = AccessPolicy(roots=(allowed,))
    inside, outside = str(allowed / "hat.safetensors"), str(allowed.parent / "hat.safetensors")
    for path, is_accepted in ((inside, True), (outside, False)):
        words = [{"word": "zbag"}, {"word": "zhat", "start_from": path}]
        named = merge(table, {"method": {"further_words": words}})
        if is_accepted:
            check(named, recording_host, policy)
            continue
        with pytest.raises(AccessError, match=r"method.further_words\[1\].start_from is .*outside"):
            check(named, recording_host, policy)
    with pytest.raises(ConfigError, match="accepted are plain file names"):
        check(merge(table, {"method": {"further_words": ["con"]}}), recording_host, policy)
