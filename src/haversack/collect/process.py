"""The cloud side's pipeline: workers that run stages over clips, each replaced when a clip kills it.

Paper: AoE (arXiv 2602.23893); the scheduler is [inferred].

Every worker is a process of its own: what crashes a decoder takes its process, not the others' work. Its job
goes back into the queue and another process takes the place; after `attempts` deaths the clip is set aside
with the reason. A job that takes longer than `timeout_s` has its worker ended. Running is at least once, the
result is committed once (collect/_worker.py). Killing this process, too, costs nothing but time: the next run
goes on.

On several machines: `engine` "ray" (collect/_ray.py). Limits: they share the store's file system, and only
where SQLite may.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from haversack.collect._books import Books
from haversack.collect._jobs import Jobs, worker_name
from haversack.collect._stages import load_stages, read_settings
from haversack.core.errors import UserError, not_allowed

SYSTEM = 1
ENGINES = ("local", "ray")
LOOK_S = 0.05
RELEASE_S = 1.0


@dataclass(frozen=True)
class Settings:
    """`workers` at once; `attempts` of a job before its clip is set aside; `timeout_s` of one job; `lease_s`
    after which a job of a machine that is gone goes back; `engine` of ENGINES."""

    workers: int = 2
    attempts: int = 3
    timeout_s: float = 600.0
    lease_s: float = 60.0
    engine: str = "local"

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise not_allowed("engine", self.engine, ENGINES)
        for name in ("workers", "attempts", "timeout_s", "lease_s"):
            if not getattr(self, name) > 0:
                raise UserError(
                    f"{name}={getattr(self, name)} is not supported (allowed above 0).",
                    field=name,
                    given=getattr(self, name),
                )


@dataclass
class Processed:
    """What a run did: workers that died, and the queue by stage and state at its end."""

    deaths: int = 0
    seconds: float = 0.0
    jobs: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    quarantined: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    name: str
    late: bool = False


def process(
    root: Path,
    stages: Sequence[str] | None = None,
    settings: Settings | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> Processed:
    """Run `stages` (default: all) over every clip of the store until nothing waits. Raises UserError for a
    folder that is no store and for stages that are none."""
    settings = settings or Settings()
    chosen = load_stages(stages, read_settings(root))
    names = list(stages) if stages is not None else [stage.name for stage in chosen]
    books = Books(root)
    jobs = Jobs(books, attempts=settings.attempts, lease_s=settings.lease_s)
    versions = {stage.name: stage.version for stage in chosen}
    enter(books, versions)
    report, begun, looked = Processed(), time.monotonic(), -RELEASE_S
    workers: list[_Worker] = []
    total = jobs.waiting(versions)
    if settings.engine == "ray":
        from haversack.collect._ray import run_on_ray

        report.deaths = run_on_ray(
            *(root, names),
            workers=settings.workers,
            lease_s=settings.lease_s,
            attempts=settings.attempts,
            progress=lambda: progress(float(max(0, total - jobs.waiting(versions)))),
        )
    try:
        while waiting := jobs.waiting(versions):
            progress(float(max(0, total - waiting)))
            if time.monotonic() - looked >= RELEASE_S:  # also workers that a killed run left behind
                looked = time.monotonic()
                jobs.release_dead()
            workers = _filled(workers, root, names, settings, min(settings.workers, waiting), jobs, report)
            late = jobs.late([worker.name for worker in workers], settings.timeout_s)
            for worker in workers:
                if worker.name in late and not worker.late:
                    worker.late = True
                    worker.process.kill()
            time.sleep(LOOK_S)
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
            jobs.given_back(worker.name)
    report.seconds = time.monotonic() - begun
    _report(books, versions, report)
    books.close()
    return report


def enter(books: Books, versions: dict[str, str]) -> None:
    """Queue what was never run in these versions: the first stage for every clip, each other one for clips
    that passed the one before it."""
    first, version = next(iter(versions.items()))
    stages = list(versions.items())
    with books.change() as change:
        change.execute(
            "INSERT OR IGNORE INTO jobs (clip, stage, version, state, in_bytes) "
            "SELECT uuid, ?, ?, 'queued', bytes FROM clips WHERE state = 'complete'",
            (first, version),
        )
        for before, after in itertools.pairwise(stages):
            change.execute(
                "INSERT OR IGNORE INTO jobs (clip, stage, version, state, in_bytes) "
                "SELECT clip, ?, ?, 'queued', out_bytes FROM jobs "
                "WHERE stage = ? AND version = ? AND state = 'done' AND drop_reason IS NULL",
                (*after, *before),
            )


def _filled(
    workers: list[_Worker],
    root: Path,
    stages: list[str],
    settings: Settings,
    wanted: int,
    jobs: Jobs,
    report: Processed,
) -> list[_Worker]:
    """The workers that live, with new ones in the places of those that died."""
    alive = []
    for worker in workers:
        code = worker.process.poll()
        if code is None:
            alive.append(worker)
            continue
        report.deaths += 1
        why = f"it took longer than {settings.timeout_s:g} s" if worker.late else f"its worker {_ended(code)}"
        jobs.died(worker.name, why)
    while len(alive) < wanted:
        name = worker_name()
        line = [sys.executable, "-m", "haversack.collect._worker", str(root), name, str(os.getpid())]
        started = subprocess.Popen(
            [*line, str(settings.lease_s), str(settings.attempts), *stages],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        host, _, rest = name.partition(":")
        alive.append(_Worker(started, f"{host}:{started.pid}:{rest.rpartition(':')[2]}"))
    return alive


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _report(books: Books, versions: dict[str, str], report: Processed) -> None:
    marks = ", ".join("?" * len(versions))
    names = list(versions)
    report.jobs = [
        dict(row)
        for row in books.rows(
            "SELECT stage, version, state, count(*) AS count, coalesce(sum(cpu_s), 0.0) AS cpu_s FROM jobs "
            f"WHERE stage IN ({marks}) GROUP BY stage, version, state ORDER BY stage, version, state",
            names,
        )
    ]
    report.dropped = [
        dict(row)
        for row in books.rows(
            f"SELECT stage, drop_reason AS reason, count(*) AS count FROM jobs WHERE stage IN ({marks}) "
            "AND drop_reason IS NOT NULL GROUP BY stage, drop_reason ORDER BY stage, drop_reason",
            names,
        )
    ]
    report.quarantined = [
        dict(row)
        for row in books.rows(
            f"SELECT clip, stage, attempts, error FROM jobs WHERE stage IN ({marks}) "
            "AND state = 'quarantined' ORDER BY clip",
            names,
        )
    ]
