"""How good the slopes are, and what a step takes: on the outlier model in W4A4, from block reconstruction."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.zeroqat._bench import bench
from haversack.bench.zeroqat._models import LENGTH, decoder, learned_texts, prepared

DIRECTIONS, QUICK_DIRECTIONS = 48, 8
SIGNS, BATCH, MANY = 24, 8, 64
EPOCHS = 8


def _started(variant: str, eps: float) -> tuple[Any, Any, Any]:
    """(decoder, stepper, bits) in W4A4."""
    from haversack.train.gradient._zeroqat_decoder import Bits
    from haversack.train.gradient.zeroqat import ZeroQat

    bits = Bits(4, 4)
    kept = "all" if variant == "full" else "query-value"
    model = decoder(prepared(bits, 0, smooth="given", epochs=EPOCHS, kept=kept), bits)
    return model, ZeroQat(variant=variant, eps=eps, zo="weights").stepper(model, "text", 0), bits


def _rows(count: int, seed: int) -> Any:
    from haversack.train._texts import Rows as TextRows
    from haversack.train.gradient._zeroqat_decoder import Rows

    return Rows.of_texts(TextRows(learned_texts().learned, count, LENGTH, seed).at(0))


@bench.measure(
    Row(
        "cosine",
        "cosine between the mean of 48 estimates at eps 1e-2 and the gradient through the rounding, beside "
        "what exact slopes of so many directions would have",
        "cosine",
        "quality",
    ),
    Row(
        "signs",
        "share of directions whose slope has another sign on 8 texts than on 64 (eps 1e-2)",
        "share",
        "quality",
        Bar("<=", 0.2),
        judged="ours",
    ),
    seconds=60,
)
def estimates(run: Run) -> Outcomes:
    from haversack.train.gradient._zeroqat_torch import TrueGradient
    from haversack.train.gradient.zeroqat import gradient_cosine

    model, stepper, _ = _started("full", 1e-2)
    few = _rows(BATCH, run.seed)
    true = TrueGradient(model).gradients(few)
    found, expected = gradient_cosine(stepper.spsa, lambda: model.loss(few), true, DIRECTIONS)
    numbers = sum(each.size for each in true.values())
    note = f"{numbers:,} numbers, {DIRECTIONS} directions, {BATCH} texts"
    many = _rows(MANY, run.seed + 1)
    slopes = np.zeros((2, SIGNS))
    spsa = stepper.spsa
    for step in range(SIGNS):
        spsa.step = step
        for index, rows in enumerate((few, many)):
            with spsa.moving():
                spsa.move(1)
                plus = model.loss(rows)
                spsa.move(-1)
                slopes[index, step] = plus - model.loss(rows)
    differ = float((np.sign(slopes[0]) != np.sign(slopes[1])).mean())
    return {
        "cosine": Outcome.single(found, expected, name="estimates", against="exact slopes", note=note),
        "signs": Outcome.single(differ, name=f"{BATCH} texts", note=f"{SIGNS} directions"),
    }


@bench.measure(
    Row(
        "step-time",
        "a step of the light variant takes no longer than a step of Adam through the rounding",
        "s",
        "time",
        Bar("<=", 1.0),
        published="0.31 of 0.69 s (OPT-1.3B, EfficientQAT)",
        quick=True,
    ),
    seconds=40,
    quick_seconds=30,
)
def step_time(run: Run) -> Outcomes:
    import torch

    from haversack.train.gradient._zeroqat_torch import TrueGradient

    rows = _rows(BATCH, run.seed)
    light, stepper, _ = _started("light", 1e-3)
    whole, _, _ = _started("full", 1e-3)
    true = TrueGradient(whole)
    optimizer = torch.optim.Adam(list(true.learned.values()), lr=1e-6)

    def forward() -> float:
        begun = time.perf_counter()
        stepper.spsa.estimate_and_update(lambda: light.loss(rows), 1e-9)
        return time.perf_counter() - begun

    def back() -> float:
        begun = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        true.loss(rows).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return time.perf_counter() - begun

    forward(), back()
    taken = run.interleave({"light": forward, "Adam": back})
    note = f"{BATCH} texts of {LENGTH} tokens, W4A4"
    return {"step-time": Outcome.of(taken, ours="light", baseline="Adam", note=note)}
