from __future__ import annotations

from typing import Any

import pytest

from extensions_lib.config.codec import check_partial
from extensions_lib.config.foreign.plain import arguments, number, numbers, plain, switch, whole
from extensions_lib.config.foreign.recipe import (
    NOTHING,
    Remark,
    Rule,
    Said,
    missing,
    one_of,
    rule,
    set_to,
    silent,
    translate,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("None", None), ("", None), ("True", True), ("false", False), ("12", 12), ("1e-4", 1e-4), ("-3", -3),
        ("(512, 768)", (512, 768)), ('{"a": 1}', {"a": 1}), ("[1, 2]", [1, 2]), ("cosine", "cosine"),
        ("{broken", "{broken"), ("(1", "(1"), (7, 7), ("0x1f", "0x1f"), ("(open)", "(open)"),
    ],
)  # fmt: skip
def test_a_metadata_text_becomes_the_value_it_stands_for(text: Any, value: Any) -> None:
    assert plain(text) == value


def test_nothing_of_a_file_is_evaluated() -> None:
    text = "(__import__('os').getpid(), 1)"
    assert plain(text) == text


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"a": "1", "b": "x"}, {"a": 1, "b": "x"}),
        (["a=1", "b=(0.9, 0.99)", "nothing"], {"a": 1, "b": (0.9, 0.99)}),
        ("weight_decay=0.1,betas=(0.9, 0.99),d=True", {"weight_decay": 0.1, "betas": (0.9, 0.99), "d": True}),
        (None, {}),
    ],
)
def test_arguments_in_all_their_forms(value: Any, found: dict[str, Any]) -> None:
    assert arguments(value) == found


@pytest.mark.parametrize(
    ("read", "value"),
    [(whole, 1.5), (whole, True), (number, "x"), (switch, "perhaps"), (switch, 2), (numbers, ""), (numbers, "a,b")],
)
def test_what_cannot_be_read_is_an_error(read: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|could not convert"):
        read(value)


def test_numbers_of_a_size() -> None:
    assert numbers("512,768") == numbers("512x768") == numbers((512, 768)) == numbers("(512, 768)") == (512.0, 768.0)
    assert numbers(512) == (512.0,)


RULES = (
    rule("rank", set_to("method.rank", whole)),
    rule("seed", set_to("training.seed", whole)),
    rule("loss", one_of("training.loss_type", {"l2": "mse"}, "accepted is l2")),
    rule("colours", missing("colours are not changed here")),
    Rule(("width", "height"), lambda w, h, facts: Said({"dataset.resolution_px": min(w, h)}, "the shorter side")),
    rule("vectors", set_to("method.vectors_per_token", whole)),
    rule("off", lambda value, facts: NOTHING),
    *silent("log"),
)


def remarks(found: tuple[Remark, ...]) -> list[tuple[str, Any, str]]:
    return [(each.name, each.value, each.text) for each in found]


def test_rules_fill_a_partial_job_and_say_what_does_not_map() -> None:
    facts = {"rank": "8", "loss": "L2", "width": 512, "height": 768, "log": "x", "unheard": 3, "empty": None, "off": 1}
    recipe = translate("a test", facts, RULES, "lora")
    assert recipe.table == {
        "preset": "lora_character",
        "method": {"kind": "lora", "rank": 8},
        "training": {"loss_type": "mse"},
        "dataset": {"resolution_px": 512},
    }
    check_partial(recipe.table)
    assert remarks(recipe.unmapped) == [("unheard", 3, "is not known to Train Studio")]
    assert remarks(recipe.approximated) == [("width, height", {"width": 512, "height": 768}, "the shorter side")]


def test_values_out_of_range_are_listed_and_never_clamped() -> None:
    recipe = translate("a test", {"rank": 5000, "seed": -1, "loss": "l1", "colours": True}, RULES, "lora")
    assert recipe.table == {"preset": "lora_character", "method": {"kind": "lora"}}
    assert remarks(recipe.unmapped) == [
        ("loss", "l1", "accepted is l2"),
        ("colours", True, "colours are not changed here"),
        ("rank", 5000, "method.rank is 5000, accepted are 1 to 1024"),
        ("seed", -1, "training.seed is -1, accepted are 0 to 4294967295"),
    ]


def test_what_is_off_needs_no_word_and_what_cannot_be_read_says_so() -> None:
    recipe = translate("a test", {"colours": False, "rank": "many"}, RULES, "lora")
    assert remarks(recipe.unmapped) == [("rank", "many", "cannot be read: could not convert string to float: 'many'")]


def test_a_setting_of_another_method_is_no_setting_of_this_one() -> None:
    recipe = translate("a test", {"vectors": 4}, RULES, "lora")
    assert remarks(recipe.unmapped) == [("vectors", 4, "method.vectors_per_token is no setting of the method lora")]


def test_the_notes_are_lines_for_a_job_file() -> None:
    recipe = translate("a test", {"rank": 5000, "width": 640, "height": 512}, RULES, "lora")
    assert recipe.notes() == [
        "The settings of a test.",
        "Not taken over:",
        "  rank = 5000: method.rank is 5000, accepted are 1 to 1024",
        "Taken over about:",
        '  width, height = {"width": 640, "height": 512}: the shorter side',
    ]


def test_a_value_that_is_refused_is_not_said_to_be_taken_over() -> None:
    recipe = translate("a test", {"width": 8, "height": 512}, RULES, "lora")
    assert [each.text for each in recipe.unmapped] == ["dataset.resolution_px is 8, accepted are 32 to 4096 px"]
    assert recipe.approximated == ()
