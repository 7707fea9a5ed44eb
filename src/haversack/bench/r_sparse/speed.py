"""One token through the matrices of a block of 4096 by 11008 (Llama-2-7B's), weights drawn: speed does not
depend on their values, and the threshold forces the sparsity.

The baseline is the faster of two dense products: row by row, and by columns with every input active. Lists of
active inputs are made inside what is timed. int4 has groups of 64 on either side, int8 activations on both.
Sides take turns, and the ratio is the median of the pairs'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Side
from haversack.bench.r_sparse._bench import bench

WIDTH, INNER = 4096, 11008
SHAPES = ((WIDTH, WIDTH),) * 4 + ((INNER, WIDTH),) * 2 + ((WIDTH, INNER),)  # rows, columns
SHARES = (0.5, 0.7)
BARS = {("f32", 0.5): 1.6, ("f32", 0.7): 2.5, ("int4", 0.5): 1.2, ("int4", 0.7): 1.6}
PUBLISHED = "1.42x at 50 % (Llama-2-7B, f32, A6000, the sparse part alone)"
GROUP = 64


@dataclass
class Layer:
    """A matrix both ways, and its outputs."""

    rows: Any
    columns: Any
    out: np.ndarray


def layers(kind: str) -> list[Layer]:
    """The matrices of the block in huge pages, the numbers of each drawn once and repeated."""
    from haversack.kernels import (
        Channels,
        Matrix,
        SparseMatrix,
        channel_nbytes,
        pack_channels_int4,
        pack_int4,
    )
    from haversack.kernels.memory import huge_copy

    rng = np.random.default_rng(0)
    found = []
    for rows, columns in SHAPES:
        if kind == "f32":
            values = np.tile(rng.standard_normal((64, columns)).astype(np.float32), (rows // 64, 1))
            plain = Matrix("f32", rows, columns, None, "rows-1", huge_copy(values))
            data = np.tile(
                rng.standard_normal(channel_nbytes("f32", rows) // 4 * 64).astype("<f4"), columns // 64
            )
            turned = Channels("f32", rows, columns, None, huge_copy(data.view(np.uint8)))
        else:
            codes = rng.integers(-8, 8, (1024, columns), dtype=np.int8)
            scales = rng.random((1024, columns // GROUP), np.float32) / 8
            block = pack_int4(codes, scales, GROUP).data
            whole = np.tile(block, rows // 1024 + 1)[: rows // 16 * (block.size // 64)]
            plain = Matrix("int4", rows, columns, GROUP, "rows16-1", huge_copy(whole))
            one = pack_channels_int4(
                rng.integers(-8, 8, (rows, 64), dtype=np.int8),
                rng.random((-(-rows // GROUP), 64), np.float32) / 8,
                GROUP,
            )
            turned = one_tiled(one, columns)
        limits = np.zeros(columns, np.float32)
        found.append(Layer(plain, SparseMatrix(turned, limits), np.empty((1, rows), np.float32)))
    return found


def one_tiled(one: Any, columns: int) -> Any:
    """`one`, a matrix of 64 inputs by columns, repeated to `columns` inputs, block by block."""
    from haversack.kernels import Channels
    from haversack.kernels.memory import huge_copy
    from haversack.kernels.sparse import block_sizes, header_nbytes

    pieces, at = [], 0
    for count in block_sizes(one.kind, one.rows):
        size = one.columns * (header_nbytes(count, one.group) + count // 2)
        pieces.append(np.tile(one.data[at : at + size], columns // one.columns))
        at += size
    return Channels(one.kind, one.rows, columns, one.group, huge_copy(np.concatenate(pieces)))


def by_rows(kind: str, block: list[Layer], inputs: dict[int, np.ndarray]) -> Callable[[], float]:
    """A function that runs the dense products and returns their seconds."""
    from haversack.kernels import matmul

    how = "f32" if kind == "f32" else "int8-dynamic"

    def once() -> float:
        start = perf_counter()
        for one in block:
            matmul(inputs[one.rows.columns], one.rows, activations=how, out=one.out)
        return perf_counter() - start

    return once


def by_columns(
    kind: str, block: list[Layer], inputs: dict[int, np.ndarray], share: float
) -> Callable[[], float]:
    """The same by columns, with the share `share` of the inputs skipped: they are even in 0..1."""
    how = "f32" if kind == "f32" else "int8-dynamic"

    def once() -> float:
        for one in block:
            one.columns.limits[:] = share if share else -1.0
        start = perf_counter()
        for one in block:
            one.columns.multiply(inputs[one.rows.columns], out=one.out, activations=how)
        return perf_counter() - start

    return once


def fancy(block: list[Layer], inputs: dict[int, np.ndarray], share: float) -> Callable[[], float]:
    """The same in numpy: rows of the transposed matrix picked by index, which copies them."""
    turned = [np.ascontiguousarray(one.rows.data.view("<f4").reshape(one.rows.shape).T) for one in block[:1]]

    def once() -> float:
        start = perf_counter()
        for one, matrix in zip(block, turned, strict=False):
            x = inputs[one.rows.columns][0]
            used = np.flatnonzero(np.abs(x) > share)
            one.out[0] = x[used] @ matrix[used]
        return perf_counter() - start

    return once


def rows(kind: str) -> list[Row]:
    return [
        Row(
            f"block-{kind}-{int(100 * share)}-{threads}",
            f"a token through a block of {WIDTH} by {INNER} in {kind}, {share:.0%} skipped, threads: "
            f"{threads}; beside the faster dense product",
            "blocks/s",
            "time",
            Bar(">=", BARS[kind, share]),
            published=PUBLISHED,
            quick=kind == "int4" and threads == 1,
        )
        for share in SHARES
        for threads in (1, 2)
    ]


def timed(run: Run, kind: str, thread_counts: tuple[int, ...]) -> Outcomes:
    from haversack.kernels import set_threads, threads

    block = layers(kind)
    rng = np.random.default_rng(run.seed)
    inputs = {
        columns: rng.permutation(np.linspace(0, 1, columns, dtype=np.float32))[None].copy()
        for columns in {one.rows.columns for one in block}
    }
    found: dict[str, Outcome] = {}
    before = threads()
    try:
        for count in thread_counts:
            set_threads(count)
            sides = {
                "row by row": by_rows(kind, block, inputs),
                "by columns": by_columns(kind, block, inputs, 0),
            }
            sides |= {f"{share}": by_columns(kind, block, inputs, share) for share in SHARES}
            for side in sides.values():
                side()
            taken = run.interleave(sides, MIN_PAIRS + 4)
            dense = min(("row by row", "by columns"), key=lambda name: float(np.median(taken[name])))
            for share in SHARES:
                ours = tuple(1 / s for s in taken[f"{share}"])
                base = tuple(1 / s for s in taken[dense])
                found[f"block-{kind}-{int(100 * share)}-{count}"] = Outcome(
                    Side("inputs skipped", ours), Side(f"dense, {dense}", base)
                )
    finally:
        set_threads(before)
    return found


@bench.measure(*rows("f32"), seconds=60)
def block_f32(run: Run) -> Outcomes:
    return timed(run, "f32", (1, 2))


@bench.measure(*rows("int4"), seconds=40, quick_seconds=15)
def block_int4(run: Run) -> Outcomes:
    return timed(run, "int4", (1,) if run.quick else (1, 2))


@bench.measure(
    Row(
        "fancy-indexing",
        "picking rows by index in numpy copies them: 4096 by 4096 at 50 %, beside dense (it gains nothing, "
        "which is why there is a kernel)",
        "products/s",
        "time",
    ),
    Row(
        "bytes-50",
        "bytes of weights that a token reads at 50 %, over all",
        "share",
        "bytes",
        Bar("in", (0.47, 0.53)),
        judged="ours",
        quick=True,
    ),
    seconds=10,
    quick_seconds=4,
)
def negative(run: Run) -> Outcomes:
    from haversack.kernels import SparseMatrix, pack_channels

    block = layers("f32")[:1] if not run.quick else []
    found: dict[str, Any] = {}
    rng = np.random.default_rng(run.seed)
    if block:
        inputs = {WIDTH: rng.random((1, WIDTH), np.float32)}
        sides = {"dense": by_rows("f32", block, inputs), "numpy": fancy(block, inputs, 0.5)}
        for side in sides.values():
            side()
        taken = run.interleave(sides, MIN_PAIRS)
        found["fancy-indexing"] = Outcome(
            Side("numpy, rows picked", tuple(1 / s for s in taken["numpy"])),
            Side("dense kernel", tuple(1 / s for s in taken["dense"])),
        )
    weight = rng.standard_normal((704, 1024)).astype(np.float32)
    sample = rng.standard_normal((512, 1024)).astype(np.float32)
    limit = float(np.quantile(np.abs(sample), 0.5))
    matrix = SparseMatrix(pack_channels(weight), np.full(1024, limit, np.float32))
    matrix.multiply(rng.standard_normal((256, 1024)).astype(np.float32))
    seen, active = matrix.counts.tolist()
    share = matrix.row_nbytes(active / seen) / matrix.weights.nbytes
    found["bytes-50"] = Outcome.single(
        share, 1.0, name="read", against="all", note="counted by the kernel; other inputs than calibration's"
    )
    return found
