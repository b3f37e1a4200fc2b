from __future__ import annotations

from typing import Any

import pytest

from extensions_lib.config.codec import dump
from extensions_lib.config.field import settings_of
from extensions_lib.config.merge import FORMULAS
from extensions_lib.config.networks import CRITERIA
from extensions_lib.config.tools import TOOLS, load_any_tool
from extensions_lib.errors import ExtensionError
from extensions_lib.ui.fields import RESERVED_ENDINGS, Shown, all_fields
from extensions_lib.ui.tool_fields import (
    NONE,
    SHARED,
    SLOTS,
    arrangement,
    filled_slots,
    read_tool,
    shared_fields,
    shown_tool,
    tool_fields,
    tool_label,
    visible_keys,
)


def merge_of(*paths: str, **settings: Any) -> dict[str, Shown]:
    """What the form of a merge shows."""
    return shown_tool("merge", {"models": list(paths), "name": "mixed", **settings})


@pytest.mark.parametrize("kind", TOOLS)
def test_every_setting_has_a_control_or_is_decided_by_the_host(kind: str) -> None:
    shown = {field.path[0] for field in (*shared_fields(), *tool_fields(kind))}
    declared = {setting.name for setting in settings_of(TOOLS[kind].settings)}
    assert declared - shown - {"embeddings_folder"} == {"schema_version", "folder"}
    assert shown - declared == set() and {field.path[0] for field in shared_fields()} == set(SHARED)


@pytest.mark.parametrize("kind", TOOLS)
def test_labels_are_unique_in_a_tool_and_ids_on_the_page(kind: str) -> None:
    fields = (*shared_fields(), *tool_fields(kind))
    labels, ids = [field.label for field in fields], [field.elem_id for field in fields]
    assert sorted(labels) == sorted(set(labels))
    assert sorted(ids) == sorted(set(ids))
    assert not {field.elem_id for field in all_fields()} & set(ids)
    assert not [name for name in ids if name.endswith(RESERVED_ENDINGS)]


@pytest.mark.parametrize("kind", TOOLS)
def test_an_untouched_form_says_nothing_but_the_tool(kind: str) -> None:
    assert read_tool(kind, shown_tool(kind, {})) in (
        {"tool": kind, "name": ""},
        {"tool": kind, "name": "", "models": []},
    )


def test_the_formula_decides_what_is_seen() -> None:
    seen = {}
    for name, formula in FORMULAS.items():
        shown = merge_of("a", "b", "c", formula=name)
        keys = visible_keys("merge", shown)
        seen[name] = sum(key.endswith("_weight") for key in keys), sum(f"merge.models_{s}_path" in keys for s in SLOTS)
        assert arrangement("merge", shown).text.startswith(formula.help)
        for setting in ("beta", "density", "epsilon", "top", "seed"):
            assert (f"merge.{setting}" in keys) == (setting in formula.settings)
    assert seen["weighted_sum"] == (3, 4)  # of B, C and the D that may come
    assert seen["add_difference"] == (0, 3)
    assert seen["slerp"] == (0, 2)
    assert seen["ties"] == (3, 4)
    text = "(1 - alpha - beta) A + alpha B + beta C. Alpha, if empty: 0.25. Beta, if empty: 0.25."
    assert arrangement("merge", merge_of("a", "b", "c", formula="triple_sum")).text == text


def test_of_two_models_a_ratio_is_asked_of_more_their_weights() -> None:
    two = visible_keys("merge", merge_of("a", "b"))
    assert "merge.alpha" in two and "merge.models_b_weight" not in two
    three = visible_keys("merge", merge_of("a", "b", "c"))
    assert "merge.alpha" not in three and "merge.models_b_weight" in three
    weighted = shown_tool("merge", {"models": ["a", {"path": "b", "weight": "0.3"}]})
    assert "merge.models_b_weight" in visible_keys("merge", weighted)


def test_a_sheet_does_not_ask_for_what_its_cells_say() -> None:
    shown = shown_tool("grid", {"models": ["a", "b"], "x": "alpha"})
    assert "grid.alpha" not in visible_keys("grid", shown) and "grid.beta" not in visible_keys("grid", shown)
    assert "grid.alpha" in visible_keys("grid", shown | {"grid.x": "vae"})
    several = visible_keys("grid", shown | {"grid.x": "alpha", "grid.y": "formula"})
    assert {"grid.density", "grid.beta", "grid.models_b_weight"} <= several and "grid.alpha" not in several


def test_directions_are_only_chosen_where_there_are_fewer_than_there_were() -> None:
    keys = {
        criterion: visible_keys("extract", shown_tool("extract", {"criterion": criterion})) for criterion in CRITERIA
    }
    assert [name for name in CRITERIA if "extract.threshold" not in keys[name]] == ["rank"]
    joined = visible_keys("combine", shown_tool("combine", {"formula": "concat"}))
    assert not {"combine.rank", "combine.criterion", "combine.threshold"} & joined


def test_further_slots_appear_as_these_are_filled() -> None:
    def num_slots(*paths: str) -> int:
        keys = visible_keys("bake", shown_tool("bake", {"networks": list(paths)}))
        return sum(key.endswith("_path") for key in keys)

    assert [num_slots(*"abcdefgh"[:number]) for number in (0, 2, 3, 4, 8)] == [3, 3, 4, 5, 8]


def test_what_is_not_seen_is_not_read() -> None:
    shown = merge_of("a", "b", "c", beta="0.3", alpha="0.2")
    shown |= {"merge.formula": "SLERP", "merge.models_b_weight": "7"}
    assert read_tool("merge", shown) == {
        "tool": "merge", "name": "mixed", "formula": "slerp", "alpha": "0.2", "models": [{"path": "a"}, {"path": "b"}],
    }  # fmt: skip


def test_empty_slots_are_left_out_and_their_neighbours_keep_their_letters() -> None:
    shown = shown_tool("bake", {"name": "x", "base": "m", "networks": ["a", "b", {"path": "c", "strength": "0.5"}]})
    shown["bake.networks_b_path"] = NONE
    table = read_tool("bake", shown)
    assert table["networks"] == [{"path": "a", "strength": "1"}, {"path": "c", "strength": "0.5"}]
    slots = filled_slots("bake", shown)
    assert slots == "ac"
    assert tool_label("bake", "networks[1].strength", slots) == "Strength of C"
    assert tool_label("bake", "networks[1].path", slots) == tool_label("bake", "networks[1]", slots) == "LoRA C"
    assert tool_label("bake", "networks", slots) == "LoRAs"
    assert tool_label("bake", "dtype", slots) == "Number format"
    assert tool_label("bake", "folder", slots) == ""


CONFIGS = [
    {"tool": "merge", "name": "m", "models": ["a", {"path": "b", "weight": "1"}, {"path": "c", "weight": "0, OUT=1"}],
     "formula": "della", "density": 0.25, "seed": 3, "vae": "b", "bake_vae": "v", "discard": "ema", "overwrite": True},
    {"tool": "merge", "name": "m", "models": ["a", "b"], "alpha": "0.1"},
    {"tool": "bake", "name": "m", "base": "x", "networks": [{"path": "l", "strength": "2"}], "ignore_unknown": True},
    {"tool": "extract", "name": "m", "base": "x", "tuned": "y", "criterion": "energy", "threshold": 0.5},
    {"tool": "resize", "name": "m", "network": "x", "rank": 3},
    {"tool": "rebuild", "name": "m", "file": "x", "models": ["C:\\one", "/two"]},
]  # fmt: skip


@pytest.mark.parametrize("table", CONFIGS)
def test_settings_come_back_as_they_were(table: dict[str, Any]) -> None:
    config = load_any_tool(table)
    kind = table["tool"]
    assert load_any_tool(read_tool(kind, shown_tool(kind, dump(config)))) == config


def test_more_files_than_there_are_controls_is_said() -> None:
    with pytest.raises(ExtensionError, match="has 9 networks; the page has room for 8"):
        shown_tool("bake", {"networks": ["x"] * 9})
