"""The same logits however weights are restored; the memory of a run beside its plan; what a store adds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.tz_llm._bench import bench
from haversack.bench.tz_llm._models import packs
from haversack.bench.tz_llm.latency import WAYS, prompt, workers
from haversack.core.memory import MeasuredRun, drop_cached, run_measured


@bench.measure(
    Row(
        "same-logits",
        "share of the ways of holding weights whose logits equal those of weights in memory, bit for bit",
        "share",
        "quality",
        Bar("==", 1.0),
        judged="ours",
    ),
    seconds=40,
)
def same_logits(run: Run) -> Outcomes:
    names = [*WAYS]
    tokens = prompt(40, run.seed)
    with workers(*names) as held:
        found = {name: {held[name].ask("first", tokens=tokens)["logits"] for _ in range(2)} for name in names}
    same = sum(found[name] == found["in memory"] for name in names)
    return {"same-logits": Outcome.single(same / len(names), note=f"{len(names)} ways, each twice from cold")}


@bench.measure(
    Row(
        "bytes",
        "bytes of the sealed store over those of the weights in the clear",
        "MiB",
        "bytes",
        Bar("<=", 1.01),
        quick=True,
    ),
    seconds=5,
    quick_seconds=5,
)
def store_bytes(run: Run) -> Outcomes:
    plain, sealed, _ = packs()
    sizes = [size(sealed / "sealed.store"), size(plain / "weights.safetensors")]
    return {"bytes": Outcome.single(*sizes, name="sealed.store", against="weights.safetensors")}


def size(path: Path) -> float:
    return path.stat().st_size / 2**20


@bench.measure(
    Row(
        "memory",
        "peak memory of `run --residency sealed`, both processes, over its plan",
        "MiB",
        "memory",
        Bar("<=", 1.0),
        quick=True,
    ),
    Row(
        "memory-budget",
        "peak memory of a decoder of 280 MB in two thirds of what all its weights restored would take",
        "MiB",
        "memory",
        Bar("<=", 1.0),
    ),
    seconds=30,
    quick_seconds=10,
    watches=(
        "bench/tz_llm/*.py",
        "formats/*seal*.py",
        "run/residency/*.py",
        "run/_memory.py",
        "core/memory.py",
    ),
)
def memory(run: Run) -> Outcomes:
    found: dict[str, Outcome | Unavailable] = {"memory": over_plan()}
    if not run.quick:
        found["memory-budget"] = over_budget(run)
    return found


def over_plan() -> Outcome | Unavailable:
    """`haversack run` of the sealed `code`: measured beside planned."""
    from haversack.bench.tz_llm._code import sealed_code

    pack, key = sealed_code()
    argv = [sys.executable, "-c", "import sys; from haversack.cli import main; sys.exit(main())"]
    argv += ["run", str(pack), "--key", str(key), "--prompt", "def read_json(path):"]
    argv += ["--max-tokens", "24", "--json"]
    drop_cached([pack / "sealed.store"])
    done = run_measured(argv, files=[pack / "sealed.store"], timeout=60)
    if done.returncode:
        return Unavailable(f"the run failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return Outcome.single(done.peak_mib, json.loads(done.stdout)["ram_mib"]["planned"], against="plan")


WITHIN = """
import json, sys
import numpy as np
from haversack.core.budget import Budget
from haversack.run import Engine
pack, key, prompt, count, ram_mib = json.loads(sys.argv[1])
budget = Budget(ram_mib=ram_mib) if ram_mib else None
with Engine.open(pack, residency="sealed", key=key, budget=budget, tokens=(len(prompt), count)) as engine:
    if budget is None:
        print(engine.memory_plan((len(prompt), count)).total_mib)
        sys.exit()
    cache = engine.cache(len(prompt) + count)
    logits, _ = engine.step(np.asarray(prompt, np.int32), cache=cache)
    for _ in range(count):
        logits, _ = engine.step([int(logits[0].argmax())], cache=cache)
"""


def over_budget(run: Run) -> Outcome | Unavailable:
    """The drawn decoder in a process of its own, most of its weights restored again for every token."""
    _, sealed, key = packs()

    def ran(ram_mib: float | None) -> MeasuredRun:
        given = json.dumps([str(sealed), str(key), prompt(64, run.seed), 4, ram_mib])
        drop_cached([sealed / "sealed.store"])
        return run_measured(
            [sys.executable, "-c", WITHIN, given], files=[sealed / "sealed.store"], timeout=90
        )

    whole = ran(None)
    budget = float(whole.stdout) * 2 / 3 if whole.returncode == 0 else 0.0
    done = ran(budget) if budget else whole
    if done.returncode:
        return Unavailable(f"the process ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return Outcome.single(
        done.peak_mib, budget, against="budget", note=f"all restored: {float(whole.stdout):.0f} MiB"
    )
