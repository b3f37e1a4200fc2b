"""What is no file is refused before it is opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from extensions_lib.errors import FormatError, ModelError
from extensions_lib.formats.safetensors_io import read_header
from extensions_lib.formats.torch_file import read_torch_file


@pytest.mark.parametrize("read", [read_header, read_torch_file])
class TestNotRegular:
    """Both kinds of readers."""

    def test_pipe_does_not_wait_for_its_writer(self, tmp_path, read):
        path = tmp_path / "pipe.safetensors"
        os.mkfifo(path)
        with pytest.raises(FormatError, match="a device or a pipe"):
            read(path)

    def test_folder(self, tmp_path, read):
        with pytest.raises(FormatError, match="is a folder"):
            read(tmp_path)

    def test_name_that_no_file_can_have(self, read):
        with pytest.raises(ModelError, match="null byte"):
            read(Path("a\0b.safetensors"))

    def test_too_long_a_name(self, tmp_path, read):
        with pytest.raises(ModelError, match="too long"):
            read(tmp_path / ("x" * 1000))
