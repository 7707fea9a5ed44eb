"""Trainings in the emitted C, one example a step: handwritten digits, and ResNet8 on CIFAR-10's JPEG copies.

The arms (32 bits, f16, bf16, each with sums as it comes) are the same C but for the numbers; rates are chosen
for each arm on a validation split of the training part, from one grid; the test part is looked at once an
arm. Digits: a fresh network of three convolutions learns all. ResNet8 starts from MLPerf Tiny's weights,
which know the pictures without their compression, and learns on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._compiler import need_gcc
from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.reduced_precision_odl._bench import (
    KERNELS,
    Compiled,
    bench,
    resnet8,
    small_cnn,
)
from haversack.embed.train import Recipe, Training
from haversack.models.graph._ir import Graph

Array = npt.NDArray[Any]
ARMS = ("fp32", "fp16", "bf16")
POINTS = {"fp16": -1.0, "bf16": -3.0}
RATES = (0.003, 0.01, 0.03)
STEPS, TUNING = 4000, 2000
FINE_RATES = (1e-4, 3e-4)
FINE_STEPS, FINE_TUNING, FINE_TEST = 2000, 400, 1000


@dataclass(frozen=True)
class Set:
    """Inputs f32 and labels of the part that is learned, that chooses rates, that judges."""

    learn: tuple[Array, Array]
    choose: tuple[Array, Array]
    test: tuple[Array, Array]


def trained(network: Compiled, learn: tuple[Array, Array], rate: float, steps: int, seed: int) -> None:
    """`steps` steps of one example each, drawn by `seed`, the rate falling to nothing by a cosine."""
    network.reset()
    inputs, labels = learn
    order = np.random.default_rng(seed).permutation(np.resize(np.arange(len(labels)), steps))
    for number, at in enumerate(order):
        now = rate * 0.5 * (1 + np.cos(np.pi * number / steps))
        network.step(inputs[at], int(labels[at]), float(now))


def right(network: Compiled, rows: tuple[Array, Array]) -> float:
    """Percent of rows whose class is found."""
    return 100 * float((network.classes(rows[0]) == rows[1]).mean())


def judged(
    run: Run, graph: Graph, data: Set, rates: Sequence[float], steps: int, tuning: int
) -> dict[str, tuple[float, str]]:
    """Arm -> percent right of the test part, the rate that was chosen in words."""
    found = {}
    for arm in ARMS:
        recipe = Recipe(loss_scale=256.0 if arm == "fp16" else 1.0)
        with tempfile.TemporaryDirectory() as place:
            training = Training("all", precision=arm, recipe=recipe, kernels=KERNELS, rate=1e-4)
            network = Compiled(graph, training, Path(place))
            scores = []
            for rate in rates:
                run.say(f"{arm}, rate {rate:g}")
                trained(network, data.learn, rate, tuning, run.seed)
                scores.append(right(network, data.choose))
            rate = rates[int(np.argmax(scores))]
            trained(network, data.learn, rate, steps, run.seed)
            tried = ", ".join(f"{each:g}: {score:.1f}" for each, score in zip(rates, scores, strict=True))
            left_out = network.lib.nn_train_skipped()
            note = (
                f"{steps} steps at rate {rate:g} of ({tried} % on validation), {left_out} gradients left out"
            )
            found[arm] = right(network, data.test), note
    return found


def rows_of(net: str, about: str) -> list[Row]:
    """A row for each 16-bit arm."""
    return [
        Row(
            f"accuracy-{net}-{arm}",
            f"{about}: accuracy in {arm} less that in 32 bits",
            "points",
            "quality",
            Bar(">=", points),
            judged="ours",
        )
        for arm, points in POINTS.items()
    ]


def outcomes(net: str, found: dict[str, tuple[float, str]], also: str = "") -> dict[str, Any]:
    """The rows of `rows_of`."""
    base, how = found["fp32"]
    rows = {}
    for arm in POINTS:
        score, note = found[arm]
        said = f"{score:.1f} % beside {base:.1f} % in 32 bits; {arm}: {note}; fp32: {how}{also}"
        rows[f"accuracy-{net}-{arm}"] = Outcome.single(score - base, note=said)
    return rows


def digits(seed: int) -> Set:
    """scikit-learn's digits: 1,000 to learn, 300 to choose by, the rest to judge by."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise Unavailable("scikit-learn is not installed: pip install 'haversack[workshop]'") from error
    held = load_digits()
    order = np.random.default_rng(seed).permutation(len(held.target))
    x = (held.images[order, :, :, None] / 16).astype(np.float32)
    labels = held.target[order].astype(np.int64)
    cuts = (slice(0, 1000), slice(1000, 1300), slice(1300, None))
    learn, choose, test = ((np.ascontiguousarray(x[cut]), labels[cut]) for cut in cuts)
    return Set(learn, choose, test)


@bench.measure(*rows_of("digits", "digits, three convolutions"), seconds=120)
def on_digits(run: Run) -> Outcomes:
    need_gcc()
    return outcomes("digits", judged(run, small_cnn(), digits(run.seed), RATES, STEPS, TUNING))


def cifar(seed: int) -> Set:
    """Pictures of the registry's JPEG set as ResNet8 takes them: 2,000 to learn, 200 to choose by, 1,000 of
    its test part. Raises Unavailable without them."""
    from haversack.core._datasets import local_path
    from haversack.formats.pictures import read_folder, read_picture, unpacked

    place = local_path("cifar-10")
    if place is None:
        raise Unavailable("cifar-10 is not in the folder that HAVERSACK_DATA names")
    folder = read_folder(unpacked(place))
    labels, held = np.array(folder.labels), np.array(folder.held_out, bool)
    rng = np.random.default_rng([seed, 0xC1FA])
    order = [rng.permutation(np.flatnonzero((labels == label) & ~held)) for label in range(10)]
    test = [np.flatnonzero((labels == label) & held)[: FINE_TEST // 10] for label in range(10)]

    def read(rows: list[Array]) -> tuple[Array, Array]:
        at = np.concatenate(rows)
        pictures = [read_picture(folder.files[each], 32, 32).astype(np.float32) for each in at]
        return np.stack(pictures), labels[at]

    return Set(read([each[:200] for each in order]), read([each[200:220] for each in order]), read(test))


@bench.measure(
    *rows_of("resnet8", "ResNet8 learns on from its trained weights on CIFAR-10's JPEG copies"),
    Row("resnet8-before", "ResNet8 as trained, on 1,000 test pictures of the JPEG copies", "%", "quality",
        judged="ours", published=75.1),
    Row("resnet8-after", "the same after 2,000 steps in f16, beside before", "%", "quality"),
    seconds=900,
)  # fmt: skip
def on_cifar(run: Run) -> Outcomes:
    need_gcc()
    graph, data = resnet8(), cifar(run.seed)
    with tempfile.TemporaryDirectory() as place:
        network = Compiled(graph, Training("all", kernels=KERNELS, rate=1e-4), Path(place))
        before = right(network, data.test)
    found = judged(run, graph, data, FINE_RATES, FINE_STEPS, FINE_TUNING)
    return {
        **outcomes("resnet8", found, f"; before {before:.1f} %"),
        "resnet8-before": Outcome.single(before, note="in the emitted C"),
        "resnet8-after": Outcome.single(found["fp16"][0], before, against="before"),
    }
