"""New words in job files, and what makes them unusable."""

from __future__ import annotations

from typing import Any

import pytest

from extensions_lib.config.codec import load
from extensions_lib.config.methods import LoraConfig, PivotalConfig, TextualInversionConfig
from extensions_lib.config.words import line_of_word, word_of_line
from extensions_lib.errors import ConfigError


def job(method: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "zbadge", "base_model": "m", "dataset": {"folder": "p"}, "method": method, **more}


def mistakes(table: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(table)
    return {problem.path: problem.text for problem in caught.value.problems}


EMBEDDING = {"kind": "textual_inversion"}
PIVOTAL = {"kind": "pivotal"}


@pytest.mark.parametrize(
    "entry",
    [
        {"word": "zhat", "vectors_per_token": 2, "initializer_text": ""},
        {"word": "zhat", "vectors_per_token": 12, "initializer_text": "3, red, hat"},
    ],
)
def test_a_line_says_all_of_a_word(entry: dict[str, Any]) -> None:
    assert {"initializer_text": "", **word_of_line(line_of_word(entry))} == entry


def test_a_pivotal_job_has_the_settings_of_both_by_declaration() -> None:
    method = load(job({**PIVOTAL, "rank": 3, "vectors_per_token": 5, "further_words": ["zhat: 2"]})).method
    assert isinstance(method, PivotalConfig) and isinstance(method, LoraConfig)
    assert (method.rank, method.vectors_per_token, method.further_words[0].vectors_per_token) == (3, 5, 2)
    assert not isinstance(method, TextualInversionConfig)


def test_the_words_of_a_job_in_order_with_their_vectors() -> None:
    further = {"further_words": ["zhat: 2", "zbag: 3"]}
    assert load(job({**EMBEDDING, **further})).new_words == {"zbadge": 4, "zhat": 2, "zbag": 3}
    dataset = {"folder": "p", "trigger_word": "zword"}
    assert load(job({**PIVOTAL, **further}, dataset=dataset)).new_words == {"zword": 4, "zhat": 2, "zbag": 3}
    assert load(job({"kind": "lora"})).new_words == {}


@pytest.mark.parametrize("method", [EMBEDDING, PIVOTAL], ids=["embedding", "pivotal"])
def test_words_that_cannot_be_files_or_are_the_same(method: dict[str, Any]) -> None:
    found = mistakes(job({**method, "further_words": ["a/b", "ZBadge", "zhat", "zhat", " :2"]}))
    assert "accepted are file names without any of" in found["method.further_words[0].word"]
    assert found["method.further_words[1].word"] == (
        "is 'ZBadge', which is another word of this job; case does not count"
    )
    assert "method.further_words[2].word" not in found
    assert "another word of this job" in found["method.further_words[3].word"]
    assert "is ''" in found["method.further_words[4].word"]


def test_a_word_inside_a_lora_has_no_dot() -> None:
    dotted = {"further_words": ["z.hat"]}
    dataset = {"folder": "p", "trigger_word": "z.badge"}
    found = mistakes(job({**PIVOTAL, **dotted}, dataset=dataset))
    assert set(found) == {"dataset.trigger_word", "method.further_words[0].word"}
    assert "a word inside a LoRA has no dot" in found["dataset.trigger_word"]
    assert load(job({**PIVOTAL, **dotted, "embedding_files": "beside"}, dataset=dataset))
    assert load(job({**EMBEDDING, **dotted}))
    assert "dataset.trigger_word" in mistakes(job({**PIVOTAL, "embedding_files": "both"}, dataset=dataset))


def test_a_word_that_becomes_a_file_is_a_file_name() -> None:
    dataset = {"folder": "p", "trigger_word": "what?"}
    assert load(job(PIVOTAL, dataset=dataset))
    found = mistakes(job({**PIVOTAL, "embedding_files": "beside"}, dataset=dataset))
    assert "is 'what?', accepted are file names" in found["dataset.trigger_word"]


def test_a_relative_rate_is_not_for_prodigy() -> None:
    method = {**EMBEDDING, "relative_learning_rate": 0.05}
    assert load(job(method))
    found = mistakes(job(method, optimizer={"optimizer": "prodigy"}))
    assert found == {"method.relative_learning_rate": "cannot be used with prodigy, which finds its own"}
