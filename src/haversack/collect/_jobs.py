"""The queue of stages to run: leases that end, attempts that are counted, results that are committed once.

A job is (clip, stage, version). A worker leases it, so that nobody else takes it while the lease lasts, and
renews the lease while it works. A lease that ends puts the job back; one that ended too often sets the clip
aside (`quarantined`). Running is at least once; the commit is the rename of the stage's folder, and that
happens once.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from haversack.collect._books import Books


@dataclass(frozen=True)
class Job:
    """A leased job; `attempt` counts from 1."""

    clip: str
    stage: str
    version: str
    worker: str
    attempt: int


def worker_name() -> str:
    """This process's name on leases: host and process."""
    return f"{socket.gethostname()}:{os.getpid()}:{os.urandom(3).hex()}"


class Jobs:
    """The queue in a store's books. `attempts` of a job before it is quarantined; `lease_s` of a lease."""

    def __init__(self, books: Books, *, attempts: int = 3, lease_s: float = 60.0) -> None:
        self.books, self.attempts, self.lease_s = books, attempts, lease_s

    def lease(self, worker: str, stages: Mapping[str, str]) -> Job | None:
        """The oldest job of one of `stages` (name -> version) that may run, leased to `worker`; None when
        there is none now."""
        names = list(stages)
        marks = ", ".join("?" * len(names))
        now = time.time()
        with self.books.change() as change:
            self._expire(change, now)
            row = change.execute(
                "SELECT clip, stage, version, attempts FROM jobs WHERE state = 'queued' "
                f"AND stage IN ({marks}) ORDER BY attempts, rowid LIMIT 1",
                names,
            ).fetchone()
            if row is None:
                return None
            change.execute(
                "UPDATE jobs SET state = 'leased', worker = ?, attempts = attempts + 1, lease_until = ?, "
                "started = ? WHERE clip = ? AND stage = ? AND version = ?",
                (worker, now + self.lease_s, now, row["clip"], row["stage"], row["version"]),
            )
        return Job(row["clip"], row["stage"], row["version"], worker, row["attempts"] + 1)

    def renew(self, job: Job) -> bool:
        """Hold on to a job; False when it was given to another."""
        with self.books.change() as change:
            return bool(
                change.execute(
                    f"UPDATE jobs SET lease_until = ? WHERE {_MINE}",
                    (time.time() + self.lease_s, *_mine(job)),
                ).rowcount
            )

    def done(
        self,
        job: Job,
        *,
        metrics: Mapping[str, Any],
        drop_reason: str | None,
        cpu_s: float,
        out_bytes: int,
        following: tuple[str, str] | None,
    ) -> None:
        """Enter a stage whose folder has its name; the clip goes on to `following` (stage, version) unless
        it is dropped. Entering it again changes nothing."""
        with self.books.change() as change:
            entered = change.execute(
                "UPDATE jobs SET state = 'done', commits = commits + 1, lease_until = NULL, worker = NULL, "
                "metrics_json = ?, drop_reason = ?, cpu_s = ?, out_bytes = ?, error = NULL "
                "WHERE clip = ? AND stage = ? AND version = ? AND state != 'done'",
                (json.dumps(metrics), drop_reason, cpu_s, out_bytes, job.clip, job.stage, job.version),
            ).rowcount
            if entered and following is not None and drop_reason is None:
                change.execute(
                    "INSERT OR IGNORE INTO jobs (clip, stage, version, state, in_bytes) "
                    "VALUES (?, ?, ?, 'queued', ?)",
                    (job.clip, *following, out_bytes),
                )

    def failed(self, job: Job, error: str) -> None:
        """The stage raised: back into the queue, or aside after the last attempt."""
        with self.books.change() as change:
            change.execute(
                f"UPDATE jobs SET state = CASE WHEN attempts >= ? THEN 'quarantined' ELSE 'queued' END, "
                f"worker = NULL, lease_until = NULL, error = ? WHERE {_MINE}",
                (self.attempts, error[:500], *_mine(job)),
            )

    def died(self, worker: str, error: str) -> list[str]:
        """A worker is gone: what it had goes back, or aside after the last attempt; the clips."""
        with self.books.change() as change:
            rows = change.execute(
                "UPDATE jobs SET state = CASE WHEN attempts >= ? THEN 'quarantined' ELSE 'queued' END, "
                "worker = NULL, lease_until = NULL, error = ? WHERE state = 'leased' AND worker = ? "
                "RETURNING clip",
                (self.attempts, error[:500], worker),
            ).fetchall()
        return [row["clip"] for row in rows]

    def given_back(self, worker: str) -> None:
        """A worker was told to stop: what it had goes back and the attempt does not count."""
        with self.books.change() as change:
            change.execute(
                "UPDATE jobs SET state = 'queued', attempts = attempts - 1, worker = NULL, "
                "lease_until = NULL WHERE state = 'leased' AND worker = ?",
                (worker,),
            )

    def release_dead(self) -> None:
        """Put back what processes of this machine held that live no more."""
        here = socket.gethostname()
        for row in self.books.rows("SELECT DISTINCT worker FROM jobs WHERE state = 'leased'"):
            host, _, process = str(row["worker"]).partition(":")
            number = process.partition(":")[0]
            if host == here and number.isdigit() and not _lives(int(number)):
                self.died(str(row["worker"]), "its process was gone")

    def late(self, workers: Sequence[str], timeout_s: float) -> list[str]:
        """Those of `workers` that have been at one job for longer than `timeout_s`."""
        before = time.time() - timeout_s
        rows = self.books.rows("SELECT worker FROM jobs WHERE state = 'leased' AND started < ?", (before,))
        return [str(row["worker"]) for row in rows if row["worker"] in workers]

    def waiting(self, stages: Mapping[str, str]) -> int:
        """Jobs of `stages` that are queued or leased."""
        marks = ", ".join("?" * len(stages))
        return self.books.number(
            f"SELECT count(*) FROM jobs WHERE state IN ('queued', 'leased') AND stage IN ({marks})",
            list(stages),
        )

    def _expire(self, change: Any, now: float) -> None:
        change.execute(
            "UPDATE jobs SET state = CASE WHEN attempts >= ? THEN 'quarantined' ELSE 'queued' END, "
            "worker = NULL, lease_until = NULL, error = 'its lease ended' "
            "WHERE state = 'leased' AND lease_until < ?",
            (self.attempts, now),
        )


_MINE = "clip = ? AND stage = ? AND version = ? AND state = 'leased' AND worker = ?"


def _mine(job: Job) -> tuple[str, str, str, str]:
    return job.clip, job.stage, job.version, job.worker


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
