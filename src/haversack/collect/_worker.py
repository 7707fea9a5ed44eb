"""A worker: leases jobs of a store, runs their stages, commits what they wrote by one rename.

`python -m haversack.collect._worker STORE NAME PARENT LEASE_S ATTEMPTS STAGE...` is what `collect process`
starts; it ends when the process PARENT is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from haversack.collect._books import Books
from haversack.collect._jobs import Job, Jobs
from haversack.collect._objects import objects_of
from haversack.collect._stages import METRICS, Clip, Stage, load_stages, read_settings
from haversack.collect.bundle import Manifest, parse_manifest
from haversack.core._files import flush_folder, partial_path, remove, remove_stale_partials

IDLE_S = 0.1


def run_one(root: Path, jobs: Jobs, worker: str, stages: list[Stage]) -> bool:
    """Lease a job and run it; False when none waits."""
    versions = {stage.name: stage.version for stage in stages}
    job = jobs.lease(worker, versions)
    if job is None:
        return False
    at = [stage.name for stage in stages].index(job.stage)
    stage = stages[at]
    following = (stages[at + 1].name, stages[at + 1].version) if at + 1 < len(stages) else None
    goal = root / "stages" / job.clip / stage.folder
    with _renewed(jobs, job):
        try:
            if not (goal / METRICS).is_file():  # else it was committed, and only its entry is missing
                _run(root, jobs.books, job, stage, goal, stages[:at])
            found = json.loads((goal / METRICS).read_text(encoding="utf-8"))
        except Exception as error:
            jobs.failed(job, f"{type(error).__name__}: {' '.join(str(error).split())}")
            return True
    jobs.done(
        job,
        metrics=found["metrics"],
        drop_reason=found["drop_reason"],
        cpu_s=found["cpu_s"],
        out_bytes=sum(path.stat().st_size for path in goal.iterdir() if path.is_file()),
        following=following,
    )
    return True


def _run(root: Path, books: Books, job: Job, stage: Stage, goal: Path, before: list[Stage]) -> None:
    manifest = _manifest(books, job)
    folders = {each.name: root / "stages" / job.clip / each.folder for each in before}
    clip = Clip(objects_of(root).fetch(manifest), manifest, folders, stage.settings, root / "stages")
    goal.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_partials(goal)
    partial = partial_path(goal)
    partial.mkdir()
    try:
        begun = time.process_time()
        outcome = stage.run(clip, partial)
        record: dict[str, Any] = {
            "metrics": outcome.metrics,
            "drop_reason": outcome.drop_reason,
            "cpu_s": round(time.process_time() - begun, 4),
        }
        with (partial / METRICS).open("w", encoding="utf-8") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        flush_folder(partial)
        with contextlib.suppress(OSError):  # not empty: another worker was first, and its result stays
            partial.rename(goal)
            flush_folder(goal.parent)
    finally:
        remove(partial)


def _manifest(books: Books, job: Job) -> Manifest:
    row = books.row("SELECT manifest FROM clips WHERE uuid = ? AND state = 'complete'", (job.clip,))
    if row is None:
        raise LookupError(f"clip {job.clip} is not in the store")
    return parse_manifest(row["manifest"])


@contextlib.contextmanager
def _renewed(jobs: Jobs, job: Job) -> Any:
    """Renew the lease from a thread while the block runs."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(jobs.lease_s / 3):
            jobs.renew(job)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def main(arguments: list[str]) -> int:
    """Work until the queue is empty for good, or the parent is gone."""
    root, worker = Path(arguments[0]), arguments[1]
    worker = f"{worker.partition(':')[0]}:{os.getpid()}:{worker.rpartition(':')[2]}"
    jobs = Jobs(Books(root), lease_s=float(arguments[3]), attempts=int(arguments[4]))
    stages = load_stages(arguments[5:], read_settings(root))
    parent = int(arguments[2])  # not asked of the system: it may be gone already
    while os.getppid() == parent:
        if not run_one(root, jobs, worker, stages):
            time.sleep(IDLE_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
