"""Names that would get in each other's way, by the real vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from extensions_lib.config.artefacts import ARTEFACTS
from extensions_lib.config.codec import load
from extensions_lib.config.job import TrainJobConfig
from extensions_lib.jobs.clashes import contains, name_warnings, result_files, word_warnings
from extensions_lib.models.tokenizer import PromptTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer.from_open_clip()


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Path]:
    names = {
        "lora": "Lora", "embedding": "embeddings", "hypernetwork": "hypernetworks", "checkpoint": "Stable-diffusion"
    }  # fmt: skip
    folders = {kind: tmp_path / name for kind, name in names.items()}
    (folders["lora"] / "sub").mkdir(parents=True)
    (folders["checkpoint"] / "sub").mkdir(parents=True)
    folders["embedding"].mkdir()
    for name in ("fluffy.pt", "fluffy.preview.png", "Red Cat.safetensors"):
        (folders["embedding"] / name).touch()
    (folders["lora"] / "zbadge.safetensors").touch()
    (folders["lora"] / "sub" / "Zbadge.pt").touch()
    (folders["checkpoint"] / "zbadge.safetensors").touch()
    (folders["checkpoint"] / "zbadge.pt").touch()
    return folders


def job(kind: str | dict[str, Any], name: str, **dataset: Any) -> TrainJobConfig:
    method = {"kind": kind} if isinstance(kind, str) else kind
    return load({"name": name, "base_model": "m", "dataset": {"folder": "f", **dataset}, "method": method})


def test_result_files_are_model_files_only(results: dict[str, Path]) -> None:
    suffixes = ARTEFACTS["embedding"].suffixes
    assert [path.name for path in result_files(results["embedding"], suffixes)] == ["Red Cat.safetensors", "fluffy.pt"]
    assert list(result_files(results["hypernetwork"], suffixes)) == []


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


def test_a_checkpoint_meets_only_checkpoints(results: dict[str, Path]) -> None:
    own = results["checkpoint"] / "sub" / "zbadge.safetensors"
    assert name_warnings(job("dreambooth", "zbadge"), own, results) == [
        "'zbadge' is also the name of another checkpoint, zbadge.safetensors: the WebUI lists both, and they are "
        "easily mixed up."
    ]


def test_every_kind_has_a_word_a_folder_of_its_own_and_a_tag_or_none() -> None:
    assert {kind: artefact.call("cat-000400", "zcat") for kind, artefact in ARTEFACTS.items()} == {
        "lora": "<lora:cat-000400:1> zcat",
        "embedding": "cat-000400",
        "checkpoint": "zcat",
        "hypernetwork": "<hypernet:cat-000400:1> zcat",
    }
    assert ARTEFACTS["lora"].call("cat", "") == "<lora:cat:1>"


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


def test_the_further_files_of_a_job_are_looked_at_too(results: dict[str, Path]) -> None:
    own = results["embedding"] / "zbadge.safetensors"
    method = {"kind": "textual_inversion", "further_words": ["Fluffy", "cat"]}
    beside = [(results["embedding"] / f"{word}.safetensors", "embedding") for word in ("Fluffy", "cat")]
    assert name_warnings(job(method, "other"), own, results, beside) == [
        "'Fluffy' is also the name of another embedding, fluffy.pt: prompts will reach only one of the two."
    ]
    mine = [(results["embedding"] / "fluffy.pt", "embedding")]
    assert name_warnings(job(method, "other"), own, results, mine) == []
    assert name_warnings(job("lora", "other"), own, results, [(own.with_name("zbadge.yaml"), "")]) == []


def test_each_of_several_words_may_be_an_ordinary_one(results: dict[str, Path], tokenizer: PromptTokenizer) -> None:
    config = job({"kind": "textual_inversion", "further_words": ["Badge", "zhat", "cat"]}, "zbadge")
    warnings = word_warnings(config, results, tokenizer.tokenize)
    assert [warning.split()[0] for warning in warnings] == ["'Badge'", "'cat'"]


def test_a_word_inside_a_lora_meets_only_embeddings_of_its_own_name(
    results: dict[str, Path], tokenizer: PromptTokenizer
) -> None:
    """The WebUI leaves it out when an embedding has the name; a longer word wins over what it contains."""
    words = {"kind": "pivotal", "further_words": ["FLUFFY", "cat"]}
    warnings = word_warnings(job(words, "x", trigger_word="my red cat"), results, tokenizer.tokenize)
    assert len(warnings) == 1
    assert warnings[0].startswith("The word 'FLUFFY' is also called by an existing embedding, 'fluffy': prompts would")
    own = [(results["embedding"] / "fluffy.pt", "embedding")]
    assert word_warnings(job(words, "x", trigger_word="y"), results, tokenizer.tokenize, own) == []
