"""Layers of a hypernetwork as text."""

from __future__ import annotations

from typing import Any

import pytest

from extensions_lib.config.codec import load
from extensions_lib.config.hypernetwork import parse_dropout_structure, parse_layer_structure, parse_widths
from extensions_lib.errors import ConfigError


def job(**method: Any) -> Any:
    table = {"name": "x", "base_model": "m", "dataset": {"folder": "f"}}
    return load({**table, "method": {"kind": "hypernetwork", **method}}).method


def test_what_is_read() -> None:
    assert parse_layer_structure("1, 2,1.5 ,1") == (1.0, 2.0, 1.5, 1.0)
    assert parse_dropout_structure("0, .3, 0", 3) == (0.0, 0.3, 0.0)
    assert parse_dropout_structure(" ", 4) == (0.0,) * 4
    assert parse_widths("768, 320") == (768, 320)
    assert parse_widths("") == ()


def test_the_largest_dropout_counts() -> None:
    assert job(layer_structure="1, 2, 2, 1", dropout_structure="0, 0.1, 0.3, 0").dropout == 0.3
    assert job().dropout == 0.0


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"layer_structure": "1"}, "method.layer_structure: is '1', accepted are at least two numbers"),
        ({"layer_structure": "1, 2"}, "of which the first and the last are 1"),
        ({"layer_structure": "1, x, 1"}, "accepted are numbers with commas"),
        ({"layer_structure": "1, -2, 1"}, "accepted are sizes above 0 up to 64"),
        ({"layer_structure": "1, 9999, 1"}, "accepted are sizes above 0 up to 64"),
        ({"dropout_structure": "0, 0.3"}, "method.dropout_structure: is '0, 0.3', accepted are 3 numbers"),
        ({"dropout_structure": "0.1, 0.3, 0"}, "the first and the last 0"),
        ({"dropout_structure": "0, 1, 0"}, "accepted are shares from 0 to below 1"),
        ({"dropout_structure": "0, nan, 0"}, "accepted are shares from 0 to below 1"),
        ({"widths": "768.5"}, "method.widths: is '768.5', accepted are whole numbers"),
        ({"widths": "inf"}, "accepted are whole numbers"),
        ({"activation": "prelu"}, "method.activation"),
    ],
)
def test_mistakes_say_what_is_accepted(method: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        job(**method)
