"""Expressions that cannot take forever."""

from __future__ import annotations

import time

import pytest

from extensions_lib.config.expressions import checked_expression
from extensions_lib.config.tools import load_tool
from extensions_lib.errors import ConfigError, MergeError
from extensions_lib.merge.blocks import BLOCK_MAPS, parse_ratios

GOOD = (
    "", "attn2", r"^first_stage_model\.|^betas$", "attn1|attn2|ff", r"input_blocks\.(4|5|6)\.\d+\..*to_[kv]",
    "[(*+)]*x", r"\(\)\*\+", r"(?i)ATTN", r"(?:to_q|to_k)\.weight", r"(?!x)attn", r"\d{2}", r"a*?b+",
)  # fmt: skip
BAD = (
    ("(a+)+$", "repeats a group"), ("([a-z_.0-9]+)+Z", "repeats a group"), ("(x|x)*", "repeats a group"),
    ("(a?){9}", "repeats a group"), ("(?x)(a+) +", "repeats a group"), (".*.*.*.*Z", "4 repeats"),
    ("a?a?a?a?aaa", "4 repeats"), ("(a|a)(a|a)(a|a)(a|a)", "4 groups"), ("(", "no regular expression"),
    ("a" * 201, "201 characters"), ("a{99999999999}", "no regular expression"),
)  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_good(text):
    assert checked_expression(text).pattern == text


@pytest.mark.parametrize(("text", "why"), BAD)
def test_bad(text, why):
    with pytest.raises(ValueError, match=why):
        checked_expression(text)


def test_those_of_settings_are_looked_at():
    with pytest.raises(MergeError, match="repeats a group"):
        parse_ratios("0.5, (a+)+$=1", BLOCK_MAPS["sd1"])
    table = {"name": "x", "models": ["a", "b"], "discard": "(a+)+$"}
    with pytest.raises(ConfigError, match=r"discard: is '\(a\+\)\+\$': it repeats a group"):
        load_tool("merge", table)


@pytest.mark.parametrize("text", ["a" * 100_000, "0.5," + "\\/" * 50_000, "= " * 20_000])
def test_long_block_weights(text):
    begin = time.monotonic()
    with pytest.raises(MergeError, match="characters; accepted are up to 4000"):
        parse_ratios(text, BLOCK_MAPS["sd1"])
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "\x1b[31m", "x" * 201, "é" * 101, "\ud800"])
def test_names_that_no_list_shows(name):
    with pytest.raises(ConfigError, match="name: (is|has)"):
        load_tool("merge", {"name": name, "models": ["a", "b"]})


@pytest.mark.parametrize("name", ["é" * 100, "猫", "👩‍🎨", "a\u00a0b", "x.safetensors"])
def test_names_in_any_language(name):
    load_tool("merge", {"name": name, "models": ["a", "b"]})


def test_a_slash_without_its_partner():
    with pytest.raises(MergeError, match="a slash has no partner"):
        parse_ratios("0.5, /a=1", BLOCK_MAPS["sd1"])
