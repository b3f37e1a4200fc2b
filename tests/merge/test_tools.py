"""What is said of every tool before it works: the file it would write, and what would stop it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from extensions_lib.config.tools import load_any_tool
from extensions_lib.errors import ConfigError, OutputError
from extensions_lib.merge.tools import PLANS, RUNNERS, foresee

from .conftest import small_lora

ENDINGS = {"convert": ".ckpt"}


@pytest.fixture
def tables(abc: list[Path], tmp_path: Path) -> dict[str, dict[str, Any]]:
    """A table for each tool but bake, whose plan tests/merge/test_bake.py looks at."""
    lora = str(small_lora(tmp_path, "net.safetensors", ("lora_te_text_model_encoder_layers_0_mlp_fc1", 6, 5)))
    a, b = map(str, abc[:2])
    files = {
        "merge": {"models": [a, b]},
        "extract": {"base": a, "tuned": b},
        "combine": {"networks": [lora, lora]},
        "resize": {"network": lora},
        "convert-lora": {"network": lora},
        "prune": {"model": a},
        "convert": {"model": a, "to": "ckpt"},
        "metadata": {"file": a, "title": "x"},
        "rebuild": {"file": a, "models": [str(tmp_path)]},
    }
    place = {"name": "made", "folder": str(tmp_path / "out")}
    return {kind: {"tool": kind, **place, **named} for kind, named in files.items()}


def test_every_tool_says_where_its_file_will_be(tables: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert PLANS.keys() == RUNNERS.keys() == {*tables, "bake"}
    for kind, table in tables.items():
        made = tmp_path / "out" / f"made{ENDINGS.get(kind, '.safetensors')}"
        assert foresee(load_any_tool(table)).path == made, kind
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_taken_is_refused_unless_it_may_be_replaced(
    tables: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    for kind, table in tables.items():
        (tmp_path / "out" / f"made{ENDINGS.get(kind, '.safetensors')}").write_bytes(b"precious")
        with pytest.raises(OutputError, match="already exists and was not touched"):
            foresee(load_any_tool(table))
        foresee(load_any_tool({**table, "overwrite": True}))


def test_a_folder_is_replaced_only_when_that_is_asked_for(tables: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "out" / "made").mkdir(parents=True)
    table = {**tables["convert"], "to": "diffusers"}
    with pytest.raises(OutputError, match="already exists and was not touched"):
        foresee(load_any_tool(table))
    assert foresee(load_any_tool({**table, "overwrite": True})).path == tmp_path / "out" / "made"


def test_metadata_may_change_in_its_place_and_a_merge_not(tables: dict[str, dict[str, Any]], abc: list[Path]) -> None:
    place = {"name": "a", "folder": str(abc[0].parent), "overwrite": True}
    assert foresee(load_any_tool({**tables["metadata"], **place})).path == abc[0]
    with pytest.raises(OutputError, match="is one of the files that it is made from"):
        foresee(load_any_tool({**tables["merge"], **place}))


def test_all_missing_files_are_named_by_their_settings(tables: dict[str, dict[str, Any]]) -> None:
    table = {**tables["merge"], "models": ["none.safetensors", "no.ckpt"], "bake_vae": "vae.pt"}
    with pytest.raises(ConfigError) as refused:
        foresee(load_any_tool(table))
    assert [each.path for each in refused.value.problems] == ["models[0].path", "models[1].path", "bake_vae"]
