"""The user's own presets on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions_lib.errors import ConfigError
from extensions_lib.jobs.user_presets import UserPresets

TABLE = {"method": {"kind": "lora", "rank": 4}, "training": {"max_train_steps": 7}}


def test_a_preset_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    presets = UserPresets(tmp_path / "presets")
    assert presets.names() == ()
    presets.save("Mäuse v2", TABLE)
    presets.save("cats", {"method": "lora"})
    assert presets.names() == ("cats", "Mäuse v2")
    assert presets.load("Mäuse v2") == TABLE
    presets.save("cats", TABLE)
    assert presets.load("cats") == TABLE
    presets.delete("cats")
    assert presets.names() == ("Mäuse v2",)
    assert [path.name for path in presets.folder.iterdir()] == ["Mäuse v2.json"]


@pytest.mark.parametrize("name", ["", " ", "../x", "a/b", "a\\b", "..", ".x", "nul", "a:b", "x\0", " x"])
def test_other_names_than_plain_ones_are_refused(tmp_path: Path, name: str) -> None:
    presets = UserPresets(tmp_path)
    for act in (lambda: presets.save(name, TABLE), lambda: presets.load(name), lambda: presets.delete(name)):
        with pytest.raises(ConfigError):
            act()
    assert not list(tmp_path.iterdir())


def test_built_in_names_and_missing_ones_are_refused(tmp_path: Path) -> None:
    presets = UserPresets(tmp_path)
    with pytest.raises(ConfigError, match="'lora_style', which is a built-in preset"):
        presets.save("lora_style", TABLE)
    presets.save("cats", TABLE)
    for act in (presets.load, presets.delete):
        with pytest.raises(ConfigError, match="preset: is 'dogs', accepted are cats"):
            act("dogs")


def test_a_preset_no_job_could_start_from_is_refused(tmp_path: Path) -> None:
    presets = UserPresets(tmp_path)
    with pytest.raises(ConfigError, match="training.max_train_stesp: is not a setting; did you mean"):
        presets.save("cats", {"method": "lora", "training": {"max_train_stesp": 7}})
    assert presets.names() == ()


@pytest.mark.parametrize("text", ["{", "[]", '{"training": 3, "method": "lora"}', '{"method": "x"}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "cats.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        UserPresets(tmp_path).load("cats")
