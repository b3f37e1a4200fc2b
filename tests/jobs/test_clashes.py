"""Names that would get in each other's way, by the real vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from extensions_lib.config.codec import load
from extensions_lib.config.job import TrainJobConfig
from extensions_lib.jobs.clashes import contains, name_warnings, result_files, word_warnings
from extensions_lib.models.tokenizer import PromptTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer.from_open_clip()


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Path]:
    folders = {"lora": tmp_path / "Lora", "textual_inversion": tmp_path / "embeddings", "other": tmp_path / "none"}
    (folders["lora"] / "sub").mkdir(parents=True)
    folders["textual_inversion"].mkdir()
    for name in ("fluffy.pt", "fluffy.preview.png", "Red Cat.safetensors"):
        (folders["textual_inversion"] / name).touch()
    (folders["lora"] / "zbadge.safetensors").touch()
    (folders["lora"] / "sub" / "Zbadge.pt").touch()
    return folders


def job(kind: str, name: str, **dataset: Any) -> TrainJobConfig:
    return load({"name": name, "base_model": "m", "dataset": {"folder": "f", **dataset}, "method": {"kind": kind}})


def test_result_files_are_model_files_only(results: dict[str, Path]) -> None:
    assert [path.name for path in result_files(results["textual_inversion"])] == ["Red Cat.safetensors", "fluffy.pt"]
    assert list(result_files(results["other"])) == []


def test_a_file_of_the_same_name_is_named(results: dict[str, Path]) -> None:
    own = results["lora"] / "zbadge.safetensors"
    assert name_warnings(job("lora", "zbadge"), own, results) == [
        "'zbadge' is also the name of another LoRA, Zbadge.pt: prompts will reach only one of the two."
    ]
    own = results["lora"] / "fluffy.safetensors"
    assert name_warnings(job("lora", "fluffy"), own, results) == [
        "'fluffy' is also the name of an existing embedding, fluffy.pt: the two are easily mixed up in prompts."
    ]
    assert name_warnings(job("lora", "other"), results["lora"] / "other.safetensors", results) == []


@pytest.mark.parametrize(("name", "is_word"), [("cat", True), ("Badge", True), ("zbadge", False), ("my cat", False)])
def test_an_embedding_called_like_a_word(
    results: dict[str, Path], tokenizer: PromptTokenizer, name: str, is_word: bool
) -> None:
    warnings = word_warnings(job("textual_inversion", name), results, tokenizer.tokenize)
    assert [f"{name!r} is an ordinary word" in warning for warning in warnings] == [True] * is_word


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("a RED cat sitting", ["'Red Cat'"]),
        ("fluffy red cat", ["'Red Cat'", "'fluffy'"]),
        ("red fat cat", []),
        ("fluffycat", []),
        ("zbadge", []),
    ],
)
def test_a_trigger_word_with_an_embedding_in_it(
    results: dict[str, Path], tokenizer: PromptTokenizer, word: str, found: list[str]
) -> None:
    warnings = word_warnings(job("lora", "x", trigger_word=word), results, tokenizer.tokenize)
    assert len(warnings) == len(found)
    assert all(name in warning for name, warning in zip(found, warnings, strict=True))


def test_the_name_is_the_word_when_there_is_no_other(results: dict[str, Path], tokenizer: PromptTokenizer) -> None:
    assert "contains 'fluffy'" in word_warnings(job("lora", "my fluffy"), results, tokenizer.tokenize)[0]
    assert word_warnings(job("lora", "my fluffy"), {}, tokenizer.tokenize) == []


def test_contains() -> None:
    assert contains([1, 2, 3], [2, 3]) and contains([1], [1])
    assert not contains([1, 2, 3], [1, 3]) and not contains([1], [1, 2]) and not contains([1], [])
