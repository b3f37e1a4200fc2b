"""Cutting a long prompt into chunks of 75 tokens, as AUTOMATIC1111 1.10.1 does (`tokenize_line`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

CHUNK_LENGTH = 75
COMMA_BACKTRACK = 20


@dataclass
class Chunker:
    """Fills chunks of 75 with runs of ids that must stay together."""

    done: list[list[int]] = field(default_factory=list)
    chunk: list[int] = field(default_factory=list)
    after_comma: int | None = None  # where the text behind the chunk's last comma begins

    def add(self, run: list[int], is_comma: bool) -> None:
        """Put `run` behind what is there, opening a new chunk when needed."""
        if not is_comma:
            self._move_clause_if_full()
        if len(self.chunk) + len(run) > CHUNK_LENGTH or len(self.chunk) == CHUNK_LENGTH:
            self._close()
        self.chunk += run
        if is_comma:
            self.after_comma = len(self.chunk)

    def finished(self) -> list[list[int]]:
        """All chunks; an empty text has one."""
        if self.chunk or not self.done:
            self._close()
        return self.done

    def _move_clause_if_full(self) -> None:
        if len(self.chunk) != CHUNK_LENGTH or self.after_comma is None:
            return
        # The WebUI counts the comma in, so 19 tokens behind it are the most that move.
        if CHUNK_LENGTH - (self.after_comma - 1) <= COMMA_BACKTRACK:
            clause = self.chunk[self.after_comma :]
            del self.chunk[self.after_comma :]
            self._close()
            self.chunk = clause

    def _close(self) -> None:
        self.done.append(self.chunk)
        self.chunk = []
        self.after_comma = None


def split_runs(
    ids: list[int], placeholders: list[tuple[list[int], list[int]]], comma_id: int
) -> Iterator[tuple[list[int], bool]]:
    """The ids one by one, placeholders as one run; and whether it is a comma."""
    position = 0
    while position < len(ids):
        for name_ids, replacement in placeholders:
            if ids[position : position + len(name_ids)] == name_ids:
                yield replacement, False
                position += len(name_ids)
                break
        else:
            yield [ids[position]], ids[position] == comma_id
            position += 1
