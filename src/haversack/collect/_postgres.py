"""The store's books in PostgreSQL: the same statements, said in its dialect.

`books.url` in the store's folder names the database; the files stay in the folder. Changes take one advisory
lock, so that they are one after another, as SQLite's are. What SQLite overwrites when it deletes, PostgreSQL
leaves to VACUUM: `compact` rewrites the tables. Needs psycopg.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from haversack.core.errors import MissingExtraError, UserError

LOCK = 0x48415653
_KINDS = (("BLOB", "BYTEA"), ("INTEGER", "BIGINT"), (" REAL", " DOUBLE PRECISION"))


class Row(tuple[Any, ...]):
    """A row that answers to places and to names, as SQLite's does."""

    _names: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str], values: Sequence[Any]) -> Row:
        """A row of values under names."""
        made = cls(int(value) if isinstance(value, Decimal) else value for value in values)
        made._names = tuple(names)
        return made

    def keys(self) -> list[str]:
        """The names."""
        return list(self._names)

    def __getitem__(self, at: Any) -> Any:
        return super().__getitem__(self._names.index(at) if isinstance(at, str) else at)


def said(statement: str) -> str:
    """A statement of SQLite's as PostgreSQL's.

    >>> said("INSERT OR IGNORE INTO keys VALUES ('a', ?)")
    "INSERT INTO keys VALUES ('a', %s) ON CONFLICT DO NOTHING"
    """
    text = statement.replace("%", "%%").replace("?", "%s")
    if "INSERT OR IGNORE" in text:
        text = text.replace("INSERT OR IGNORE", "INSERT") + " ON CONFLICT DO NOTHING"
    return text


def tables(statements: str) -> list[str]:
    """SQLite's statements that make the tables as PostgreSQL's; `jobs` gets the number of its rows as a
    column."""
    found = []
    for statement in statements.split(";"):
        text = statement.strip()
        for one, two in _KINDS:
            text = re.sub(rf"{one}\b", two, text)
        if text.startswith("CREATE TABLE IF NOT EXISTS jobs ("):
            text = text.replace("jobs (", "jobs (rowid BIGSERIAL, ", 1)
        if text:
            found.append(text)
    return found


class Cursor:
    """What a statement gave."""

    def __init__(self, cursor: Any) -> None:
        self._cursor, self.rowcount = cursor, cursor.rowcount

    def fetchall(self) -> list[Row]:
        """All rows."""
        names = [column.name for column in self._cursor.description or ()]
        return [Row.of(names, values) for values in self._cursor.fetchall()]

    def fetchone(self) -> Row | None:
        """The next row, if any."""
        values = self._cursor.fetchone()
        return None if values is None else Row.of([one.name for one in self._cursor.description], values)


class Connection:
    """A connection that takes SQLite's statements. Raises MissingExtraError without psycopg, UserError for a
    database that cannot be reached."""

    def __init__(self, url: str) -> None:
        try:
            psycopg: Any = importlib.import_module("psycopg")
        except ImportError as error:
            raise MissingExtraError("a store with books in PostgreSQL", "psycopg", "postgres") from error
        try:
            self._connection = psycopg.connect(url, autocommit=True)
        except psycopg.Error as error:
            what = " ".join(str(error).split())[:200]
            raise UserError(f"the database cannot be reached ({what}).", field="books") from error

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement."""
        if statement == "BEGIN IMMEDIATE":
            self._connection.execute("BEGIN")
            return self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        return Cursor(self._connection.execute(said(statement), tuple(values)))

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement for many rows."""
        with self._connection.cursor() as cursor:
            cursor.executemany(said(statement), [tuple(row) for row in rows])

    def prepare(self, statements: str) -> None:
        """Make the tables that are not there."""
        with self._connection.transaction():
            self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            for statement in tables(statements):
                self._connection.execute(statement)

    def compact(self) -> None:
        """Rewrite the tables without what was deleted."""
        for name in self.names():
            self._connection.execute(f'VACUUM FULL "{name}"')

    def names(self) -> list[str]:
        """The tables."""
        rows = self._connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY tablename"
        )
        return [str(row[0]) for row in rows.fetchall()]

    def holding(self, words: Sequence[str]) -> list[str]:
        """Tables with a row whose text holds one of `words`."""
        found = []
        for name in self.names():
            for word in words:
                query = f'SELECT 1 FROM "{name}" AS t WHERE strpos(t::text, %s) > 0 LIMIT 1'
                spelled = (word, "".join(f"{byte:02x}" for byte in word.encode()))
                if any(self._connection.execute(query, (each,)).fetchone() for each in spelled):
                    found.append(name)
                    break
        return found

    def close(self) -> None:
        """End the connection."""
        self._connection.close()
