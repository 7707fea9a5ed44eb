"""What the benches of streamed experts share: packs in fast storage, a process measured inside its budget."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from haversack.bench._rows import Unavailable


@contextmanager
def fast_storage(pack: Callable[..., Path]) -> Iterator[Callable[..., Path]]:
    """`pack`, its packs copied into memory where the system has a file system there: what is slowed down must
    not be slow already."""
    memory = Path("/dev/shm")
    folder = Path(mkdtemp(prefix="haversack-", dir=memory if os.access(memory, os.W_OK) else None))
    try:

        def copied(*which: str) -> Path:
            goal = folder / pack(*which).parent.name
            return goal if goal.is_dir() else Path(shutil.copytree(pack(*which), goal))

        yield copied
    finally:
        shutil.rmtree(folder, ignore_errors=True)


PROGRAM = """
import json, sys
import numpy as np
from haversack.core.budget import Budget
from haversack.run import Engine
pack, prompt, count, ram_mib, residency = json.loads(sys.argv[1])
budget, size = Budget(ram_mib=ram_mib), (len(prompt), count)
with Engine.open(pack, residency=residency, budget=budget, tokens=size) as engine:
    cache = engine.cache(len(prompt) + count)
    logits = engine.read(np.asarray(prompt, np.int32), cache)
    for _ in range(count):
        logits, _ = engine.step([int(logits[0].argmax())], cache=cache)
    print(json.dumps({"read": engine.held.store.bytes_read, "budget": engine.held.budget}))
"""


def process_over_budget(
    pack: Path, prompt: Any, tokens: int, residency: str, more_mib: float, unit: str
) -> tuple[float, str]:
    """Peak memory of a process that writes `tokens` tokens after `prompt`, over its budget; and a note.

    Pages of the pack in the page cache count. The budget is the least that can be, and `more_mib` for some of
    the `unit`.

    Raises Unavailable when the process fails.
    """
    from haversack.core.memory import drop_cached, run_measured
    from haversack.core.pack import Pack
    from haversack.run import Engine

    size = (len(prompt), tokens)
    with Engine.open(pack, residency=f"{residency},buffer_kib=0", tokens=size) as engine:
        budget = engine.memory_plan(size).total_mib + more_mib
    files = Pack.open(pack).files
    drop_cached(files)
    given: list[Any] = [str(pack), prompt.tolist(), tokens, budget, residency]
    done = run_measured([sys.executable, "-c", PROGRAM, json.dumps(given)], files=files, timeout=120)
    if done.returncode:
        raise Unavailable(f"the process ended with {done.returncode}: {done.stderr[-200:]}")
    told = json.loads(done.stdout)
    note = f"budget {budget:.1f} MiB, {told['budget'] / 2**20:.1f} of them for {unit}"
    return done.peak_mib / budget, note
