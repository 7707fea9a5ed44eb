"""Which kernel each layer gets: direct loops, or products of matrices with what SIMD the compiler has.

A layer's `matmul` gathers what two places look at into patches and multiplies two rows of weights with both
at a time; `blocked` takes depthwise channels in blocks. Which instructions do it is decided where the C is
compiled (SSE2, Arm's DSP extension, else plain C; NN_PORTABLE forces plain C). Patches lie in the arena while
their layer runs.

Source: matrix products for convolution are the usual answer (CMSIS-NN, PULP-TrainLib); what is chosen where
is this package's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from haversack.core.errors import UserError, not_allowed
from haversack.embed.overlaps import gaps, packed
from haversack.models.graph._ir import Conv2d, DepthwiseConv2d, FullyConnected, Graph, Op
from haversack.models.graph.plan import Arena, Life, lifetimes

MODES = ("auto", "direct", "fast")
"""`fast` wherever there is a fast kernel; `auto` where the arena stays within RAM and a thirty-second of its
size; `direct` nowhere."""
ROOM = 32
THREADS_MOST = 8
SPLIT_MACS = 20_000
"""Below this many products a layer is not worth a second thread."""

Choices = Mapping[str, str]
"""What a layer writes -> the name of its kernel."""


def kernels_of(op: Op) -> tuple[str, ...]:
    """The kernels that an operation can have, the plain one first."""
    if isinstance(op, DepthwiseConv2d):
        return ("direct", "blocked")
    if isinstance(op, Conv2d | FullyConnected):
        return ("direct", "matmul")
    return ("direct",)


def patches_nbytes(graph: Graph, op: Op, kernel: str, threads: int) -> int:
    """Bytes of two patches a thread; none for windows of one place that lie in the picture."""
    if kernel != "matmul" or not isinstance(op, Conv2d):
        return 0
    weight = graph.tensors[op.weight]
    if weight.shape[1:3] == (1, 1) and op.pads == ((0, 0), (0, 0)):
        return 0
    each = 1 if graph.tensors[op.x].dtype == "int8" else 4
    return 2 * threads * math.prod(weight.shape[1:]) * each


def patches_name(op: Op) -> str:
    return f"{op.writes[0]}.patches"


def planned(graph: Graph, choices: Choices, threads: int = 1) -> Arena:
    """The arena with every layer's patches in it, results over inputs where that goes (overlaps.py)."""
    lives = lifetimes(graph)
    by = gaps(graph, lives, choices if threads > 1 else ())
    for number, op in enumerate(graph.ops):
        size = patches_nbytes(graph, op, choices.get(op.writes[0], "direct"), threads)
        if size:
            lives.append(Life((patches_name(op),), size, number, number))
    return packed(lives, by)


def fast(graph: Graph) -> dict[str, str]:
    """The fast kernel of every layer that has one."""
    return {
        op.writes[0]: kernels_of(op)[1]
        for op in graph.ops
        if len(kernels_of(op)) > 1
        and graph.tensors[op.reads[0]].dtype == graph.tensors[graph.inputs[0]].dtype
        and not (isinstance(op, Conv2d | FullyConnected) and op.mask is not None)
    }


def chosen(
    graph: Graph, mode: str, threads: int = 1, ram_nbytes: float | None = None
) -> tuple[dict[str, str], Arena]:
    """Kernels by `mode`, and the arena that they need; `auto` keeps it within `ram_nbytes` if it can.

    Raises UserError for another mode or too many threads.
    """
    if mode not in MODES:
        raise not_allowed("kernels", mode, (*MODES, "tune"))
    if not 1 <= threads <= THREADS_MOST:
        raise UserError(
            f"threads={threads} is not supported (allowed 1 to {THREADS_MOST}).",
            field="threads",
            given=threads,
            nearest=min(max(threads, 1), THREADS_MOST),
        )
    plain = planned(graph, {})
    if mode == "direct":
        return {}, plain
    choices = fast(graph)
    found = planned(graph, choices, threads)
    if mode == "fast":
        return choices, found
    sizes = {
        op.writes[0]: patches_nbytes(graph, op, choices.get(op.writes[0], "direct"), threads)
        for op in graph.ops
    }
    costly = sorted((name for name, size in sizes.items() if size), key=lambda name: -sizes[name])
    most: float = plain.nbytes + plain.nbytes // ROOM
    most = most if ram_nbytes is None else max(plain.nbytes, min(most, ram_nbytes))
    while found.nbytes > most and costly:
        # the layer without whose patches the arena is smallest goes first
        arenas = {
            name: planned(graph, {k: v for k, v in choices.items() if k != name}, threads) for name in costly
        }
        least = min(costly, key=lambda name: (arenas[name].nbytes, -sizes[name]))
        found = arenas[least]
        choices.pop(least)
        costly.remove(least)
    return choices, found
