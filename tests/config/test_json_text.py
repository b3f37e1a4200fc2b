"""All that is wrong with a JSON text is a ValueError."""

from __future__ import annotations

import pytest

from extensions_lib.config.codec import read_table
from extensions_lib.config.json_text import parse_json
from extensions_lib.errors import ConfigError


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a":' * 100_000])
def test_bad_text(text):
    with pytest.raises(ValueError, match="Expecting|nested too deeply"):
        parse_json(text)


@pytest.mark.parametrize(("name", "text"), [("deep.json", "[" * 100_000), ("deep.toml", "a = " + "[" * 100_000)])
def test_deep_settings_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match="is not valid"):
        read_table(tmp_path / name)
