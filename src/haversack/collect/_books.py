"""The store's books: contributors and their devices, clips, jobs. SQLite, one file for several processes,
unless `books.url` beside it names a database of PostgreSQL (collect/_postgres.py).

Every change is one transaction that is on the disk when it returns. Deleted rows are overwritten
(`secure_delete`), so that what is forgotten is gone from the file too.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from haversack.core.errors import DamagedFileError, UserError

NAME, URL = "collect.sqlite", "books.url"
VERSION = 1
BUSY_S = 60.0

_TABLES = """
CREATE TABLE IF NOT EXISTS invites (
  code_sha256 TEXT PRIMARY KEY, contributor TEXT NOT NULL, policy_version TEXT NOT NULL,
  retention_days INTEGER NOT NULL, quota_bytes INTEGER NOT NULL, expires REAL NOT NULL,
  token_days REAL NOT NULL, used INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS devices (
  id TEXT PRIMARY KEY, token_sha256 TEXT NOT NULL UNIQUE, install TEXT NOT NULL, contributor TEXT NOT NULL,
  policy_version TEXT NOT NULL, retention_days INTEGER NOT NULL, quota_bytes INTEGER NOT NULL,
  expires REAL NOT NULL, model TEXT NOT NULL, os TEXT NOT NULL, seen REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS clips (
  uuid TEXT PRIMARY KEY, upload TEXT NOT NULL UNIQUE, device TEXT NOT NULL, session TEXT NOT NULL,
  contributor TEXT NOT NULL, manifest BLOB NOT NULL, bytes INTEGER NOT NULL, seconds REAL NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('receiving', 'complete')), begun REAL NOT NULL,
  touched REAL NOT NULL, completed REAL);
CREATE INDEX IF NOT EXISTS clips_by_device ON clips (device, state);
CREATE INDEX IF NOT EXISTS clips_by_contributor ON clips (contributor);
CREATE TABLE IF NOT EXISTS clip_files (
  clip TEXT NOT NULL, device TEXT NOT NULL, name TEXT NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL,
  PRIMARY KEY (clip, name));
CREATE INDEX IF NOT EXISTS files_by_hash ON clip_files (device, sha256);
CREATE TABLE IF NOT EXISTS jobs (
  clip TEXT NOT NULL, stage TEXT NOT NULL, version TEXT NOT NULL, params_hash TEXT NOT NULL DEFAULT '',
  state TEXT NOT NULL CHECK (state IN ('queued', 'leased', 'done', 'failed', 'quarantined')),
  attempts INTEGER NOT NULL DEFAULT 0, worker TEXT, lease_until REAL, started REAL, commits INTEGER NOT NULL
  DEFAULT 0, in_bytes INTEGER, out_bytes INTEGER, cpu_s REAL, drop_reason TEXT, error TEXT,
  metrics_json TEXT, PRIMARY KEY (clip, stage, version));
CREATE INDEX IF NOT EXISTS jobs_by_turn ON jobs (state, attempts);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, lease_until);
CREATE TABLE IF NOT EXISTS tombstones (mark TEXT PRIMARY KEY, time REAL NOT NULL);
CREATE TABLE IF NOT EXISTS keys (name TEXT PRIMARY KEY, value BLOB NOT NULL);
"""


class Books:
    """The books of the store at `root`; threads may share one. Raises UserError where there are none and
    `create` is false, DamagedFileError for a file that is none."""

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self.path = root / NAME
        self._lock = threading.RLock()
        self._connection: Any
        if (root / URL).is_file():
            from haversack.collect._postgres import Connection

            self.path = root / URL
            self._connection = Connection((root / URL).read_text(encoding="utf-8").strip())
            self._connection.prepare(_TABLES)
            return
        if not create and not self.path.is_file():
            raise UserError(
                f"{root} is no store: it has no {NAME}; make one: haversack collect server --root {root}",
                field="root",
                given=str(root),
            )
        try:
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "foreign_keys=ON"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._prepare()
        except sqlite3.DatabaseError as error:
            raise DamagedFileError(self.path, f"SQLite cannot read it ({error})") from error

    @property
    def remote(self) -> bool:
        """Whether the books are in a database of PostgreSQL."""
        return self.path.name == URL

    def holding(self, words: Sequence[str]) -> list[str]:
        """Tables of a database in which a row holds one of `words`; none for SQLite, whose file is read
        whole."""
        found: list[str] = self._connection.holding(words) if self.remote else []
        return found

    def _prepare(self) -> None:
        found = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, VERSION):
            raise UserError(
                f"{self.path} is of version {found}, this haversack writes {VERSION}; update haversack.",
                field="root",
                given=found,
            )
        if found == 0:
            with self.change() as books:
                for statement in _TABLES.split(";"):
                    if statement.strip():
                        books.execute(statement)
                books.execute(f"PRAGMA user_version={VERSION}")
        else:  # an index that stores of before do not have
            self._connection.execute("CREATE INDEX IF NOT EXISTS jobs_by_turn ON jobs (state, attempts)")

    @contextlib.contextmanager
    def change(self) -> Iterator[Any]:
        """One transaction that writes: everything in the block happens, or nothing."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                with contextlib.suppress(Exception):
                    self._connection.execute("ROLLBACK")
                raise
            try:
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(Exception):
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of a query; a row answers to places and to names."""
        with self._lock:
            found: list[Any] = self._connection.execute(query, values).fetchall()
            return found

    def row(self, query: str, values: Sequence[Any] = ()) -> Any | None:
        """The first row of a query, if any."""
        found = self.rows(query, values)
        return found[0] if found else None

    def number(self, query: str, values: Sequence[Any] = ()) -> int:
        """The one number that a query gives; 0 for none."""
        found = self.row(query, values)
        return int(found[0] or 0) if found is not None else 0

    def compact(self) -> None:
        """Write the file anew without what was deleted, and empty the log beside it."""
        with self._lock:
            if self.remote:
                self._connection.compact()
                return
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


def name_database(root: Path, url: str) -> None:
    """Let a store that is not there yet keep its books in a database; its name stands in `books.url`. Raises
    UserError for a store with other books and for a URL that is none."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise UserError("books is no URL of PostgreSQL (postgresql://...).", field="books", given=url[:80])
    place = root / URL
    if (root / NAME).is_file() or (place.is_file() and place.read_text(encoding="utf-8").strip() != url):
        raise UserError(f"{root} has other books already.", field="books", given=str(root))
    root.mkdir(parents=True, exist_ok=True)
    place.touch(mode=0o600, exist_ok=True)
    place.write_text(url + "\n", encoding="utf-8")
