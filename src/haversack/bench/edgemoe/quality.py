"""What the experts' own bits cost, and what the routing of text that was never calibrated on allows.

Losses are nats a byte. Guesses and evictions are judged on text that neither training nor calibration saw;
the path table and the frequencies are those of the calibration part.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.edgemoe import _toy
from haversack.bench.edgemoe._bench import bench

I32 = NDArray[np.int32]
MAX_LOSS = 0.02
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
SEQUENCES, SEQUENCE = 12, 64
LATER, QUICK_LATER = 16_384, 4_096
EXACT = "edgemoe:bits=32,rest=f32"


@cache
def _engine(precision: str) -> Any:
    from haversack.run import Engine

    return Engine.open(_toy.pack(precision), residency="copied", activations="f32")


def routes_of(precision: str, text: I32) -> I32:
    """What every router chooses while `text` is read: i32 [tokens, layers, chosen]."""
    from haversack.run._routing import RoutingTrace

    engine, trace = _engine(precision), RoutingTrace()
    engine.observe(trace)
    try:
        engine.step(text, cache=engine.cache(len(text)), want="none")
    finally:
        engine.observe(None)
    return np.stack([trace.chosen(block)[1] for block in trace.blocks], axis=1)


def loss_of(precision: str, texts: list[I32]) -> float:
    """Mean next-token loss."""
    engine = _engine(precision)
    total, count = 0.0, 0
    for text in texts:
        logits, _ = engine.step(text, cache=engine.cache(len(text)), want="all")
        rows = logits[:-1].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        chosen = np.take_along_axis(rows, text[1:, None].astype(np.int64), axis=1)[:, 0]
        total += float((np.log(np.exp(rows).sum(axis=1)) - chosen).sum())
        count += len(chosen)
    return total / count


def pieces(run: Run) -> list[I32]:
    """Text that is measured on, in pieces."""
    _, _, later = _toy.parts()
    count = (QUICK_LATER if run.quick else LATER) // _toy.PIECE
    first = int(np.random.default_rng(run.seed).integers(0, len(later) - count * _toy.PIECE))
    return [later[first + i * _toy.PIECE :][: _toy.PIECE] for i in range(count)]


@bench.measure(
    Row(
        "loss-calibration",
        f"loss of calibration text grows by at most {MAX_LOSS:.0%} with each expert at its own bits",
        "nats/byte",
        "quality",
        Bar("<=", 1 + MAX_LOSS),
        published="Rouge-2 0.221 to 0.219 (Switch-base-8, SAMsum)",
        quick=True,
    ),
    Row(
        "loss-later",
        f"loss of later text grows by at most {MAX_LOSS:.0%} with each expert at its own bits",
        "nats/byte",
        "quality",
        Bar("<=", 1 + MAX_LOSS),
        quick=True,
    ),
    Row("loss-int4", "the same with every expert at 4 bits", "nats/byte", "quality"),
    Row(
        "mean-bits",
        "mean bits of the experts are below 4, some of them at 2",
        "bits",
        "bytes",
        Bar("<=", 3.99),
        judged="ours",
        quick=True,
    ),
    Row(
        "expert-bytes",
        "bytes of the expert store, beside all experts at 4 bits",
        "bytes",
        "bytes",
        quick=True,
    ),
    seconds=600,
    quick_seconds=20,
)
def bits(run: Run) -> Outcomes:
    _toy.trained(run)
    from haversack.core.expert_store import STORE_NAME, ExpertStore

    later = pieces(run)
    seen = list(_toy.calibration())
    exact = {"calibration": loss_of(EXACT, seen), "later": loss_of(EXACT, later)}
    widths: list[int] = []
    with ExpertStore.open(_toy.pack("edgemoe") / STORE_NAME) as store:
        for record in store.records.values():
            kind = record.tensors[0].kind
            widths.append({"int2": 2, "int4": 4, "int8": 8, "f16": 16, "f32": 32}[kind])
    sizes = [(_toy.pack(one) / STORE_NAME).stat().st_size for one in ("edgemoe", "edgemoe:bits=4")]
    counted = ", ".join(f"{widths.count(width)} at {width}" for width in sorted(set(widths)))
    found = {
        "loss-calibration": Outcome.single(
            loss_of("edgemoe", seen), exact["calibration"], name="own bits", against="f32", note=counted
        ),
        "loss-later": Outcome.single(
            loss_of("edgemoe", later), exact["later"], name="own bits", against="f32", note=counted
        ),
        "mean-bits": Outcome.single(float(np.mean(widths)), 4.0, name="own bits", against="4", note=counted),
        "expert-bytes": Outcome.single(sizes[0], sizes[1], name="own bits", against="4 bits"),
    }
    if not run.quick:
        found["loss-int4"] = Outcome.single(
            loss_of("edgemoe:bits=4", later), exact["later"], name="4 bits", against="f32"
        )
    return found


def guessed(predictor: Any, routes: I32, most: int) -> float:
    """Share of the choices of layers 1 and up that are among the first `most` guesses."""
    right = count = 0
    for token in routes:
        for layer, experts in enumerate(token):
            if layer:
                likely = predictor.likely(layer)[:most]
                right += sum(int(expert) in likely for expert in experts)
                count += len(experts)
            predictor.chose(layer, experts.tolist())
    return right / count


class Frequent:
    """Guesses the experts that are chosen most often."""

    def __init__(self, frequencies: NDArray[np.float64]) -> None:
        self._order = np.argsort(-frequencies, axis=1, kind="stable")

    def chose(self, layer: int, experts: Any, x: Any = None) -> None: ...

    def likely(self, layer: int) -> list[int]:
        return [int(expert) for expert in self._order[layer]]


def gate_hits(text: I32) -> float:
    """Share of the choices of layers 1 and up that the next layer's router makes one layer early."""
    from haversack.kernels import matmul

    engine = _engine("edgemoe:bits=4")
    seen: dict[int, tuple[Any, Any]] = {}
    right = count = 0

    def observe(routing: Any) -> None:
        nonlocal right, count
        before = seen.get(routing.block - 1)
        if before is not None:
            router = engine.architecture.blocks[routing.block].mixture.router
            with engine.held.weights(routing.block) as weights:
                scores = matmul(before[0], weights[router.weight])
            right += int((scores.argmax(axis=1) == routing.experts[:, 0]).sum())
            count += len(scores)
        seen[routing.block] = (routing.x.copy(), None)

    engine.observe(observe)
    try:
        engine.step(text, cache=engine.cache(len(text)), want="none")
    finally:
        engine.observe(None)
    return right / count


@bench.measure(
    Row(
        "guess-1",
        "first guess of the two-layer path table right, at least twice as often as chance",
        "share",
        "quality",
        Bar(">=", 2.0),
        published="87.1 % for the paper's example path",
        quick=True,
    ),
    Row(
        "guess-3",
        "one of three guesses of the path table right, beside the three most frequent experts",
        "share",
        "quality",
        Bar(">=", 1.15),
        quick=True,
    ),
    Row("guess-gate", "first guess of the next layer's router, beside the path table's", "share", "quality"),
    Row(
        "paths",
        "share of the tokens on the most frequent fifth of all paths",
        "share",
        "quality",
        Bar(">=", 0.6),
        judged="ours",
        published=0.99,
    ),
    Row(
        "entropy",
        "entropy of a layer's choices, the most balanced layer's, beside eight equal experts",
        "bits",
        "quality",
    ),
    seconds=60,
    quick_seconds=10,
)
def guesses(run: Run) -> Outcomes:
    _toy.trained(run)
    from haversack.core.pack import Pack
    from haversack.run._paths import PROFILE_NAME, Profile, carried
    from haversack.run._prediction import Paths

    later = np.concatenate(pieces(run))[:QUICK_LATER]
    profile = Profile.of_bytes(Pack.open(_toy.pack("edgemoe:bits=4")).read_file(PROFILE_NAME))
    routes = np.concatenate([routes_of("edgemoe:bits=4", part) for part in later.reshape(-1, _toy.PIECE)])
    paths = {most: guessed(Paths(profile), routes, most) for most in (1, 3)}
    frequent = guessed(Frequent(profile.frequencies), routes, 3)
    note = f"{len(routes)} bytes of later text, {profile.tokens} in the table"
    entropies = profile.entropy_bits()
    found = {
        "guess-1": Outcome.single(paths[1], 1 / _toy.EXPERTS, name="paths", against="chance", note=note),
        "guess-3": Outcome.single(paths[3], frequent, name="paths", against="frequencies", note=note),
        "paths": Outcome.single(carried(routes), name="later text", note=note),
        "entropy": Outcome.single(
            float(entropies.max()),
            float(np.log2(_toy.EXPERTS)),
            name="most balanced",
            against="balanced",
            note="by layer: " + ", ".join(f"{bits:.2f}" for bits in entropies),
        ),
    }
    if not run.quick:
        gate = gate_hits(later[: _toy.PIECE * 4])
        found["guess-gate"] = Outcome.single(gate, paths[1], name="next router", against="paths")
    return found


EVICTIONS = ("intent", "lru", "fifo", "frequency", "printed")


@bench.measure(
    *(
        Row(
            f"hits-{other}",
            f"share of experts found in the buffer with the intended eviction less that of {words}, the "
            f"least over buffers of {SHARES[0]:.0%} to {SHARES[-1]:.0%} of all experts",
            "share",
            "quality",
            Bar(">=", 0.0) if other in ("lru", "fifo") else None,
            judged="ours",
            quick=other in ("lru", "fifo"),
        )
        for other, words in (
            ("lru", "least recently used"),
            ("fifo", "first in, first out"),
            ("frequency", "frequency alone"),
            ("printed", "the formula as printed"),
        )
    ),
    seconds=60,
    quick_seconds=10,
)
def evictions(run: Run) -> Outcomes:
    _toy.trained(run)
    from haversack.core.pack import Pack
    from haversack.run._eviction import Belady, eviction
    from haversack.run._paths import PROFILE_NAME, Profile
    from haversack.run._shelf import replay

    profile = Profile.of_bytes(Pack.open(_toy.pack("edgemoe:bits=4")).read_file(PROFILE_NAME))
    trace = []
    for text in _toy.prompts(SEQUENCES, SEQUENCE, run.seed):
        for token in routes_of("edgemoe:bits=4", text):
            trace += [(layer, int(expert)) for layer, experts in enumerate(token) for expert in experts]
    total = _toy.LAYERS * _toy.EXPERTS
    ratios: dict[str, list[float]] = {name: [] for name in (*EVICTIONS, "best")}
    for share in SHARES:
        places = round(share * total)
        for name in EVICTIONS:
            recipe = eviction(name, _toy.LAYERS, _toy.EXPERTS, profile.frequencies)
            ratios[name].append(replay(trace, lambda key: 1, places, recipe).hit_ratio)
        ratios["best"].append(replay(trace, lambda key: 1, places, Belady(trace)).hit_ratio)
    told = "; ".join(f"{name} " + "/".join(f"{one:.3f}" for one in found) for name, found in ratios.items())
    found = {}
    for other in EVICTIONS[1:]:
        gaps = [ours - theirs for ours, theirs in zip(ratios["intent"], ratios[other], strict=True)]
        found[f"hits-{other}"] = Outcome(Side("least gap", (min(gaps),)), note=told)
    return found
