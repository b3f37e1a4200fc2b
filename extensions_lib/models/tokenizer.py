"""Text to CLIP token ids, and long captions to chunks of 77 exactly as the WebUI cuts its prompts."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, FormatError, Problem
from .chunking import CHUNK_LENGTH, Chunker, split_runs
from .vocabulary import write_vocabulary

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_NETWORK_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>", re.IGNORECASE)


class PromptTokenizer:
    """CLIP's byte-pair tokenizer with the WebUI's chunking.

    Placeholder words are no part of it: `chunks` takes them as {name: its ids}, ids from `num_vocabulary` on.
    """

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self.num_vocabulary: int = len(vocabulary)
        self.start_id: int = tokenizer.bos_token_id
        self.end_id: int = tokenizer.eos_token_id
        self.comma_id: int = vocabulary[",</w>"]

    @classmethod
    def from_open_clip(cls) -> PromptTokenizer:
        """OpenAI's tokenizer, from the BPE file inside the installed open_clip_torch; the package is not imported.

        Raises ModelError when the file is not there.
        """
        with tempfile.TemporaryDirectory(prefix="train-studio-clip-") as name:
            write_vocabulary(Path(name))
            return cls.from_folder(Path(name))

    @classmethod
    def from_folder(cls, folder: Path) -> PromptTokenizer:
        """The tokenizer of `folder`/vocab.json and merges.txt. Raises FormatError when they cannot be used."""
        from transformers import CLIPTokenizer

        try:
            # The constructor, not from_pretrained: WebUIs replace the latter while they load a model.
            return cls(CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"{folder} holds no CLIP tokenizer: {error}.", "Copy or download the folder again."
            ) from error

    def tokenize(self, text: str) -> list[int]:
        """Token ids without start and end. Case does not count; `<lora:...>`, `<hypernet:...>` are dropped.

        Nothing else is parsed: brackets, weights and `BREAK` of prompts are plain text in a caption.
        """
        return self._tokenizer(_NETWORK_TAG.sub("", text), add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, lower case; start, end and placeholder ids are left out."""
        known = [token for token in ids if token < self.num_vocabulary and token not in (self.start_id, self.end_id)]
        return self._tokenizer.decode(known)

    def empty_chunk(self) -> list[int]:
        """The 77 ids of an empty prompt: start, then ends."""
        return self._with_ends([])

    def chunks(self, text: str, tokens: Mapping[str, Sequence[int]] | None = None) -> list[list[int]]:
        """A caption as chunks of 77 ids: start, 75 tokens, end; the last filled up with ends. At least one.

        Where a name of `tokens` occurs (as a sequence of tokens; the longest name first) its ids stand instead: all in
        one chunk, the next one when they do not fit. When a chunk is full, what follows its last comma moves to the
        next chunk if that is fewer than 20 tokens. Raises ConfigError for a name without tokens, or with more than 75
        ids.

        As AUTOMATIC1111 1.10.1 does it (`tokenize_line`), except that a placeholder which moves with what follows a
        comma takes its vectors along; there, they stay behind.
        """
        names = self._placeholders(tokens or {})
        chunker = Chunker()
        ids = self.tokenize(text)
        for run, is_comma in split_runs(ids, names, self.comma_id):
            chunker.add(run, is_comma)
        return [self._with_ends(chunk) for chunk in chunker.finished()]

    def pieces(self, text: str, tokens: Mapping[str, Sequence[int]] | None = None) -> list[list[str]]:
        """The chunks of `chunks` for people: one text a token, without start and ends; at least one chunk.

        The ids of a name of `tokens` read 'name 1/4', 'name 2/4', ...; a lone one reads 'name'.
        """
        names = {
            token: name if len(ids) == 1 else f"{name} {number}/{len(ids)}"
            for name, ids in (tokens or {}).items()
            for number, token in enumerate(ids, start=1)
        }
        return [
            [names.get(token) or self.decode([token]) for token in self._inside(c)] for c in self.chunks(text, tokens)
        ]

    def left_out(self, text: str) -> list[str]:
        """The parts of `text` that `tokenize` drops, such as '<lora:cat:1>'."""
        return _NETWORK_TAG.findall(text)

    def _inside(self, chunk: list[int]) -> list[int]:
        """The ids of a chunk between its start and the ends that fill it up."""
        length = len(chunk)
        while length > 1 and chunk[length - 1] == self.end_id:
            length -= 1
        return chunk[1:length]

    def _placeholders(self, tokens: Mapping[str, Sequence[int]]) -> list[tuple[list[int], list[int]]]:
        """(tokens of the name, ids that replace them), the longest names first."""
        problems = []
        placeholders = []
        for name, ids in tokens.items():
            name_ids = self.tokenize(name)
            if not name_ids:
                problems.append(Problem("placeholder_token", f"{name!r} has no letters that CLIP knows; choose a word"))
            if len(ids) > CHUNK_LENGTH:
                problems.append(
                    Problem("vectors_per_token", f"{name!r} has {len(ids)}; at most {CHUNK_LENGTH} fit a prompt")
                )
            placeholders.append((name_ids, list(ids)))
        if problems:
            raise ConfigError(problems)
        return sorted(placeholders, key=lambda pair: len(pair[0]), reverse=True)

    def _with_ends(self, chunk: list[int]) -> list[int]:
        return [self.start_id, *chunk] + [self.end_id] * (CHUNK_LENGTH + 1 - len(chunk))
