"""What bit routers gain: the loss of later text at the same mean bits, chosen by routers, by experts, by lot.

Losses are nats a byte, on text that neither training nor calibration saw. Choices of the same pack are played
through the engine in memory; only who chooses the levels differs.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._cache import cached
from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.d2moe import _toy
from haversack.bench.d2moe._bench import bench
from haversack.bench.edgemoe import _toy as edgemoe
from haversack.bench.edgemoe.quality import MAX_LOSS

I32 = NDArray[np.int32]
PIECES, QUICK_PIECES, PIECE = 32, 6, 512
SHIFT, HALVINGS = 8.0, 10


@cache
def engine(precision: str) -> Any:
    """The model of a precision, in memory."""
    from haversack.run import Engine

    return Engine.open(_toy.pack(precision), residency="copied", activations="f32")


def pieces(run: Run) -> list[I32]:
    """Text that is measured on."""
    _, _, later = edgemoe.parts()
    count = QUICK_PIECES if run.quick else PIECES
    starts = np.random.default_rng(run.seed).permutation(len(later) // PIECE)[:count] * PIECE
    return [later[start : start + PIECE] for start in starts.tolist()]


def losses(precision: str, texts: list[I32], levels: Any = None) -> tuple[float, ...]:
    """Mean next-token loss of each text; `levels` chooses instead of the pack's routers."""
    running = engine(precision)
    kept = running.forward.levels
    running.forward.levels = kept if levels is None else levels
    found = []
    try:
        for text in texts:
            logits, _ = running.step(text, cache=running.cache(len(text)), want="all")
            rows = logits[:-1].astype(np.float64)
            rows -= rows.max(axis=1, keepdims=True)
            chosen = np.take_along_axis(rows, text[1:, None].astype(np.int64), axis=1)[:, 0]
            found.append(float((np.log(np.exp(rows).sum(axis=1)) - chosen).mean()))
    finally:
        running.forward.levels = kept
    return tuple(found)


class Drawn:
    """Levels by lot, as often as `shares` say."""

    def __init__(self, shares: NDArray[np.float64], seed: int) -> None:
        self._shares, self._rng = shares, np.random.default_rng(seed)

    def __call__(self, block: int, x: Any, experts: I32) -> I32:
        return self._rng.choice(len(self._shares), experts.shape, p=self._shares).astype(np.int32)


class Static:
    """A level for each expert: `levels` i32 [layers, experts]."""

    def __init__(self, levels: I32) -> None:
        self._levels = levels

    def __call__(self, block: int, x: Any, experts: I32) -> I32:
        return self._levels[block][experts]


def shifted(routers: Any, amount: float) -> Any:
    """The routers with `amount` for each bit added to what they make for a level: more bits for more."""
    from haversack.run._levels import BitRouters

    widths = routers.first + np.arange(routers.biases.shape[2], dtype=np.float32)
    biases = routers.biases + np.float32(amount) * widths
    return BitRouters(routers.weights, biases, routers.identity, routers.blocks, routers.first)


def shift_of_equal_quality(routers: Any) -> float:
    """What `equal_quality` shifts routers by, found by halves."""
    seen = list(edgemoe.calibration())
    most = (1 + MAX_LOSS) * float(np.mean(losses(_toy.EXACT, seen)))
    low, high = -SHIFT, SHIFT
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if float(np.mean(losses(_toy.ROUTED, seen, shifted(routers, middle)))) <= most:
            high = middle
        else:
            low = middle
    return high


@cache
def equal_quality() -> Any:
    """The routers shifted to the fewest bits at which the loss of calibration text grows by no more than
    EdgeMoE's widths are allowed to; the shift is kept by content."""
    routers = engine(_toy.ROUTED).forward.levels
    packs = [_toy.pack(precision).parent.name for precision in (_toy.ROUTED, _toy.EXACT)]

    def make(goal: Path) -> None:
        (goal / "shift.json").write_text(json.dumps(shift_of_equal_quality(routers)))

    found = cached("d2moe-shift", {"packs": packs, "loss": MAX_LOSS}, make)
    return shifted(routers, json.loads((found / "shift.json").read_text()))


def counted(texts: list[I32], levels_by: Any = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What the pack's routers, or `levels_by`, choose on `texts`: levels i64 [levels], and tokens of each
    expert i64 [layers, experts]."""
    levels, tokens = np.zeros(3, np.int64), np.zeros((_toy.LAYERS, _toy.EXPERTS), np.int64)

    def observe(routing: Any) -> None:
        np.add.at(levels, routing.levels.reshape(-1), 1)
        np.add.at(tokens[routing.block], routing.experts.reshape(-1), 1)

    running = engine(_toy.ROUTED)
    kept = running.forward.levels
    running.forward.levels = kept if levels_by is None else levels_by
    running.observe(observe)
    try:
        for text in texts:
            running.step(text, cache=running.cache(len(text)), want="none")
    finally:
        running.observe(None)
        running.forward.levels = kept
    return levels, tokens


def static_levels(bits: float, texts: list[I32]) -> I32:
    """Levels of experts whose mean over the tokens of `texts` is `bits`: experts whose narrowest level costs
    calibration text most get the widest, as EdgeMoE ranks them."""
    from haversack.run._levels import Uniform

    _, tokens = counted(texts)
    base = np.zeros((_toy.LAYERS, _toy.EXPERTS), np.int32)
    plain = np.mean(losses(_toy.ROUTED, texts, Uniform(2)))
    gains = np.zeros(base.shape)
    for layer in range(_toy.LAYERS):
        for expert in range(_toy.EXPERTS):
            lowered = base + 2
            lowered[layer, expert] = 0
            cost = float(np.mean(losses(_toy.ROUTED, texts, Static(lowered)))) - plain
            gains[layer, expert] = cost / max(1, tokens[layer, expert])
    order = np.argsort(-gains.reshape(-1), kind="stable")
    flat, weights = base.reshape(-1), tokens.reshape(-1)
    most = (bits - 2) * weights.sum()
    for index in order:
        for level in (2, 1):
            if (flat * weights).sum() + level * weights[index] <= most:
                flat[index] = level
                break
    return base


@bench.measure(
    Row(
        "router-static",
        "loss with bit routers beside levels of experts of the same mean bits",
        "nats/byte",
        "quality",
        Bar("<=", 1.0),
        published="perplexity 4.28 to 4.38 (Mixtral, EdgeMoE)",
    ),
    Row(
        "router-drawn",
        "loss with bit routers beside levels by lot of the same mean bits",
        "nats/byte",
        "quality",
        Bar("<=", 1.0),
        quick=True,
    ),
    Row("router-bits", "mean bits that routers choose on later text", "bits", "quality", judged="ours"),
    Row(
        "equal-loss",
        "loss with bit routers at the quality of the timings, beside EdgeMoE's bits",
        "nats/byte",
        "quality",
        published="perplexity 4.28 to 4.38 (Mixtral)",
    ),
    Row(
        "equal-bits",
        "mean bits that tokens read at the quality of the timings",
        "bits",
        "quality",
        judged="ours",
    ),
    *(
        Row(f"loss-{name}", f"loss {words} beside f32", "nats/byte", "quality", published=published)
        for name, words, published in (
            ("routed", "with bit routers", "perplexity 15.68 of 14.55 (LLaMA-MoE)"),
            ("2", "at 2 of the nested bits", "perplexity 20.95 of 14.55"),
            ("3", "at 3 of the nested bits", "perplexity 15.10 of 14.55"),
            ("4", "at 4 of the nested bits", "perplexity 14.72 of 14.55"),
            ("edgemoe", "with EdgeMoE's bits", "perplexity 14.78 of 14.55"),
            ("int4", "at int4", "perplexity 15.89 of 14.55"),
            ("int8", "at int8", "perplexity 14.55"),
        )
    ),
    seconds=900,
    quick_seconds=25,
)
def chosen(run: Run) -> Outcomes:
    _toy.trained(run)
    from haversack.run._levels import Uniform

    texts, seen = pieces(run), list(edgemoe.calibration())[:2]
    routed = Side("routed", losses(_toy.ROUTED, texts))
    levels, _ = counted(texts)
    shares = levels / levels.sum()
    bits = float(shares @ np.arange(2, 5))
    spread = np.mean(losses(_toy.ROUTED, texts, Drawn(shares, run.seed + 1)))
    drawn = losses(_toy.ROUTED, texts, Drawn(shares, run.seed))
    note = f"{bits:.3f} bits, shares {', '.join(f'{one:.2f}' for one in shares)}; another lot {spread:.4f}"
    found = {"router-drawn": Outcome(routed, Side("by lot", drawn), note)}
    if run.quick:
        return found
    static = static_levels(bits, seen)
    found["router-static"] = Outcome(
        routed,
        Side("by expert", losses(_toy.ROUTED, texts, Static(static))),
        f"{bits:.3f} bits; experts at 2/3/4: {np.bincount(static.reshape(-1), minlength=3).tolist()}",
    )
    found["router-bits"] = Outcome.single(bits, name="routed", note=f"asked for {_toy.TARGET_BITS}")
    exact = Side("f32", losses(_toy.EXACT, texts))
    found["loss-routed"] = Outcome(routed, exact)
    for level in range(3):
        side = Side(f"{level + 2} bits", losses(_toy.ROUTED, texts, Uniform(level)))
        found[f"loss-{level + 2}"] = Outcome(side, exact)
    equal = equal_quality()
    levels, _ = counted(texts, equal)
    found["equal-bits"] = Outcome.single(float(levels @ np.arange(2, 5) / levels.sum()), name="routed")
    found["equal-loss"] = Outcome(
        Side("routed", losses(_toy.ROUTED, texts, equal)), Side("EdgeMoE", losses(_toy.STATIC, texts))
    )
    for name, precision in (("edgemoe", _toy.STATIC), ("int4", _toy.INT4), ("int8", _toy.INT8)):
        found[f"loss-{name}"] = Outcome(Side(name, losses(precision, texts)), exact)
    return found
