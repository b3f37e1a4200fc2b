from __future__ import annotations

import random
from collections import Counter

import pytest

from extensions_lib.data.caption_maker import BUILTIN_TEMPLATES, CaptionMaker, augment, fill_template, load_template
from extensions_lib.errors import DatasetError


@pytest.mark.parametrize("source", BUILTIN_TEMPLATES)
def test_builtin_templates(source) -> None:
    lines = load_template(source).lines
    assert len(set(lines)) == len(lines)
    if source in ("none", "filewords"):
        assert lines == ("[filewords]",)
        return
    assert 10 <= len(lines) <= 20
    assert all(line.count("[name]") == 1 for line in lines)
    assert all(("[filewords]" in line) == source.endswith("filewords") for line in lines)


def test_template_from_a_file_or_a_text(tmp_path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(b"\xef\xbb\xbfa [name]\r\n\r\n  fixed  \n")
    assert load_template(str(path)).lines == ("a [name]", "fixed")
    assert load_template("photo of [name]").lines == ("photo of [name]",)
    assert load_template("one [filewords]\ntwo").lines == ("one [filewords]", "two")


@pytest.mark.parametrize("source", ["subjct", "", "/no/such/file.txt"])
def test_unknown_template(source) -> None:
    with pytest.raises(DatasetError) as caught:
        load_template(source)
    assert caught.value.message == f"There is no caption template {source!r}."
    assert "subject_filewords" in caught.value.hint and "[filewords]" in caught.value.hint


def test_template_without_lines(tmp_path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text("\n \n")
    with pytest.raises(DatasetError, match="has no lines"):
        load_template(str(path))


@pytest.mark.parametrize(
    ("line", "filewords", "text"),
    [
        ("a photo of [name], [filewords]", "red, hat", "a photo of sks, red, hat"),
        ("a photo of [name], [filewords]", "", "a photo of sks"),
        ("[filewords], in the style of [name]", "", "in the style of sks"),
        ("[filewords]", "", ""),
        ("[filewords]", "a photo of [name]", "a photo of sks"),
        ("[name]  [name]", "x", "sks sks"),
        ("fixed", "x", "fixed"),
    ],
)
def test_filling_a_template(line, filewords, text) -> None:
    assert fill_template(line, name="sks", filewords=filewords) == text


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ({}, "a,b ,c", "a,b ,c"),
        ({"shuffle_tags": True}, "no commas here", "no commas here"),
        ({"shuffle_tags": True, "keep_first_tags": 3}, "a,b ,, c", "a, b, c"),
        ({"tag_dropout": 1.0}, "a, b, c", ""),
        ({"tag_dropout": 1.0, "keep_first_tags": 1}, "a, b, c", "a"),
    ],
)
def test_tags_without_chance(options, text, expected) -> None:
    settings = {"shuffle_tags": False, "keep_first_tags": 0, "tag_dropout": 0.0, **options}
    assert augment(text, random.Random(0), **settings) == expected


def test_shuffling_keeps_the_first_and_loses_none() -> None:
    tags = [f"t{i}" for i in range(12)]
    seen = set()
    for seed in range(20):
        text = augment(", ".join(tags), random.Random(seed), shuffle_tags=True, keep_first_tags=2, tag_dropout=0.0)
        got = text.split(", ")
        assert got[:2] == tags[:2] and sorted(got) == sorted(tags)
        seen.add(text)
    assert len(seen) == 20


def test_tag_dropout_has_its_probability() -> None:
    text = ", ".join(f"t{i}" for i in range(4000))
    kept = augment(text, random.Random(1), shuffle_tags=False, keep_first_tags=0, tag_dropout=0.25).split(", ")
    assert len(kept) == pytest.approx(3000, abs=100)
    assert kept == sorted(kept, key=lambda tag: int(tag[1:]))


def test_captions_depend_on_seed_epoch_example_and_repeat_only(make_example) -> None:
    def make() -> CaptionMaker:
        return CaptionMaker(load_template("subject_filewords"), name="sks", shuffle_tags=True, caption_dropout=0.1)

    example = make_example(3, caption=", ".join("abcdefgh"))
    first = make().caption(example, seed=1, epoch=2, repeat=0)
    busy = make()
    busy.caption(make_example(9), seed=5, epoch=6)
    assert busy.caption(example, seed=1, epoch=2, repeat=0) == first
    others = [
        busy.caption(example, seed=2, epoch=2, repeat=0),
        busy.caption(example, seed=1, epoch=3, repeat=0),
        busy.caption(example, seed=1, epoch=2, repeat=1),
        busy.caption(make_example(4, caption=example.caption), seed=1, epoch=2, repeat=0),
    ]
    assert first not in others and len(set(others)) == 4


def test_captions_are_the_same_on_every_machine(make_example) -> None:
    maker = CaptionMaker(load_template("a [name], [filewords]\nmy [name], [filewords]"), name="sks", shuffle_tags=True)
    example = make_example(0, caption="red, round, big")
    texts = [maker.caption(example, seed=7, epoch=epoch) for epoch in range(3)]
    assert texts == EXPECTED


EXPECTED = ["a sks, round, big, red", "a sks, red, big, round", "a sks, big, round, red"]


def test_every_line_of_a_template_is_used(make_example) -> None:
    maker = CaptionMaker(load_template("subject"), name="sks")
    seen = Counter(maker.caption(make_example(0), seed=0, epoch=epoch) for epoch in range(2000))
    assert set(seen) == {line.replace("[name]", "sks") for line in load_template("subject").lines}
    assert min(seen.values()) > 100


def test_caption_dropout_gives_the_empty_text(make_example) -> None:
    maker = CaptionMaker(load_template("a [name]"), name="sks", caption_dropout=0.2)
    texts = Counter(maker.caption(make_example(i), seed=0, epoch=0) for i in range(2000))
    assert set(texts) == {"", "a sks"}
    assert texts[""] == pytest.approx(400, abs=60)


@pytest.mark.parametrize(
    ("template", "options", "constant"),
    [
        ("[filewords]", {}, True),
        ("[filewords]", {"keep_first_tags": 2}, True),
        ("[filewords]", {"shuffle_tags": True}, False),
        ("[filewords]", {"tag_dropout": 0.1}, False),
        ("[filewords]", {"caption_dropout": 0.1}, False),
        ("subject", {}, False),
    ],
)
def test_constant_captions_are_known_as_such(template, options, constant, make_example) -> None:
    maker = CaptionMaker(load_template(template), name="sks", **options)
    examples = [make_example(0, caption="a, b"), make_example(1, caption="c")]
    assert maker.is_constant is constant
    if constant:
        assert maker.all_captions(examples) == ("a, b", "c")
    else:
        with pytest.raises(ValueError, match="change from epoch to epoch"):
            maker.all_captions(examples)
