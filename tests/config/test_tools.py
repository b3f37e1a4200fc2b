"""The catalogue of tools: one declaration, one runner, a table there and back."""

import pytest

from extensions_lib.config.artefacts import ARTEFACTS
from extensions_lib.config.field import settings_of
from extensions_lib.config.tools import TOOLS, dump_tool, kind_of, load_any_tool, load_tool
from extensions_lib.errors import ConfigError
from extensions_lib.merge.tools import RUNNERS
from extensions_lib.training.tools import DRAWERS


def test_every_tool_has_a_runner_and_makes_a_known_kind():
    assert {*RUNNERS, *DRAWERS} == TOOLS.keys()
    assert {kind for kind, tool in TOOLS.items() if tool.draws} == DRAWERS.keys()
    assert all(tool.makes in ("", *ARTEFACTS) for tool in TOOLS.values())


@pytest.mark.parametrize("kind", TOOLS)
def test_no_two_settings_stand_for_the_same_flag(kind):
    names = [setting.name for setting in settings_of(TOOLS[kind].settings)]
    assert len(names) == len(set(names)) and {"name", "folder", "overwrite"} <= set(names)


def test_a_table_there_and_back():
    config = load_tool("resize", {"name": "small", "network": "big.safetensors", "rank": 4})
    assert kind_of(config) == "resize" and load_any_tool(dump_tool(config)) == config


def test_an_unknown_tool_and_a_name_that_is_no_file():
    with pytest.raises(ConfigError, match="'mix', accepted are merge, bake"):
        load_any_tool({"tool": "mix", "name": "x"})
    with pytest.raises(ConfigError, match="accepted are file names"):
        load_tool("resize", {"name": "../x", "network": "y"})
