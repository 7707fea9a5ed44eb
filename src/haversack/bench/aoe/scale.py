"""2,000 hours of clips through the scheduler: the real queue, with as many clips, and workers that die.

360,000 clips of 20 s wait in the books. Virtual workers lease jobs, one in twenty dies and loses its lease,
the rest enter results and queue the next stage; what is measured is the queue alone, since the stages' own
time is the same on any scheduler. Reported: milliseconds of a job (lease and entry) at that size, and jobs
that were entered never or twice among those that were taken. The books are those of the store, SQLite, every
change on the disk.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.aoe._bench import bench

HOURS, CLIP_S, STAGES = 2000, 20, 8
CYCLES, DIES = 1500, 0.05
WATCHED = ("bench/aoe/scale.py", "collect/_jobs.py", "collect/_books.py")

PACE = Row(
    "schedule-2000h",
    "a job of the queue, 360,000 clips waiting, over 100 waiting",
    "ms",
    "time",
    Bar("<=", 3.0),
)
ONCE = Row(
    "schedule-once",
    "jobs entered never or twice among those taken",
    "jobs",
    "quality",
    Bar("==", 0.0),
    "ours",
)


@bench.measure(PACE, ONCE, seconds=60, watches=WATCHED)
def queue(run: Run) -> Outcomes:
    """1,500 jobs at the large size, as many as there are at the small one."""
    with tempfile.TemporaryDirectory() as folder:
        large, wrong = cycles(Path(folder, "large"), HOURS * 3600 // CLIP_S, run.seed)
        small, more = cycles(Path(folder, "small"), 100, run.seed)
    whole = HOURS * 3600 // CLIP_S * STAGES * sorted(large)[len(large) // 2] / 3.6e6
    note = f"all {STAGES} stages of {HOURS} h cost the queue {whole:.1f} h of one process"
    return {
        PACE.id: Outcome(Side("360,000 clips", tuple(large)), Side("100 clips", tuple(small)), note),
        ONCE.id: Outcome.single(float(wrong + more), note="of the leases at both sizes, one in twenty lost"),
    }


def cycles(root: Path, clips: int, seed: int) -> tuple[list[float], int]:
    """Milliseconds of a lease and its entry, means of pieces, and jobs that are not entered once."""
    from haversack.collect._books import Books
    from haversack.collect._jobs import Jobs

    root.mkdir()
    books = Books(root, create=True)
    with books.change() as change:
        change.executemany(
            "INSERT INTO jobs (clip, stage, version, state, in_bytes) "
            "VALUES (?, 'c1-ingest', '1', 'queued', 1)",
            ((f"{at:08x}",) for at in range(clips)),
        )
    stages = {f"c{at}-{name}": "1" for at, name in ((1, "ingest"), (2, "calibration"))}
    jobs, draws = Jobs(books, attempts=50, lease_s=3600), random.Random(seed)
    paces, taken = [], set()
    piece = min(CYCLES, clips * len(stages)) // 10
    for _ in range(10):
        begun, done = time.perf_counter(), 0
        for at in range(piece):
            worker = f"sim:{at % 64}:x"
            job = jobs.lease(worker, stages)
            if job is None:
                break
            taken.add((job.clip, job.stage))
            done += 1
            if draws.random() < DIES:
                jobs.died(worker, "it died")
                continue
            after = ("c2-calibration", "1") if job.stage == "c1-ingest" else None
            for _ in range(2):  # the second is a late twin's
                jobs.done(job, metrics={}, drop_reason=None, cpu_s=0.0, out_bytes=1, following=after)
        if done:
            paces.append(1000 * (time.perf_counter() - begun) / done)
    rows = books.rows("SELECT clip, stage, state, commits FROM jobs WHERE attempts > 0")
    wrong = sum(row["commits"] > 1 or (row["state"] == "done") != (row["commits"] == 1) for row in rows)
    wrong += len(taken - {(row["clip"], row["stage"]) for row in rows})
    books.close()
    return paces, wrong
