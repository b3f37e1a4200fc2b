"""The .yaml beside a result: nothing is lost, and no result is read with another's."""

from __future__ import annotations

import pytest

from extensions_lib.errors import OutputError
from extensions_lib.merge.description import write_description


@pytest.fixture
def described(abc):
    abc[0].with_suffix(".yaml").write_text("model: {}")
    return abc


def test_a_folder_in_its_place_costs_nothing(tmp_path, described, merge):
    out = tmp_path / "out"
    (out / "mixed.yaml").mkdir(parents=True)
    (out / "mixed.safetensors").write_bytes(b"old")
    with pytest.raises(OutputError, match="already exists and was not touched"):
        merge(described[:2], overwrite=True)
    assert (out / "mixed.safetensors").read_bytes() == b"old"


def test_anothers_is_not_replaced_unless_allowed(tmp_path, described, merge):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mixed.yaml").write_text("other: 1")
    with pytest.raises(OutputError, match="mixed.yaml, the description that mixed.safetensors needs"):
        merge(described[:2])
    assert [path.name for path in out.iterdir()] == ["mixed.yaml"]
    (out / "mixed.yaml").write_text("model: {}")
    assert merge(described[:2]).yaml == out / "mixed.yaml", "the very same may stay"
    (out / "mixed.yaml").write_text("other: 1")
    merge(described[:2], overwrite=True)
    assert (out / "mixed.yaml").read_text() == "model: {}"


def test_anothers_would_be_read_for_a_result_without(tmp_path, abc, merge):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mixed.yaml").write_text("model: {params: {parameterization: v}}")
    with pytest.raises(OutputError, match="would be read as the description of mixed.safetensors"):
        merge(abc[:2], overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_at_the_end(tmp_path, overwrite):
    """A new result is taken back; the only copy of one that replaced another is not."""
    output = tmp_path / "a.safetensors"
    output.write_bytes(b"new")
    (tmp_path / "a.yaml").mkdir()
    with pytest.raises(OutputError):
        write_description(output, b"x", overwrite=overwrite)
    assert output.exists() == overwrite
