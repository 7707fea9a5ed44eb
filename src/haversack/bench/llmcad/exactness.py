"""That drafting changes no token, sampling by rejection no distribution, and that the budget is kept."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.llmcad._bench import DRAFT, answered, bench, opened, prompts, target

TOKENS = 48
SAMPLES, QUICK_SAMPLES = 20_000, 1_500
LIKELIEST = 8
BUDGET_MIB = 80.0


def combinations() -> Iterator[tuple[str, dict[str, Any]]]:
    """(decode, options): every residency, cache type and precision, the tree's parts, a linear draft."""
    for residency in ("mapped", "copied", "streamed"):
        yield "tree", {"residency": residency}
    for cache_type in ("f16", "int8"):
        yield "tree", {"cache_type": cache_type, "residency": "streamed:mb_s=2000"}
    yield "tree", {"activations": "f32"}
    yield "tree", {"prefill": "chunked:tokens=16", "attention": "sliding:window=48,sink=2"}
    for part in ("adaptive=paper", "adaptive=none", "children=1", "children=3,branch_threshold=0.1,nodes=32"):
        yield f"tree:{part}", {}
    yield "linear-draft:length=8", {}


@bench.measure(
    Row(
        "same-tokens",
        "greedy tokens of every prompt are those of plain decoding: every residency, cache type, activation "
        "type and part of the method",
        "share of prompts",
        "quality",
        Bar("==", 1.0),
        judged="ours",
        published="100 % (by construction)",
        quick=True,
    ),
    Row(
        "same-draws",
        "tokens drawn at temperature 1 are those of plain decoding with the same seed",
        "share of prompts",
        "quality",
        Bar("==", 1.0),
        judged="ours",
        quick=True,
    ),
    seconds=120,
    quick_seconds=25,
)
def exact(run: Run) -> Outcomes:
    from haversack.run import Sampler

    asked = prompts(run, 2 if run.quick else 12)
    samplers = {"same-tokens": Sampler(), "same-draws": Sampler(temperature=1.0, top_p=0.95, seed=run.seed)}
    same, seen = dict.fromkeys(samplers, 0), dict.fromkeys(samplers, 0)
    chosen = list(combinations())
    plain: dict[str, list[list[list[int]]]] = {}
    for decode, options in chosen:
        exact_options = {name: options[name] for name in options if name not in ("residency", "prefill")}
        key = json.dumps(exact_options)
        if key not in plain:
            with opened("one-by-one", **exact_options) as engine:
                plain[key] = [
                    [answered(engine, prompt, TOKENS, sampler).tokens for prompt in asked]
                    for sampler in samplers.values()
                ]
        coupled = f"{decode},sampling=tokens" if decode.startswith("linear") else decode
        with opened(coupled, **options) as engine:
            for (name, sampler), expected in zip(samplers.items(), plain[key], strict=True):
                found = [answered(engine, prompt, TOKENS, sampler).tokens for prompt in asked]
                same[name] += sum(one == other for one, other in zip(found, expected, strict=True))
                seen[name] += len(asked)
    note = f"{len(chosen)} combinations, {len(asked)} prompts, {TOKENS} tokens"
    return {name: Outcome.single(same[name] / seen[name], name="tree", note=note) for name in samplers}


def tail(chi_square: float, degrees: int) -> float:
    """The probability of a larger chi-square (Wilson and Hilferty's approximation)."""
    if degrees < 1:
        return 1.0
    spread = 2 / (9 * degrees)
    z = ((chi_square / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))


@bench.measure(
    Row(
        "distribution",
        "sampling by rejection over a tree: second tokens of many seeds beside the model's own distribution, "
        "probability of a larger chi-square",
        "p",
        "quality",
        Bar(">=", 0.01),
        judged="ours",
    ),
    seconds=400,
)
def distribution(run: Run) -> Outcomes:
    from haversack.run import Sampler

    sampler = {"temperature": 1.0, "top_k": LIKELIEST}
    (prompt,) = prompts(run, 1)
    prompt = prompt[:16]
    count = QUICK_SAMPLES if run.quick else SAMPLES
    with opened("tree:sampling=rejection,branch_threshold=0.05,children=3,alpha=0.001,nodes=12") as engine:

        def after(*more: int) -> Any:
            logits, _ = engine.step([*prompt, *more], cache=engine.cache(len(prompt) + 4))
            return Sampler(**sampler).distribution(logits[0], None).astype(np.float64)

        first = after()
        exact = sum(first[token] * after(int(token)) for token in np.flatnonzero(first))
        counts, drafted, accepted = np.zeros(len(exact)), 0, 0
        for seed in range(count):
            answer = answered(engine, prompt, 6, Sampler(**sampler, seed=run.seed + seed))
            counts[answer.tokens[1]] += 1
            drafted += answer.drafting.drafted
            accepted += answer.drafting.accepted
    if not accepted:
        raise ValueError("nothing was drafted and accepted")
    expected = exact * count
    likely = expected >= 5
    observed = np.append(counts[likely], counts[~likely].sum())
    wanted = np.append(expected[likely], expected[~likely].sum())
    kept = wanted > 0
    distance = float(((observed - wanted)[kept] ** 2 / wanted[kept]).sum())
    degrees = int(kept.sum()) - 1
    note = (
        f"{count} samples, chi-square {distance:.1f} with {degrees} degrees; {accepted} of {drafted} drafts "
        f"accepted; {int(counts[exact == 0].sum())} tokens that the model cannot say"
    )
    return {"distribution": Outcome.single(tail(distance, degrees), name="tree", note=note)}


@bench.measure(
    Row(
        "memory",
        f"peak memory of `run --decode tree --residency streamed` in a budget of {BUDGET_MIB:.0f} MiB, both "
        "models included",
        "MiB",
        "memory",
        Bar("<=", 1.0),
        quick=True,
    ),
    seconds=20,
    quick_seconds=10,
)
def memory(run: Run) -> Outcomes:
    from haversack.core.memory import drop_cached, run_measured

    weights = target() / "weights.safetensors"
    drop_cached([weights])
    argv: list[str | Path] = [sys.executable, "-c", "from haversack.cli import main; main()", "run"]
    argv += [target(), "--residency", "streamed", "--decode", "tree", "--draft", DRAFT]
    argv += ["--ram-mib", str(BUDGET_MIB), "--prompt", "def read_json(path):", "--max-tokens", "48", "--json"]
    done = run_measured(argv, files=[weights], timeout=60)
    if done.returncode:
        return {"memory": Unavailable(f"run failed: {done.stderr.strip()[-300:]}")}
    said = json.loads(done.stdout)["ram_mib"]
    note = f"the command itself planned {said['planned']:.1f} and saw {said['measured']:.1f} MiB"
    found = Outcome.single(done.peak_mib, BUDGET_MIB, name="haversack run", against="budget", note=note)
    return {"memory": found}
