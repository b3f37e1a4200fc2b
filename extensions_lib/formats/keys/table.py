"""A two-way table of dotted names: the longest known beginning of a name is exchanged, its end by a second table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...errors import KeyMismatchError


@dataclass(frozen=True)
class Row:
    """One block: `old` and `new` are dotted beginnings; `tails` renames what follows, None keeps it unchanged."""

    old: str
    new: str
    tails: Mapping[str, str] | None = None

    def inverse(self) -> Row:
        """The row read from right to left."""
        tails = None if self.tails is None else {new: old for old, new in self.tails.items()}
        return Row(self.new, self.old, tails)


@dataclass(frozen=True)
class RenameTable:
    """Rows that rename from `old` to `new`; ValueError when two rows share an `old`, so that every table inverts."""

    title: str
    rows: tuple[Row, ...]
    _by_head: dict[str, Row] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_head = {row.old: row for row in self.rows}
        if len(by_head) != len(self.rows):
            raise ValueError(f"{self.title}: two rows share a name")
        object.__setattr__(self, "_by_head", by_head)

    def inverse(self, title: str) -> RenameTable:
        """The table for the way back."""
        return RenameTable(title, tuple(row.inverse() for row in self.rows))

    def rename(self, name: str) -> str:
        """The new name of a tensor or module. Raises KeyMismatchError for a name the table does not know."""
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            row = self._by_head.get(".".join(parts[:length]))
            if row is not None:
                return ".".join([row.new, *self._rename_tail(row, name, parts[length:])])
        raise self._unknown(name)

    def _rename_tail(self, row: Row, name: str, tail: list[str]) -> list[str]:
        if row.tails is None or not tail:
            return tail
        for length in range(len(tail), 0, -1):
            renamed = row.tails.get(".".join(tail[:length]))
            if renamed is not None:
                return [renamed, *tail[length:]]
        raise self._unknown(name)

    def _unknown(self, name: str) -> KeyMismatchError:
        return KeyMismatchError(
            f"{self.title}: the name {name!r} is unknown.",
            "The file belongs to another architecture, or is damaged.",
        )
