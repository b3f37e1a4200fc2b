"""OpenAI's CLIP vocabulary, from the byte-pair file inside the installed open_clip_torch, which is not imported."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

from ..errors import ModelError

_BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
_NUM_MERGES = 48894


def find_bpe_file() -> Path:
    """Where the file is. Raises ModelError when it is not installed."""
    spec = importlib.util.find_spec("open_clip")
    folders = [Path(name) for name in (spec.submodule_search_locations or ())] if spec is not None else []
    for folder in folders:
        if (folder / _BPE_FILE).is_file():
            return folder / _BPE_FILE
    raise ModelError(
        f"The file {_BPE_FILE} of the package open_clip_torch was not found (looked in {folders or 'no folder'}).",
        "Install it: pip install open_clip_torch. The WebUI normally brings it along.",
    )


def read_bpe(path: Path) -> tuple[dict[str, int], list[str]]:
    """OpenAI's vocabulary {token: id} and its merges, most frequent first.

    Ids: the 256 bytes, the same at the end of a word, the 48 894 merges, start, end (openai/CLIP, simple_tokenizer.py).
    """
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 1 + _NUM_MERGES]
    symbols = _byte_symbols()
    tokens = symbols + [symbol + "</w>" for symbol in symbols] + [merge.replace(" ", "") for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}, merges


def write_vocabulary(folder: Path) -> None:
    """Write vocab.json and merges.txt, as transformers' CLIPTokenizer reads them, to an existing folder."""
    vocabulary, merges = read_bpe(find_bpe_file())
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def _byte_symbols() -> list[str]:
    """A visible character for each byte: Latin-1's own where it has one, then U+0100 and on for the rest."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    num_others = 256 - len(visible)
    return [chr(code) for code in visible] + [chr(0x100 + offset) for offset in range(num_others)]
