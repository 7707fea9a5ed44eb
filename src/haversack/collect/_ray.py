"""The pipeline's workers on a Ray cluster: tasks that lease jobs from the store until nothing waits.

The queue stays the store's, so a task that dies costs what a process that dies does: its lease ends, another
one takes the job, and after `attempts` the clip is set aside. Every node must see the store's folder under
the same path, on a file system on which SQLite's locks hold.

What differs from local workers: a job that hangs is not ended before its lease would be, so `timeout_s` is
not kept; a death is noticed when the lease ends.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from haversack.core.errors import MissingExtraError


def work(root: str, name: str, lease_s: float, attempts: int, stages: Sequence[str]) -> int:
    """What a task does: run jobs until none is queued or leased; how many it ran."""
    import os
    import socket
    import time

    from haversack.collect._books import Books
    from haversack.collect._jobs import Jobs
    from haversack.collect._stages import load_stages, read_settings
    from haversack.collect._worker import IDLE_S, run_one

    place = Path(root)
    books = Books(place)
    jobs = Jobs(books, lease_s=lease_s, attempts=attempts)
    chosen = load_stages(stages, read_settings(place))
    versions = {stage.name: stage.version for stage in chosen}
    worker, done = f"{socket.gethostname()}:{os.getpid()}:{name}", 0
    while jobs.waiting(versions):
        if run_one(place, jobs, worker, chosen):
            done += 1
        else:
            time.sleep(IDLE_S)
    books.close()
    return done


def run_on_ray(
    root: Path,
    stages: Sequence[str],
    *,
    workers: int,
    lease_s: float,
    attempts: int,
    progress: Callable[[], None] = lambda: None,
) -> int:
    """Run `workers` tasks of one core each until nothing waits; how many of them died. Raises
    MissingExtraError without Ray."""
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError("collect process --engine ray", "ray", "cluster") from error
    with contextlib.suppress(RuntimeError):  # it is connected already
        ray.init(ignore_reinit_error=True, log_to_driver=False)
    task = ray.remote(num_cpus=1, max_retries=0)(work)
    given = (str(root.resolve()), lease_s, attempts, list(stages))

    def start(number: int) -> Any:
        return task.remote(given[0], f"ray{number}", *given[1:])

    running, deaths, following = [start(at) for at in range(workers)], 0, workers
    while running:
        ready, running = ray.wait(running, num_returns=1, timeout=1.0)
        progress()
        for each in ready:
            try:
                ray.get(each)
            except ray.exceptions.RayError:
                deaths += 1
                running.append(start(following))
                following += 1
    return deaths
