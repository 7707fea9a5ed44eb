"""Which of two losses is larger, in integers and in floats, along a real training; and what speed would need.

The float loss is that of the very logits whose integer cross-entropy was compared, so the row judges the loss
in integers and nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.elasticzo import _data
from haversack.bench.elasticzo._arms import network, train
from haversack.bench.elasticzo._bench import bench
from haversack.train._network import Batch
from haversack.train._niti import loss_bits
from haversack.train.networks.layered import softmax_error

STEPS, SEEDS = 400, (0, 1, 2)


def agreement(seed: int, steps: int, fraction: int | None) -> tuple[float, float, int]:
    """Shares of steps whose integer sign is that of the floats: of those where the floats differ by more than
    their median, and of all; and how many steps tied. `fraction` None: as the method has it, else so many
    fraction bits of powers."""
    data = _data.digits()
    found = network(data, seed, integers=True)
    whole: list[int] = []
    floats: list[float] = []
    inside = found.integer_pass

    def seen(inputs: Any) -> Any:
        values = inside(inputs)
        found.last = values[-1]
        return values

    found.integer_pass = seen
    plain, both = found.integer_loss, found.integer_gradients

    def note(batch: Batch) -> None:
        logits = found.last
        values = logits.values.astype(np.float64)
        floats.append(softmax_error(values, batch.labels, np.empty_like(values)))
        whole.append(
            loss_bits(logits, batch.labels) if fraction is None else loss_bits(logits, batch.labels, fraction)
        )

    def loss(batch: Batch) -> int:
        result: int = plain(batch)
        note(batch)
        return result

    def gradients(batch: Batch, names: Any, bits: int) -> Any:
        result = both(batch, names, bits)
        note(batch)
        return result

    found.integer_loss, found.integer_gradients = loss, gradients
    train(found, data.learn, "elasticzo-int8:p_zero=0.9", 1.0, steps, seed)
    exact = np.diff(np.array(floats).reshape(-1, 2), axis=1)[:, 0]
    ours = np.diff(np.array(whole).reshape(-1, 2), axis=1)[:, 0]
    same = np.sign(exact) == np.sign(ours)
    clear = np.abs(exact) > np.median(np.abs(exact))
    return float(same[clear].mean()), float(same.mean()), int((ours == 0).sum())


@bench.measure(
    Row(
        "sign-agreement",
        "the sign of the integer losses' difference is that of the floats in at least 95 % of the steps "
        "where they differ by more than the median",
        "share",
        "quality",
        Bar(">=", 0.95),
        judged="ours",
        published="about 95 %",
        quick=True,
    ),
    Row(
        "sign-agreement-whole-powers",
        "the same with powers of two rounded down to whole ones, as the paper has them",
        "share",
        "quality",
    ),
    seconds=60,
    quick_seconds=12,
)
def signs(run: Run) -> Outcomes:
    seeds, steps = ((run.seed,), 120) if run.quick else (SEEDS, STEPS)
    rows: dict[str, int | None] = {"sign-agreement": None}
    if not run.quick:
        rows["sign-agreement-whole-powers"] = 0
    found = {}
    for row, fraction in rows.items():
        taken = [agreement(seed, steps, fraction) for seed in seeds]
        every = ", ".join(f"{each:.3f}" for _, each, _ in taken)
        ties = ", ".join(str(count) for *_, count in taken)
        note = f"of all steps {every}; ties {ties} of {steps}"
        found[row] = Outcome(Side("integers", tuple(share for share, *_ in taken)), note=note)
    return found


@bench.measure(
    Row(
        "speed-c",
        "a step in integers in emitted C is at least 1.3 times as fast as in floats (gcc -O3, AVX2)",
        "steps/s",
        "time",
        Bar(">=", 1.3),
        published="1.38 to 1.42 times (Raspberry Pi Zero 2)",
        quick=True,
    ),
    seconds=1,
)
def speed(run: Run) -> Outcomes:
    raise Unavailable(
        "the integer trainer is not emitted as C yet, and numpy multiplies integers as floats, so its times "
        "say nothing about integers"
    )
