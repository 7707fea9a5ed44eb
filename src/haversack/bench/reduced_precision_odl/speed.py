"""Kernels of a training step on this machine: as matrices beside direct, unrolled beside plain, two threads
beside one, the emitted C beside scalar loops in numpy, the autotuner's choices.

A step is a layer's way forward and both gradients, each by the fastest kernel of its list unless a row says
otherwise; every kernel gives the same bits. Sides take turns in one process. Ratios of instructions and of
cycles for 16-bit pairs are a model (the specification's [inferred]: 0.3 products a cycle and core, twice that
for pairs; the published average over ResNet8 is 0.39 for pairs), never a measurement.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._compiler import need_gcc
from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.reduced_precision_odl._bench import bench
from haversack.embed.train_kernels import STEPS, Layer, autotune, compiled, cycles

Array = npt.NDArray[Any]
MAIN = Layer(32, 32, 16, 16)
WIDE = Layer(64, 64, 32, 32)
SHAPES = (Layer(32, 32, 3, 16), MAIN, Layer(16, 16, 32, 32), Layer(8, 8, 64, 64), Layer(16, 16, 32, 64, 1))
TEST = Layer(8, 8, 8, 8)
REPEATS = 5


def seconds(call: Callable[[], Any]) -> Callable[[], float]:
    """A function that calls `call` some times and gives the seconds of one."""

    def taken() -> float:
        begin = perf_counter()
        for _ in range(REPEATS):
            call()
        return (perf_counter() - begin) / REPEATS

    return taken


def whole(layer: Layer, choice: dict[str, Any], place: Path, kind: str = "f32") -> Callable[[], None]:
    """All three steps of a layer by the kernels of `choice`."""
    calls = [compiled(layer, step, choice[step], kind, "same", place)[0] for step in STEPS]

    def step() -> None:
        for call in calls:
            call()

    return step


def best(layer: Layer) -> dict[str, Any]:
    """The fastest kernel of each step."""
    return {step: next(iter(autotune(layer, step))) for step in STEPS}


@bench.measure(
    Row("matrix", "a step of a 3 x 3 convolution as products of matrices beside direct kernels", "s",
        "time", Bar("<=", 1 / 2), quick=True),
    Row("unrolled", "the way forward, unrolled, beside one sum at a time, both as matrices", "s", "time",
        Bar("<=", 1 / 1.3)),
    Row("scalar-loops", "the emitted kernels beside scalar loops in numpy, a step of the test layer",
        "s", "time", Bar("<=", 1 / 100), published="more than two orders of magnitude"),
    Row("threads", "two threads beside one: forward and gradient of inputs, rows in equal blocks",
        "s", "time", Bar("<=", 1 / 1.7)),
    Row("f16-step", "a step in f16 (exact, the core has no 16-bit floats) beside 32 bits", "s", "time"),
    seconds=60,
    quick_seconds=12,
)  # fmt: skip
def kernels(run: Run) -> Outcomes:
    need_gcc()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        choice = best(MAIN)
        direct = {"forward": (0, 0), "weights": 1, "inputs": 1}
        sides = {"matrix": seconds(whole(MAIN, choice, place)), "direct": seconds(whole(MAIN, direct, place))}
        said = f"kernels {choice}, {MAIN}"
        found["matrix"] = Outcome.of(run.interleave(sides), ours="matrix", baseline="direct", note=said)
        if run.quick:
            return found
        plain = compiled(MAIN, "forward", (1, 1), "f32", "same", place)[0]
        fast = compiled(MAIN, "forward", choice["forward"], "f32", "same", place)[0]
        taken = run.interleave({"unrolled": seconds(fast), "plain": seconds(plain)})
        found["unrolled"] = Outcome.of(taken, ours="unrolled", baseline="plain", note=said)
        run.say("scalar loops")
        loops = scalar_loops(TEST)
        ours = seconds(whole(TEST, best(TEST), place))
        taken = run.interleave({"c": ours, "loops": lambda: timed_once(loops)})
        found["scalar-loops"] = Outcome.of(taken, ours="c", baseline="loops", note=f"{TEST}")
        one, two = on_threads(WIDE, place, 1), on_threads(WIDE, place, 2)
        taken = run.interleave({"two": seconds(two), "one": seconds(one)})
        found["threads"] = Outcome.of(taken, ours="two", baseline="one", note=f"{WIDE}")
        halves = seconds(whole(MAIN, {"forward": (32, 1), "weights": 32, "inputs": 32}, place, "f16"))
        taken = run.interleave({"f16": halves, "f32": sides["matrix"]})
        found["f16-step"] = Outcome.of(taken, ours="f16", baseline="f32")
    return found


def timed_once(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begin = perf_counter()
    call()
    return perf_counter() - begin


def on_threads(layer: Layer, place: Path, cores: int) -> Callable[[], None]:
    """The way forward and the gradient of inputs, each cut into a block of rows a thread."""
    choice = best(layer)
    groups = []
    for part in ("forward", "inputs"):
        arrays = compiled(layer, part, choice[part], "f32", "same", place)[1]
        own = [[*arrays[:5], arrays[5].copy()] for _ in range(cores)]
        groups.append(
            [
                compiled(layer, part, choice[part], "f32", "same", place, core, cores, own[core])[0]
                for core in range(cores)
            ]
        )

    def step() -> None:
        for calls in groups:
            others = [threading.Thread(target=call) for call in calls[1:]]
            for other in others:
                other.start()
            calls[0]()
            for other in others:
                other.join()

    return step


def scalar_loops(layer: Layer) -> Callable[[], None]:
    """The same three steps, number by number, on numpy arrays: what an interpreter does."""
    rng = np.random.default_rng(0)
    k, pad = layer.kernel, layer.pad
    x = rng.normal(size=(layer.height, layer.width, layer.channels)).astype(np.float32)
    weight = rng.normal(size=(layer.outputs, k, k, layer.channels)).astype(np.float32)
    g = rng.normal(size=(*layer.out, layer.outputs)).astype(np.float32)

    def step() -> None:
        y, change, back = np.zeros_like(g), np.zeros_like(weight), np.zeros_like(x)
        for row in range(layer.out[0]):
            for column in range(layer.out[1]):
                for i in range(k):
                    for j in range(k):
                        up, left = row + i - pad, column + j - pad
                        if not (0 <= up < layer.height and 0 <= left < layer.width):
                            continue
                        for o in range(layer.outputs):
                            for c in range(layer.channels):
                                y[row, column, o] += weight[o, i, j, c] * x[up, left, c]
                                change[o, i, j, c] += g[row, column, o] * x[up, left, c]
                                back[up, left, c] += g[row, column, o] * weight[o, i, j, c]

    return step


@bench.measure(
    Row("autotuner-gain", "layer shapes of five on which the best kernel beats the worst by 1.5 at least",
        "shapes", "quality", Bar(">=", 3), judged="ours"),
    Row("autotuner-choices", "different choices over the five shapes, a kernel a step", "choices",
        "quality", Bar(">=", 2), judged="ours"),
    Row("pair-instructions", "multiply-adds of the inner loop that a step issues, 32-bit floats "
        "beside pairs of 16-bit ones", "instructions", "quality", Bar(">=", 1.9), published="2 a cycle"),
    Row("pair-cycles", "cycles of a step by the model, 32-bit floats beside pairs of 16-bit ones",
        "cycles", "quality", Bar("in", (1.4, 2.0)), published="up to 1.72x"),
    seconds=60,
)  # fmt: skip
def tuner(run: Run) -> Outcomes:
    need_gcc()
    gained, chosen, said = 0, set(), []
    for layer in SHAPES:
        run.say(f"{layer}")
        times = {step: autotune(layer, step) for step in STEPS}
        least = sum(min(each.values()) for each in times.values())
        most = sum(max(each.values()) for each in times.values())
        gained += most >= 1.5 * least
        choice = tuple(str(next(iter(each))) for each in times.values())
        chosen.add(choice)
        size = f"{layer.height}x{layer.width}x{layer.channels} to {layer.outputs}"
        said.append(
            f"{size}, {layer.kernel}x{layer.kernel}: {' '.join(choice)}, {most / least:.1f}x the worst"
        )
    issued = {kind: issued_by(TEST, kind) for kind in ("f32", "f16")}
    model = {kind: cycles(TEST, kind) for kind in ("f32", "f16")}
    note = "a model, no measurement"
    return {
        "autotuner-gain": Outcome.single(gained, note="; ".join(said)),
        "autotuner-choices": Outcome.single(len(chosen)),
        "pair-instructions": Outcome.single(
            issued["f32"], issued["f16"], name="f32", against="f16", note=note
        ),
        "pair-cycles": Outcome.single(model["f32"], model["f16"], name="f32", against="f16", note=note),
    }


def issued_by(layer: Layer, kind: str) -> int:
    """Multiply-adds that three steps issue: one a term, or one a pair along k with a tail where k is odd."""
    places = layer.out[0] * layer.out[1]
    lengths = {
        "forward": (places * layer.outputs, layer.kernel**2 * layer.channels),
        "weights": (layer.outputs * layer.kernel**2 * layer.channels, places),
        "inputs": (layer.height * layer.width * layer.channels, layer.kernel**2 * layer.outputs),
    }
    return sum(sums * (k if kind == "f32" else -(-k // 2)) for sums, k in lengths.values())
