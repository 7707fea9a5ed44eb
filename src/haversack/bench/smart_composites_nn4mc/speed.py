"""How fast emitted C is on this machine: matrix products beside direct loops, two threads beside one, a
network beside an executor of single operations and beside an interpreter of scalars.

Layers are ResNet8's and wider ones, with drawn weights; the executor and the networks are MLPerf Tiny's. The
executor runs the convolutions alone and the emitted C the whole network, which favours the executor. The
interpreter is a scalar loop in Python, timed on a part of a layer: nanoseconds a product on both sides.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._compiler import need_gcc
from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.smart_composites_nn4mc._bench import bench
from haversack.bench.smart_composites_nn4mc._executor import Executor
from haversack.bench.smart_composites_nn4mc._networks import TINY, Compiled, tiny

WATCHED = (
    "embed/_fast_rules.py",
    "embed/_variants.py",
    "embed/_graph_c.py",
    "embed/_graph_rules.py",
    "embed/kernels/*_matmul.c.j2",
    "embed/kernels/*_ops.c.j2",
    "embed/kernels/split.c.j2",
    "bench/smart_composites_nn4mc/speed.py",
    "bench/smart_composites_nn4mc/_executor.py",
    "bench/smart_composites_nn4mc/_networks.py",
)
PLAIN = ("-DNN_PORTABLE",)


def layer(size: int, inputs: int, outputs: int, kind: str, seed: int = 0) -> Any:
    """A graph of one 3 x 3 convolution of drawn weights over [size, size, inputs]."""
    from haversack.models.graph._ir import Conv2d, Graph, Quantization, Tensor

    rng = np.random.default_rng(seed)
    shapes = {
        "x": (size, size, inputs),
        "w": (outputs, 3, 3, inputs),
        "b": (outputs,),
        "y": (size, size, outputs),
    }
    if kind == "int8":
        types = {"x": "int8", "w": "int8", "b": "int32", "y": "int8"}
        codes = {"x": Quantization((0.05,), 3), "w": Quantization((0.01,)), "y": Quantization((0.1,), -5)}
        held: dict[str, Any] = {
            "w": rng.integers(-127, 128, shapes["w"]).astype(np.int8),
            "b": rng.integers(-999, 999, outputs).astype(np.int32),
        }
    else:
        types, codes = dict.fromkeys(shapes, "f32"), {}
        held = {name: (0.1 * rng.normal(size=shapes[name])).astype(np.float32) for name in ("w", "b")}
    tensors = {name: Tensor(name, shape, types[name], codes.get(name)) for name, shape in shapes.items()}
    op = Conv2d("x", "w", "b", "y", pads=((1, 1), (1, 1)))
    return Graph("layer", tensors, (op,), ("x",), ("y",), held, rounding="fixed")


@contextmanager
def compiled(graph: Any, kernels: str, *flags: str, threads: int = 1) -> Iterator[tuple[Compiled, Any]]:
    """Emitted C and an input for it."""
    from haversack.embed.build import build_graph

    with tempfile.TemporaryDirectory() as place:
        build_graph(graph, Path(place), count=1, kernels=kernels, threads=threads)
        tensor = graph.tensors[graph.inputs[0]]
        rng = np.random.default_rng(1)
        x = rng.integers(-128, 128, tensor.shape).astype(np.int8)
        if tensor.dtype != "int8":
            x = rng.normal(size=tensor.shape).astype(np.float32)
        yield Compiled(Path(place), graph, *flags), x


def layer_rows() -> list[Row]:
    found = []
    for kind, about in (("int8", "codes"), ("f32", "floats")):
        claim = f"a 3 x 3 convolution of {about}, 16 to 16 channels over 32 x 32: matrix products"
        found += [
            Row(
                f"matmul-{kind}",
                f"{claim} beside direct loops",
                "ms",
                "time",
                Bar("<=", 0.5),
                quick=kind == "f32",
            ),
            Row(f"matmul-{kind}-plain", f"{claim} without SIMD beside direct loops", "ms", "time"),
            Row(
                f"threads-{kind}",
                f"a 3 x 3 convolution of {about}, 64 to 64 channels over 32 x 32: two threads beside one",
                "ms",
                "time",
                Bar("<=", 1 / 1.5),
            ),
        ]
    return found


@bench.measure(*layer_rows(), seconds=40, quick_seconds=12, watches=WATCHED)
def layers(run: Run) -> Outcomes:
    need_gcc()
    found: dict[str, Outcome] = {}
    for kind in ("f32",) if run.quick else ("int8", "f32"):
        graph = layer(32, 16, 16, kind)
        with ExitStack() as stack:
            sides = {
                "direct": stack.enter_context(compiled(graph, "direct")),
                "fast": stack.enter_context(compiled(graph, "fast")),
                "plain": stack.enter_context(compiled(graph, "fast", *PLAIN)),
            }
            taken = run.interleave(_timers(sides, 5))
        for id, side in ((f"matmul-{kind}", "fast"), (f"matmul-{kind}-plain", "plain")):
            found[id] = Outcome(Side("products", tuple(taken[side])), Side("direct", tuple(taken["direct"])))
        if run.quick:
            continue
        graph = layer(32, 64, 64, kind)
        with ExitStack() as stack:
            sides = {
                "one": stack.enter_context(compiled(graph, "fast")),
                "two": stack.enter_context(compiled(graph, "fast", "-pthread", threads=2)),
            }
            taken = run.interleave(_timers(sides, 10))
        found[f"threads-{kind}"] = Outcome(Side("two", tuple(taken["two"])), Side("one", tuple(taken["one"])))
    return found


def _timers(sides: dict[str, tuple[Compiled, Any]], passes: int) -> Any:
    def timer(pair: tuple[Compiled, Any]) -> Any:
        return lambda: 1e3 * pair[0].seconds(pair[1], passes)

    return {name: timer(pair) for name, pair in sides.items()}


@bench.measure(
    *(
        Row(
            f"executor-{name}",
            f"{name} in codes: emitted C beside a compiled executor of single operations, no fusion, no SIMD",
            "ms",
            "time",
            Bar("<=", 1 / 3),
        )
        for name in TINY
        if name != "autoencoder"
    ),
    Row(
        "interpreter",
        "a convolution of codes: emitted C beside a scalar loop in Python",
        "ns a product",
        "time",
        Bar("<=", 0.01),
        published=">100x over single-core interpreters",
    ),
    seconds=40,
    watches=WATCHED,
)
def networks(run: Run) -> Outcomes:
    from haversack.embed.build import load_graph

    need_gcc()
    found: dict[str, Outcome] = {}
    for name in TINY:
        if name == "autoencoder":
            continue
        graph = load_graph(tiny(name))
        with compiled(graph, "auto") as ours, tempfile.TemporaryDirectory() as place:
            executor = Executor(graph, Path(place))
            sides = _timers({"emitted": ours}, 3) | {"executor": lambda each=executor: _milliseconds(each)}
            taken = run.interleave(sides)
        found[f"executor-{name}"] = Outcome(
            Side("emitted", tuple(taken["emitted"])), Side("executor", tuple(taken["executor"]))
        )
    graph = layer(32, 16, 16, "int8")
    products = 32 * 32 * 16 * 16 * 9
    with compiled(graph, "auto") as ours:
        sides = {
            "emitted": lambda: 1e9 * ours[0].seconds(ours[1], 5) / products,
            "python": lambda: _scalar(graph, ours[1]),
        }
        taken = run.interleave(sides)
    found["interpreter"] = Outcome(
        Side("emitted", tuple(taken["emitted"])), Side("scalar Python", tuple(taken["python"]))
    )
    return found


def _milliseconds(executor: Executor) -> float:
    start = time.perf_counter()
    executor.run()
    return 1e3 * (time.perf_counter() - start)


def _scalar(graph: Any, x: Any) -> float:
    """Nanoseconds a product of a scalar loop, over some places of the layer."""
    seen, weight, zero = x.tolist(), graph.constants["w"].tolist(), graph.tensors["x"].quantization.zero
    count = 0
    start = time.perf_counter()
    for row in range(10, 12):
        for column in range(10, 12):
            for kernel in weight:
                total = 0
                for i in range(3):
                    for j in range(3):
                        for value, factor in zip(seen[row + i][column + j], kernel[i][j], strict=True):
                            total += (value - zero) * factor
                            count += 1
    return 1e9 * (time.perf_counter() - start) / count
