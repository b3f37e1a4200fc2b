from __future__ import annotations

import pytest

from extensions_lib.data.captions import caption_for, decode_text, remove_prompt_syntax, words_of_name
from extensions_lib.errors import DatasetError


@pytest.mark.parametrize(
    ("stem", "words"),
    [
        ("a red cat", "a red cat"),
        ("0001-0-a red cat", "a red cat"),
        ("00012 cat", "cat"),
        ("-cat", "cat"),
        ("cat 2", "cat 2"),
        ("cat_on_a_mat", "cat_on_a_mat"),
        ("0001", ""),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_words_of_a_file_name(stem, words) -> None:
    assert words_of_name(stem) == words


def test_words_of_a_file_name_by_pattern() -> None:
    assert words_of_name("01-red_cat(3)", word_pattern=r"[a-z]+", join_with=", ") == "red, cat"
    with pytest.raises(DatasetError, match=r"The pattern for words in file names, '\[', is wrong"):
        words_of_name("cat", word_pattern="[")


def test_the_text_file_comes_before_the_file_name(tmp_path) -> None:
    (tmp_path / "a.b.txt").write_text("a blue\r\n bird,  flying \n", encoding="utf-8")
    found = caption_for(tmp_path / "a.b.png")
    assert (found.text, found.source, found.notes) == ("a blue bird, flying", "file", ())
    named = caption_for(tmp_path / "12 dog.png")
    assert (named.text, named.source, named.notes) == ("dog", "file name", ())


def test_missing_words_are_noted(tmp_path) -> None:
    (tmp_path / "a.txt").write_text(" \n")
    assert caption_for(tmp_path / "a.png").notes == ("the caption file is empty",)
    nameless = caption_for(tmp_path / "0001.png")
    assert nameless.text == ""
    assert nameless.notes == ("no caption: there is no text file and the file name has no words",)


def test_an_unreadable_text_file_is_an_error(tmp_path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(DatasetError, match="The caption file a.txt cannot be read"):
        caption_for(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("data", "text", "notes"),
    [
        ("caf\u00e9".encode(), "caf\u00e9", []),
        (b"\xef\xbb\xbfcat", "cat", []),
        (b"caf\xe9", "caf\u00e9", ["the caption file is not UTF-8: read as Windows 1252"]),
        (b"\x81", "\ufffd", ["the caption file is not UTF-8: read as Windows 1252"]),
        ("\ufeffcat".encode("utf-16-le"), "cat", ["the caption file is UTF-16"]),
        (b"", "", []),
    ],
)
def test_text_encodings(data, text, notes) -> None:
    assert decode_text(data) == (text, notes)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a cat, <lora:cat_v1:0.8>, sitting", "a cat, sitting"),
        ("a cat <hypernet:x:1>", "a cat"),
        ("(red hat:1.2), cat", "red hat, cat"),
        ("((red:1.1) hat :1.2)", "red hat"),
        ("miku \\(vocaloid:2\\), (green hair)", "miku \\(vocaloid:2\\), (green hair)"),
        ("odd,, commas , stay", "odd,, commas , stay"),
        ("at 16:9 :) <3", "at 16:9 :) <3"),
    ],
)
def test_prompt_syntax_is_removed(text, cleaned) -> None:
    assert remove_prompt_syntax(text) == cleaned
