from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from extensions_lib.errors import ConfigError, FormatError, ModelError
from extensions_lib.models import vocabulary
from extensions_lib.models.tokenizer import PromptTokenizer

START, END, COMMA, CAT, DOG = 49406, 49407, 267, 2368, 1929


def bodies(chunks: list[list[int]]) -> list[list[int]]:
    """The ids of each chunk between start and first end."""
    assert all(len(chunk) == 77 and chunk[0] == START and chunk[-1] == END for chunk in chunks)
    return [chunk[1 : chunk.index(END)] for chunk in chunks]


def joined(chunks: list[list[int]]) -> list[int]:
    return [token for chunk in chunks for token in chunk]


def test_ids_are_openais(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.tokenize("a photo of a cat") == [320, 1125, 539, 320, CAT]
    assert tokenizer.tokenize("A  Photo of a CAT") == [320, 1125, 539, 320, CAT]
    assert (tokenizer.num_vocabulary, tokenizer.start_id, tokenizer.end_id) == (49408, START, END)
    assert tokenizer.comma_id == COMMA


def test_vocabulary_has_openais_order() -> None:
    tokens, merges = vocabulary.read_bpe(vocabulary.find_bpe_file())
    assert len(tokens) == 49408 and len(merges) == 48894
    assert [tokens["!"], tokens["\u00ff"], tokens["\u0100"], tokens["!</w>"]] == [0, 187, 188, 256]
    assert [tokens["in"], tokens["<|startoftext|>"], tokens["<|endoftext|>"]] == [512, START, END]


def test_the_bpe_file_is_found_without_importing_open_clip() -> None:
    program = (
        "import sys; from extensions_lib.models.vocabulary import find_bpe_file, read_bpe; read_bpe(find_bpe_file()); "
        "sys.exit(bool({'open_clip', 'torch', 'transformers'} & set(sys.modules)))"
    )
    root = Path(vocabulary.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0


def test_missing_open_clip_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install open_clip_torch"):
        PromptTokenizer.from_open_clip()


def test_folder_without_tokenizer_is_explained(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(FormatError, match="no CLIP tokenizer"):
        PromptTokenizer.from_folder(tmp_path)


def test_network_tags_are_dropped_and_brackets_are_not(tokenizer: PromptTokenizer) -> None:
    plain = tokenizer.tokenize("a cat")
    assert tokenizer.tokenize("a <lora:My Style:0.8>cat <hypernet:x:1><LyCO:y>") == plain
    assert tokenizer.tokenize("a (cat:1.2)") != plain
    assert tokenizer.tokenize("BREAK") == tokenizer.tokenize("break")


def test_decode_leaves_out_ends_and_placeholders(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.decode([START, *tokenizer.tokenize("A red Cat"), 49408, 49409, END]).strip() == "a red cat"


def test_empty_text_is_one_empty_chunk(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.chunks("") == [[START] + [END] * 76] == [tokenizer.empty_chunk()]


@pytest.mark.parametrize(("num_words", "lengths"), [(1, [1]), (75, [75]), (76, [75, 1]), (151, [75, 75, 1])])
def test_chunks_hold_75_tokens(tokenizer: PromptTokenizer, num_words: int, lengths: list[int]) -> None:
    assert [len(body) for body in bodies(tokenizer.chunks("cat " * num_words))] == lengths


@pytest.mark.parametrize(
    ("num_before", "num_after", "lengths"),
    [
        (60, 14, [75]),  # full, and nothing follows
        (60, 20, [61, 20]),  # the 14 behind the comma move
        (55, 20, [56, 20]),  # 19 is the most that moves
        (54, 21, [75, 1]),  # 20 would be too many
        (74, 5, [75, 5]),  # the comma is the last of the chunk
        (75, 5, [75, 6]),  # the comma itself begins the next chunk
    ],
)
def test_text_after_the_last_comma_moves_on(
    tokenizer: PromptTokenizer, num_before: int, num_after: int, lengths: list[int]
) -> None:
    chunks = bodies(tokenizer.chunks("cat " * num_before + ", " + "dog " * num_after))
    assert [len(chunk) for chunk in chunks] == lengths
    assert joined(chunks) == [CAT] * num_before + [COMMA] + [DOG] * num_after


def test_placeholders_become_their_ids(tokenizer: PromptTokenizer) -> None:
    ids = [49408, 49409]
    assert bodies(tokenizer.chunks("a Fluffy cat", {"fluffy": ids})) == [[320, *ids, CAT]]
    assert bodies(tokenizer.chunks("a cat", {"fluffy": ids})) == [[320, CAT]]
    assert bodies(tokenizer.chunks("a fluffy, cat", {"fluffy": []})) == [[320, COMMA, CAT]]


def test_the_longest_name_wins(tokenizer: PromptTokenizer) -> None:
    tokens = {"fluffy": [49408], "fluffy cat": [49409], "cat": [49410]}
    assert bodies(tokenizer.chunks("fluffy cat fluffy dog cat", tokens)) == [[49409, 49408, DOG, 49410]]


@pytest.mark.parametrize(("num_before", "lengths"), [(71, [75, 1]), (72, [72, 5]), (75, [75, 5])])
def test_a_run_is_never_split(tokenizer: PromptTokenizer, num_before: int, lengths: list[int]) -> None:
    run = [49408, 49409, 49410, 49411]
    chunks = bodies(tokenizer.chunks("cat " * num_before + "fluffy dog", {"fluffy": run}))
    assert [len(chunk) for chunk in chunks] == lengths
    assert joined(chunks) == [CAT] * num_before + run + [DOG]


def test_a_run_moves_whole_with_its_clause(tokenizer: PromptTokenizer) -> None:
    text = "cat " * 70 + ", fluffy dog dog"  # 71 + 3 fill 74, one dog fits, the second moves all behind the comma
    run = [49408, 49409, 49410]
    assert bodies(tokenizer.chunks(text, {"fluffy": run}))[1] == [*run, DOG, DOG]


def test_unusable_placeholders_are_reported_together(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(ConfigError) as caught:
        tokenizer.chunks("cat", {" ": [49408], "fluffy": list(range(49408, 49484))})
    assert [problem.path for problem in caught.value.problems] == ["placeholder_token", "vectors_per_token"]
    assert "76; at most 75" in str(caught.value)


def test_pieces_are_the_chunks_for_people(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.pieces("a Fluffy cat", {"fluffy": [49408, 49409]}) == [["a", "fluffy 1/2", "fluffy 2/2", "cat"]]
    assert tokenizer.pieces("fluffy", {"fluffy": [49408]}) == [["fluffy"]]
    assert tokenizer.pieces("") == [[]]
    long = tokenizer.pieces("cat " * 80)
    assert [len(chunk) for chunk in long] == [75, 5] and {token for chunk in long for token in chunk} == {"cat"}


def test_what_is_no_text_is_told(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.left_out("a cat <lora:x:1>, <b> <HYPERNET:y:1>") == ["<lora:x:1>", "<HYPERNET:y:1>"]
    assert tokenizer.pieces("a cat <lora:x:1>") == [["a", "cat"]]
