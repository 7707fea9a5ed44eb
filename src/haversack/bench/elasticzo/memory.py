"""Bytes that a step of LeNet-5 holds: parameters, inputs, every layer's output, and what the way back adds.

Buffers are arrays that the network allocated and keeps, read off after a real step of 256 rows. Not among
them is what numpy needs to compute at all, alike for every arm: windows of a convolution, the piece of random
numbers, float copies for integer products; notes name it. The peak of everything that Python allocates in a
step has rows of its own.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.elasticzo._arms import learned_by
from haversack.bench.elasticzo._bench import bench
from haversack.core import index
from haversack.train._network import Batch
from haversack.train._slots import Settings
from haversack.train.networks.integers import IntegerNetwork
from haversack.train.networks.layered import LayeredNetwork

ROWS = 256
CLASSES = tuple("0123456789")
ZEROTH, BACK = "zeroth", "backprop"


def batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(rng.integers(0, 256, (ROWS, 28, 28, 1), np.uint8), rng.integers(0, 10, ROWS))


def step_of(method: str, seed: int) -> tuple[Any, Any]:
    """A network of the kind that the method wants, and its stepper."""
    kind = IntegerNetwork if method.startswith("elasticzo-int8") else LayeredNetwork
    found = kind("lenet5", CLASSES, seed=seed % 1000)
    way: Any = index.create("train", "gradient", method)
    return found, way.begin(found, learned_by(found), Settings(1, ROWS, seed))


def held(method: str, seed: int) -> dict[str, int]:
    """Bytes by what they are for, after one step."""
    found, stepper = step_of(method, seed)
    given = batch(seed)
    stepper.step(given, 1e-3)
    lines = {"parameters": sum(array.nbytes for array in found.tensors().values())}
    per_number = 1 if isinstance(found, IntegerNetwork) else 4
    lines["inputs"] = per_number * given.inputs.size
    for name, array in found.buffers.held.items():
        kind = "int32 sums" if name == "sums" else f"{name.split()[0]}s"
        lines[kind] = lines.get(kind, 0) + array.nbytes
    own = getattr(stepper, "spsa", None)
    if own is not None and own.nbytes:
        lines["bits of what moves"] = own.nbytes
    return lines


def peak(method: str, seed: int) -> float:
    """KiB that Python allocates at most in a second step, above what there was before the network."""
    given = batch(seed)
    tracemalloc.start()
    try:
        _, stepper = step_of(method, seed)
        stepper.step(given, 1e-3)
        tracemalloc.reset_peak()
        stepper.step(given, 1e-3)
        return tracemalloc.get_traced_memory()[1] / 1024
    finally:
        tracemalloc.stop()


def rows() -> list[Row]:
    return [
        *(
            Row(
                f"buffers-last-{count}",
                f"ElasticZO, last {count} by the way back, holds at most 2 % more than full zeroth order",
                "KiB",
                "memory",
                Bar("<=", 1.02),
                published="0.072 to 1.7 % more",
                quick=True,
            )
            for count in (1, 2)
        ),
        Row(
            "buffers-backprop",
            "backpropagation holds at least 1.8 times what full zeroth order does",
            "KiB",
            "memory",
            Bar(">=", 1.8),
            published="about 2 times",
            quick=True,
        ),
        Row(
            "buffers-int8",
            "ElasticZO in floats holds 1.4 to 1.7 times what it does in integers",
            "KiB",
            "memory",
            Bar("in", (1.4, 1.7)),
            published="1.46 to 1.60 times",
            quick=True,
        ),
        Row(
            "peak-last-2",
            "all that Python allocates in a step: ElasticZO, last 2, beside full zeroth order",
            "KiB",
            "memory",
        ),
        Row(
            "peak-backprop",
            "all that Python allocates in a step: backpropagation beside full zeroth order",
            "KiB",
            "memory",
        ),
    ]


def outcome(ours: str, base: str, seed: int) -> Outcome:
    first, second = held(ours, seed), held(base, seed)
    shown = "; ".join(
        f"{name}: " + ", ".join(f"{line} {nbytes:,}" for line, nbytes in lines.items())
        for name, lines in ((ours, first), (base, second))
    )
    note = f"{ROWS} rows, bytes of {shown}; besides, windows of at most 256 KiB and 256 KiB of random numbers"
    return Outcome(
        Side(ours, (sum(first.values()) / 1024,)), Side(base, (sum(second.values()) / 1024,)), note=note
    )


@bench.measure(*rows(), seconds=20, quick_seconds=12)
def buffers(run: Run) -> Outcomes:
    two = "elasticzo:backprop_layers=2"
    found = {
        "buffers-last-1": outcome("elasticzo:backprop_layers=1", ZEROTH, run.seed),
        "buffers-last-2": outcome(two, ZEROTH, run.seed),
        "buffers-backprop": outcome(BACK, ZEROTH, run.seed),
        "buffers-int8": outcome(two, "elasticzo-int8:backprop_layers=2", run.seed),
    }
    if not run.quick:
        base = Side(ZEROTH, (peak(ZEROTH, run.seed),))
        found["peak-last-2"] = Outcome(Side("elasticzo", (peak(two, run.seed),)), base)
        found["peak-backprop"] = Outcome(Side(BACK, (peak(BACK, run.seed),)), base)
    return found
