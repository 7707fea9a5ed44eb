"""Keras networks as C: parity over sequences with 64-bit arithmetic, flash, stack.

The networks have the published files' shapes with drawn weights, written in Keras' layout: 68 inputs, GRU(10)
with reset_after, Dense(3); 10 inputs, GRU(7) without, hard sigmoids, Dense(8), Dense(1); an LSTM;
convolution, pooling and a GRU. The published files themselves are read where HAVERSACK_DATA holds them under
models/nn4mc.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._compiler import need_gcc
from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.smart_composites_nn4mc._bench import bench

SEQUENCES, STEPS = 1000, 20
MEGABYTE = 1 << 20


def networks(seed: int) -> dict[str, Any]:
    """Graphs of the published shapes."""
    from haversack.formats.keras_h5 import KerasLayer, KerasModel
    from haversack.models.graph.keras import graph_of

    rng = np.random.default_rng(seed)

    def layer(kind: str, config: dict[str, Any], **shapes: tuple[int, ...]) -> KerasLayer:
        arrays = {name: (0.3 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
        return KerasLayer(kind, f"{kind.lower()}{rng.integers(10**6)}", config, arrays)

    def gru(inputs: int, units: int, after: bool, gate: str) -> KerasLayer:
        config = {"reset_after": after, "recurrent_activation": gate, "activation": "tanh"}
        bias = (2, 3 * units) if after else (3 * units,)
        return layer(
            "GRU", config, kernel=(inputs, 3 * units), recurrent_kernel=(units, 3 * units), bias=bias
        )

    def dense(inputs: int, units: int, activation: str) -> KerasLayer:
        return layer("Dense", {"activation": activation}, kernel=(inputs, units), bias=(units,))

    def lstm(inputs: int, units: int) -> KerasLayer:
        shapes = {"kernel": (inputs, 4 * units), "recurrent_kernel": (units, 4 * units), "bias": (4 * units,)}
        return layer("LSTM", {"recurrent_activation": "sigmoid", "activation": "tanh"}, **shapes)

    conv = layer("Conv1D", {"activation": "relu", "strides": 1}, kernel=(2, 12, 8), bias=(8,))
    pool = KerasLayer("MaxPooling1D", "pool", {"pool_size": 2, "strides": None}, {})
    chains = {
        "gru10": ((1, 68), [gru(68, 10, True, "sigmoid"), dense(10, 3, "relu")]),
        "gru7": ((1, 10), [gru(10, 7, False, "hard_sigmoid"), dense(7, 8, "relu"), dense(8, 1, "linear")]),
        "lstm": ((1, 10), [lstm(10, 8), dense(8, 1, "linear")]),
        "conv": ((9, 12), [conv, pool, gru(8, 6, True, "sigmoid"), dense(6, 6, "softmax")]),
    }
    return {
        name: graph_of(KerasModel(tuple(layers), shape, "2.11.0"), name)
        for name, (shape, layers) in chains.items()
    }


def largest_error(graph: Any, place: Path, sequences: int, seed: int) -> float:
    """The largest absolute error of the compiled C over sequences of STEPS steps, each from zero states."""
    from haversack.embed._host import run
    from haversack.embed.build import build_graph
    from haversack.models.graph.series import Runner

    build_graph(graph, place)
    goal = place / "network.so"
    run(
        [
            "gcc",
            "-std=c99",
            "-O2",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
            place / "network.c",
            "-o",
            goal,
            "-lm",
        ]
    )
    library = ctypes.CDLL(str(goal))
    shape, size = graph.tensors["input"].shape, graph.tensors[graph.outputs[0]].size
    x = np.random.default_rng(seed).uniform(-1, 1, (STEPS, sequences, *shape)).astype(np.float32)
    runner = Runner(graph)
    wanted = np.stack([runner.run(each.astype(np.float64)).reshape(sequences, size) for each in x])
    found = np.empty(size, np.float32)
    worst = 0.0
    for number in range(sequences):
        library.nn_reset()
        for at in range(STEPS):
            row = np.ascontiguousarray(x[at, number])
            library.nn_forward(row.ctypes.data_as(ctypes.c_void_p), found.ctypes.data_as(ctypes.c_void_p))
            worst = max(worst, float(np.abs(found - wanted[at, number]).max()))
    return worst


@bench.measure(
    *(
        Row(
            f"parity-{name}",
            f"largest error of the C of {about} over {SEQUENCES:,} sequences of {STEPS} steps, beside "
            f"64-bit numpy",
            "absolute error",
            "quality",
            Bar("<=", 1e-5),
            judged="ours",
            quick=name == "gru10",
        )
        for name, about in (
            ("gru10", "68 inputs, GRU(10), Dense(3)"),
            ("gru7", "10 inputs, GRU(7) with hard sigmoids, two dense layers"),
            ("lstm", "10 inputs, LSTM(8), Dense(1)"),
            ("conv", "convolution, pooling, GRU, softmax"),
        )
    ),
    seconds=60,
    quick_seconds=15,
)
def parity(run: Run) -> Outcomes:
    need_gcc()
    found: dict[str, Outcome] = {}
    count = 100 if run.quick else SEQUENCES
    for name, graph in networks(run.seed).items():
        if run.quick and name != "gru10":
            continue
        with tempfile.TemporaryDirectory() as place:
            worst = largest_error(graph, Path(place), count, run.seed)
        found[f"parity-{name}"] = Outcome.single(worst, name="C, 32-bit floats", note=f"{count} sequences")
    return found


@bench.measure(
    Row(
        "parity-published",
        "the same for the published HDF5 files, the worst of them",
        "absolute error",
        "quality",
        Bar("<=", 1e-5),
        judged="ours",
    ),
    seconds=120,
)
def published(run: Run) -> Outcomes:
    from haversack.core.errors import UserError
    from haversack.embed.build import load_graph
    from haversack.models.graph.series import Runner

    need_gcc()
    folder = Path(os.environ.get("HAVERSACK_DATA", "")) / "models" / "nn4mc"
    files = sorted(folder.glob("*.hdf5")) if "HAVERSACK_DATA" in os.environ else []
    if not files:
        raise Unavailable(
            "the published networks (correlllab/nn4mc_py, tests/data/*.hdf5) are not in "
            "HAVERSACK_DATA/models/nn4mc"
        )
    worst, said, left = {}, [], []
    for path in files:
        try:
            graph = load_graph(path)
        except UserError:
            left.append(path.stem)
            continue
        with tempfile.TemporaryDirectory() as place:
            worst[path.stem] = largest_error(graph, Path(place), SEQUENCES, run.seed)
        x = np.random.default_rng(run.seed).uniform(-1, 1, (100, *graph.tensors["input"].shape))
        said.append(f"{path.stem} {worst[path.stem]:.1e} of up to {np.abs(Runner(graph).run(x)).max():.2g}")
    note = ", ".join(said)
    note += f"; refused, as they have several outputs: {', '.join(left)}" if left else ""
    return {"parity-published": Outcome.single(max(worst.values()), name="C, 32-bit floats", note=note)}


@bench.measure(
    Row(
        "parity-interpreter", "the same network in an interpreter of Keras files", "absolute error", "quality"
    ),
    seconds=1,
)
def interpreter(run: Run) -> Outcomes:
    raise Unavailable("no interpreter of Keras networks is installed; LiteRT's and ONNX's do not read HDF5")


@bench.measure(
    Row(
        "flash",
        "68 inputs, GRU(10), Dense(3) for a Cortex-M4F: share of 1 MB of flash, constants and code",
        "% of 1 MB",
        "bytes",
        Bar("<=", 6.4),
        judged="ours",
        published="<= 6.4 % of flash",
        quick=True,
    ),
    Row(
        "code",
        "its code without the constants",
        "bytes",
        "bytes",
        Bar("<=", 30_000.0),
        judged="ours",
        quick=True,
    ),
    Row("stack", "its stack on the emulated board", "bytes", "memory", quick=True),
    Row("ram", "its arena, hidden states and scratch", "bytes", "memory"),
    seconds=20,
    quick_seconds=8,
)
def sizes(run: Run) -> Outcomes:
    from haversack.embed.build import build_graph, state_nbytes
    from haversack.embed.controller_c import code_bytes
    from haversack.embed.targets import TARGETS
    from haversack.embed.verify import verify

    goal = TARGETS["cortex-m4f"]
    if (reason := goal.missing()) is not None:
        raise Unavailable(reason)
    graph = networks(run.seed)["gru10"]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        made = build_graph(graph, place, goal).made
        machine = [flag for flag in goal.flags if flag.startswith("-m")]
        text, _ = code_bytes(place / "network.c", "-Os", *machine, compiler=goal.compiler)
        emulated = verify(place).runs[-1]
    note = f"{made.constant_bytes:,} bytes of constants; the math library's functions come on top"
    return {
        "flash": Outcome.single(100 * text / MEGABYTE, name="arm-none-eabi-gcc -Os", note=note),
        "code": Outcome.single(float(text - made.constant_bytes), name="arm-none-eabi-gcc -Os", note=note),
        "stack": Outcome.single(float(emulated.stack_used or 0), name=emulated.where),
        "ram": Outcome.single(float(made.plan.nbytes + state_nbytes(made)), name="planned"),
    }
