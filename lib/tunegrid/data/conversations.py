"""Reads rows in the hub's chat schema: a list of turns {role, content} becomes {history, prompt, reply}.

`reply` is the assistant's last turn, `prompt` the user's before it, `history` all turns before, a system's first one included.
What follows the reply is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tunegrid.data.sources import Row, StoredRows, Table
from tunegrid.errors import InputError

Turn = Mapping[str, str]


class ConversationTable:
    """A split whose rows are made of one column of another table."""

    names: tuple[str, ...] = ("history", "prompt", "reply")

    def __init__(self, table: Table, column: str) -> None:
        """Rows of the conversations in `column`."""
        self._table, self._column = table, column
        self.origin, self.revision = table.origin, table.revision

    def __len__(self) -> int:
        """How many rows."""
        return len(self._table)

    def column(self, name: str) -> Sequence[Any]:
        """One column's values."""
        return [row[name] for row in self.take(range(len(self)))]

    def take(self, indices: Sequence[int]) -> Sequence[Row]:
        """The rows at these indices."""
        return StoredRows(self._read, indices)

    def _read(self, indices: Sequence[int]) -> list[Row]:
        rows = zip(indices, self._table.take(indices), strict=True)
        return [last_exchange(row[self._column], f"{self.origin}, row {index}") for index, row in rows]


def last_exchange(turns: Any, origin: str) -> Row:
    """A conversation as a row; raises InputError where users and assistants do not take turns, or nobody answers."""
    try:
        roles, contents = [turn["role"] for turn in turns], [turn["content"] for turn in turns]
    except (TypeError, KeyError):
        raise InputError(f"{origin}: a conversation is a list of turns, each with a role and a content") from None
    first = int(roles[:1] == ["system"])
    count = (len(roles) - first) // 2 * 2
    if not count or roles[first:] != (["user", "assistant"] * len(roles))[: len(roles) - first]:
        told = ", ".join(map(str, roles[:6]))
        raise InputError(f"{origin}: user and assistant must take turns, after one of the system or none; here are {told}")
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    return {
        "history": turns[: first + count - 2],
        "prompt": contents[first + count - 2],
        "reply": contents[first + count - 1],
    }
