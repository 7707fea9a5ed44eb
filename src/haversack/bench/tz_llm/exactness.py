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
from haversack.core.memory import drop_cached, run_measured


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
        "peak memory of the same within a budget of two thirds of that",
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
    found: dict[str, Outcome | Unavailable] = {}
    planned = 0.0
    from haversack.bench.tz_llm._code import sealed_code

    pack, key = sealed_code()
    for row in ("memory",) if run.quick else ("memory", "memory-budget"):
        argv = [sys.executable, "-c", "import sys; from haversack.cli import main; sys.exit(main())"]
        argv += ["run", str(pack), "--key", str(key), "--prompt", "def read_json(path):"]
        argv += ["--max-tokens", "24", "--json"]
        budget = ["--ram-mib", str(int(planned * 2 / 3))] if row == "memory-budget" else []
        drop_cached([pack / "sealed.store"])
        done = run_measured([*argv, *budget], files=[pack / "sealed.store"], timeout=60)
        if done.returncode:
            found[row] = Unavailable(f"the run failed: {(done.stderr or done.stdout).strip()[-300:]}")
            continue
        planned = float(json.loads(done.stdout)["ram_mib"]["planned"])
        allowed = float(budget[1]) if budget else planned
        found[row] = Outcome.single(done.peak_mib, allowed, against="budget" if budget else "plan")
    return found
