"""FlatBuffers read with bounds: every offset is checked before it is followed.

Source: the format's own description (flatbuffers.dev, internals): little-endian; a table begins with the
distance back to its list of field offsets; vectors and strings begin with their length.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

ITEMS_MOST = 1 << 28


class Malformed(ValueError):  # noqa: N818 - the finding, as its text
    """What does not hold: its text says what."""


@dataclass(frozen=True)
class Table:
    """One table of `data`, at `at`. Fields are counted from 0 in the order of the schema."""

    data: bytes
    at: int

    @classmethod
    def root(cls, data: bytes, identifier: bytes) -> Table:
        """The outermost table of a file with this identifier."""
        if data[4:8] != identifier:
            raise Malformed(f"it does not say {identifier.decode()} at its beginning")
        return cls(data, _read(data, 0, "<I"))

    def number(self, field: int, form: str, default: float = 0) -> Any:
        """A number of struct form `form` ("<i", "<b", ...)."""
        place = self._place(field)
        return default if place is None else _read(self.data, place, form)

    def table(self, field: int) -> Table | None:
        """A table within."""
        place = self._place(field)
        return None if place is None else Table(self.data, self._follow(place))

    def text(self, field: int) -> str:
        """A string; empty where absent."""
        start, count = self._vector(field, 1)
        return self.data[start : start + count].decode("utf-8", "replace")

    def tables(self, field: int, most: int) -> list[Table]:
        """A vector of tables, of at most so many."""
        start, count = self._vector(field, 4)
        if count > most:
            raise Malformed(f"a list has {count} entries, more than {most}")
        return [Table(self.data, self._follow(start + 4 * i)) for i in range(count)]

    def numbers(self, field: int, dtype: str) -> npt.NDArray[Any]:
        """A vector of numbers of a little-endian numpy type; a view."""
        kind = np.dtype(dtype)
        start, count = self._vector(field, kind.itemsize)
        return np.frombuffer(self.data, kind, count, start) if count else np.empty(0, kind)

    def _place(self, field: int) -> int | None:
        """Where a field's value lies; None where the table has the default."""
        table = self.at - _read(self.data, self.at, "<i")
        if table < 0:
            raise Malformed("a table's list of fields lies outside the file")
        size = _read(self.data, table, "<H")
        entry = 4 + 2 * field
        if entry + 2 > size:
            return None
        offset = _read(self.data, table + entry, "<H")
        return self.at + offset if offset else None

    def _follow(self, place: int) -> int:
        goal = place + _read(self.data, place, "<I")
        if goal + 4 > len(self.data):
            raise Malformed("an offset leads outside the file")
        return int(goal)

    def _vector(self, field: int, size: int) -> tuple[int, int]:
        place = self._place(field)
        if place is None:
            return 0, 0
        start = self._follow(place)
        count = int(_read(self.data, start, "<I"))
        if count > ITEMS_MOST or start + 4 + count * size > len(self.data):
            raise Malformed(f"a list of {count} entries leads outside the file")
        return start + 4, count


def _read(data: bytes, at: int, form: str) -> Any:
    if at < 0 or at + struct.calcsize(form) > len(data):
        raise Malformed("an offset leads outside the file")
    return struct.unpack_from(form, data, at)[0]
