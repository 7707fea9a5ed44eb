"""Which kernels a training step takes: convolutions over the picture or as matrices, measured and chosen.

Paper: Nadalini, Rusci, Benini and Conti, "Reduced Precision Floating-Point Optimization for Deep Neural
Network On-Device Learning on MicroControllers" (arXiv 2305.19167, 2023), the autotuner.
What is here: a layer's step of training is a product of matrices: forward [outputs, k] x [places, k], the
gradient of weights [outputs, places] x [k, places], that of inputs [inputs, k'] x [places, k']. `autotune`
compiles each kernel of the list for one layer and step, runs it on this machine and keeps the fastest whose
working memory fits; `kernels_by` does so for a whole network and takes the choice that is fastest in all.
What we changed: every kernel of the list adds up in the same order, so that a choice changes no bit; tiles
are rows by columns of sums in registers instead of tiles of a second memory.
Cost: some milliseconds a kernel.
Limits: it measures this machine; a core's own order may differ, so a folder can be built with each.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from haversack.core.errors import UserError
from haversack.embed import _host
from haversack.embed._train_emission import Kernels
from haversack.embed._train_plan import Training

SYSTEM = 11

FORWARD = ((0, 0), (1, 1), (2, 4), (4, 2), (4, 4), (8, 4), (16, 2), (16, 4), (32, 1), (32, 2))
"""Sums at once, rows by columns; 0 x 0 goes over the picture itself."""
BLOCKS = (1, 4, 8, 16, 32)
"""Channels at once on the way back."""
STEPS = ("forward", "weights", "inputs")
TIMES, LEAST_S = 5, 0.004
FLAGS = ("-std=c99", "-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-w")


@dataclass(frozen=True)
class Layer:
    """A convolution over [height, width, channels] with square kernels, half of one around the picture."""

    height: int
    width: int
    channels: int
    outputs: int
    kernel: int = 3
    stride: int = 1

    @property
    def pad(self) -> int:
        """Rows and columns of nothing on each side."""
        return (self.kernel - 1) // 2

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of what it gives."""
        sides = ((side + 2 * self.pad - self.kernel) // self.stride + 1 for side in (self.height, self.width))
        high, wide = sides
        return high, wide

    @property
    def products(self) -> int:
        """Multiplications with an addition of each of the three steps (at stride 1 and off the rim)."""
        return self.out[0] * self.out[1] * self.outputs * self.kernel**2 * self.channels

    def window(self, step: str = "forward", core: int = 0, cores: int = 1) -> tuple[str, int]:
        """The part of `core` of `cores` as C has it: equal blocks of rows of what the step writes; and how
        many numbers of it come before."""
        k, s, (high, wide) = self.kernel, self.stride, self.out
        rows = self.height if step == "inputs" else high
        each = -(-rows // cores)
        first, count = core * each, min(each, rows - core * each)
        if step == "inputs":
            sizes = (count, self.width, self.channels, k, k, s, s, self.pad + first, self.pad, high, wide)
            before = first * self.width * self.channels
        else:
            top = self.pad - first * s
            sizes = (self.height, self.width, self.channels, k, k, s, s, top, self.pad, count, wide)
            before = first * wide * self.outputs
        return f"{{{', '.join(map(str, (*sizes, self.outputs)))}}}", before


def choices(step: str, working_nbytes: int | None, layer: Layer, kind: str) -> tuple[Any, ...]:
    """The kernels of the list whose working memory fits."""
    if step != "forward":
        return BLOCKS
    width = 4 if kind == "f32" else 2
    room = layer.kernel**2 * layer.channels * width
    return tuple(each for each in FORWARD if working_nbytes is None or each[0] * room <= working_nbytes)


def source(layer: Layer, step: str, choice: Any, kind: str, sums: str, core: int = 0, cores: int = 1) -> str:
    """One kernel as a C file that exports `run(x, weights, bias, gradient, y, patches)`; the gradient of
    weights has one core."""
    from haversack.embed._c import rendered
    from haversack.embed._train_emission import TYPES, back_text, forward_text
    from haversack.embed._train_twin import Recipe

    window, before = layer.window(step, core, cores)
    number, narrow = TYPES[kind], sums == "same" and kind != "f32"
    parts = ["#include <math.h>\n#include <stdint.h>\n#include <string.h>\n"]
    parts.append(
        "typedef uint16_t nn_real;\ntypedef struct { float rate; const float *factors; } nn_learning;"
    )
    parts.append(WINDOW)
    parts.append("static uint32_t nn_skipped;")
    if kind != "f32":
        parts.append(rendered("half.c.j2", kind=kind, fused=narrow))
    if step == "forward":
        name = f"conv2d_{choice[0]}x{choice[1]}" if choice[0] else "conv2d"
        parts.append(forward_text(kind, narrow, {name}))
        last = f", ({number} *)patches" if choice[0] else ""
        call = f"nn_{name}_{kind}(x, weights, bias, y + {before}, 0, &window, -INFINITY, INFINITY{last});"
    else:
        name = f"conv2d_{'step' if step == 'weights' else 'input'}_{choice}"
        parts.append(back_text(kind, narrow, {name}, Recipe()))
        if step == "weights":
            call = f"nn_{name}_{kind}(x, gradient, weights, &window, &learning);"
        else:
            call = f"nn_{name}_{kind}(gradient, weights, y + {before}, &window, {layer.channels}, 0);"
    parts.append(
        f"void run({number} *x, {number} *weights, {number} *bias, {number} *gradient, {number} *y, "
        f"{number} *patches)\n{{\n    static const nn_window window = {window};\n"
        f"    static const nn_learning learning = {{1e-9f, 0}};\n    {call}\n}}\n"
    )
    return "\n".join(parts)


WINDOW = """typedef struct {
    int height, width, channels, kernel_height, kernel_width, stride_y, stride_x, pad_top, pad_left;
    int out_height, out_width, outputs;
} nn_window;
"""


def compiled(
    layer: Layer,
    step: str,
    choice: Any,
    kind: str,
    sums: str,
    folder: Path,
    core: int = 0,
    cores: int = 1,
    arrays: list[Any] | None = None,
) -> Any:
    """The kernel as a function of this process, and the arrays that it works on (those of `arrays_of`)."""
    import ctypes

    name = re.sub(r"\W+", "_", f"{layer}-{step}-{choice}-{kind}-{sums}-{core}-{cores}")[-120:]
    place = folder / f"{name}.c"
    place.write_text(source(layer, step, choice, kind, sums, core, cores), encoding="ascii")
    library = folder / f"{name}.so"
    _host.run([_host.tool("gcc", "gcc"), *FLAGS, place, "-o", library, "-lm"])
    run = ctypes.CDLL(str(library)).run
    held = arrays_of(layer, step, kind) if arrays is None else arrays

    def call() -> None:
        run(*(each.ctypes.data_as(ctypes.c_void_p) for each in held))

    return call, held


def arrays_of(layer: Layer, step: str, kind: str) -> list[Any]:
    """Inputs, weights, bias, gradient, results and patches, drawn."""
    from haversack.embed.halves import packed

    rng = np.random.default_rng(11)
    taps = layer.kernel**2 * layer.channels
    places = layer.out[0] * layer.out[1]
    x = rng.normal(size=layer.height * layer.width * layer.channels)
    weights = rng.normal(size=layer.outputs * taps) / np.sqrt(taps)
    bias, gradient = rng.normal(size=layer.outputs), rng.normal(size=places * layer.outputs) / places
    results = places * layer.outputs if step == "forward" else len(x)
    found = [x, weights, bias, gradient, np.zeros(results), np.zeros(32 * taps)]
    return [packed(each.astype(np.float32), kind) for each in found]


def autotune(
    layer: Layer,
    step: str,
    *,
    kind: str = "f32",
    sums: str = "same",
    working_nbytes: int | None = None,
) -> dict[Any, float]:
    """Seconds of every kernel of the list for one layer's `step`, the fastest first: the least of several
    rounds that take turns. Raises UserError for a step that is none, or without gcc."""
    from time import perf_counter

    if step not in STEPS:
        raise UserError(
            f"{step} is no step of training (allowed {', '.join(STEPS)}).", field="step", given=step
        )
    with tempfile.TemporaryDirectory() as place:
        calls = {
            choice: compiled(layer, step, choice, kind, sums, Path(place))[0]
            for choice in choices(step, working_nbytes, layer, kind)
        }
        least = dict.fromkeys(calls, float("inf"))
        for _ in range(TIMES):
            for choice, call in calls.items():
                count, begin = 0, perf_counter()
                while True:
                    call()
                    count += 1
                    if (spent := perf_counter() - begin) > LEAST_S:
                        break
                least[choice] = min(least[choice], spent / count)
    return dict(sorted(least.items(), key=lambda pair: pair[1]))


def kernels_by(wish: str, model: str | Path, training: Training) -> Training:
    """`training` with the kernels of `wish`: direct, ROWSxCOLUMNS, or auto (measured here for every
    convolution of `model`). Raises UserError for another wish."""
    if wish == "direct":
        return training
    found = re.fullmatch(r"(\d+)x(\d+)", wish)
    if found is not None and tuple(map(int, found.groups())) in FORWARD[1:]:
        rows, columns = map(int, found.groups())
        return replace(training, kernels=Kernels(rows, columns))
    if wish != "auto":
        allowed = ["direct", *(f"{rows}x{columns}" for rows, columns in FORWARD[1:]), "auto"]
        raise UserError(
            f"kernels={wish} is not supported (allowed {', '.join(allowed)}); use auto.",
            field="kernels",
            given=wish,
            nearest="auto",
        )
    from haversack.embed.build import load_graph
    from haversack.models.graph._ir import Conv2d

    graph = load_graph(model)
    kind = {"fp16": "f16", "bf16": "bf16"}.get(training.precision or "fp32", "f32")
    seen: dict[Layer, Kernels] = {}
    layers = []
    for op in graph.ops:
        if type(op) is not Conv2d or graph.tensors[op.y].dtype == "int8":
            continue
        shape, weight = graph.tensors[op.x].shape, graph.tensors[op.weight].shape
        layer = Layer(shape[0], shape[1], shape[2], weight[0], weight[1], op.stride[0])
        if layer not in seen:
            rows, columns = next(iter(autotune(layer, "forward", kind=kind, sums=training.sums)))
            back = [next(iter(autotune(layer, step, kind=kind, sums=training.sums))) for step in STEPS[1:]]
            seen[layer] = Kernels(rows, columns, *back)
        layers.append((op.weight, seen[layer]))
    return replace(training, kernels=Kernels(layers=tuple(layers)))


PRODUCTS_A_CYCLE = {"f32": 0.3, "f16": 0.6}
"""Of one core: 32-bit floats one at a time, pairs of 16-bit ones [inferred by the specification]."""
MOVED_A_CYCLE = 0.5
FORK_CYCLES = 150


def cycles(layer: Layer, kind: str, cores: int = 8) -> float:
    """Cycles of a layer's three steps on a cluster by the specification's model [inferred]: products over
    cores, numbers that the transforms move, a fork for each step. A model, never a measurement."""
    places, taps = layer.out[0] * layer.out[1], layer.kernel**2 * layer.channels
    moved = places * taps + layer.height * layer.width * layer.kernel**2 * layer.outputs
    width = 1 if kind == "f32" else 2
    return (
        3 * layer.products / (cores * PRODUCTS_A_CYCLE["f32" if kind == "f32" else "f16"])
        + moved / (cores * MOVED_A_CYCLE * width)
        + 3 * FORK_CYCLES
    )
