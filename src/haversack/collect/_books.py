"""The store's books in SQLite: contributors and their devices, clips, jobs. One file for several processes.

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

NAME = "collect.sqlite"
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
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, lease_until);
CREATE TABLE IF NOT EXISTS tombstones (mark TEXT PRIMARY KEY, time REAL NOT NULL);
CREATE TABLE IF NOT EXISTS keys (name TEXT PRIMARY KEY, value BLOB NOT NULL);
"""


class Books:
    """The books of the store at `root`; threads may share one. Raises UserError where there are none and
    `create` is false, DamagedFileError for a file that is none."""

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self.path = root / NAME
        if not create and not self.path.is_file():
            raise UserError(
                f"{root} is no store: it has no {NAME}; make one: haversack collect server --root {root}",
                field="root",
                given=str(root),
            )
        self._lock = threading.RLock()
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

    @contextlib.contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction that writes: everything in the block happens, or nothing."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise
            try:
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def row(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Row | None:
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
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()
