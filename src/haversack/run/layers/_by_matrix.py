"""A mixture whose experts' matrices come one by one (run/residency/smallthinker.py): what is there is
computed while the rest is read.

The gates and the up matrices of all experts come first, in the order in which they arrive; what they give is
kept. Then the down products are added in the order of the experts' numbers, which is the order of the model
in memory: so no bit depends on what arrived when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from haversack.kernels import gate
from haversack.run._products import F32, multiply, multiply_add
from haversack.run._sparsity import Reading, of_rows

if TYPE_CHECKING:
    from haversack.models._architecture import FeedForward, Mixture
    from haversack.run._forward import Call
    from haversack.run.layers.mixture import Choice

GATE, UP, DOWN = range(3)


def by_matrix(layer: Mixture, x: F32, choice: Choice, weights: Any, call: Call, to: F32) -> None:
    """to f32 [n, width] += what the experts that x f32 [n, width] chose make of it, times their shares."""
    from haversack.run.layers.mixture import by_expert

    held: Any = call.experts
    chosen = {number: (rows, places) for number, rows, places in by_expert(choice.experts)}
    starts = np.cumsum([0, *(len(rows) for rows, _ in chosen.values())]).tolist()
    inner = call.scratch.get("inner", starts[-1], layer.experts[0].width)
    parts = {number: inner[starts[at] : starts[at + 1]] for at, number in enumerate(chosen)}
    for number in held.arriving(call.block):
        rows, places = chosen[number]
        read = x
        if len(x) > 1:
            read = call.scratch.get("read", len(rows), x.shape[1])
            np.take(x, rows, axis=0, out=read, mode="clip")
        _activated(layer.experts[number], number, read, rows, call, parts[number])
        parts[number] *= choice.shares[rows, places][:, None]
    for number, (rows, _) in chosen.items():
        sums = to
        if len(x) > 1:
            sums = call.scratch.get("sums", len(rows), x.shape[1])
            np.take(to, rows, axis=0, out=sums, mode="clip")
        with held.matrix(call.block, number, DOWN) as own:
            down = layer.experts[number].down
            multiply_add(parts[number], down, _read(own, rows, call), sums, call.activations, call.tap)
        if len(x) > 1:
            to[rows] = sums


def _activated(expert: FeedForward, number: int, x: F32, rows: Any, call: Call, inner: F32) -> None:
    """inner f32 [n, expert.width] = what the down matrix multiplies, as `feed_forward.activated` gives it."""
    held: Any = call.experts
    if expert.gate is None:
        with held.matrix(call.block, number, UP) as own:
            multiply(x, (expert.up,), _read(own, rows, call), (inner,), call.activations, call.tap)
        gate(inner, None, expert.activation, out=inner)
        return
    with held.matrix(call.block, number, GATE) as own:
        multiply(x, (expert.gate,), _read(own, rows, call), (inner,), call.activations, call.tap)
    if expert.activation == "relu":
        held.examined(inner.size, int(np.count_nonzero(inner > 0)))
    with held.matrix(call.block, number, UP) as own:
        matrix = own[expert.up.weight]
        if hasattr(matrix, "gated") and expert.up.bias is None:  # run/forms/neurons.py
            gate(inner, None, expert.activation, out=inner)
            if call.tap is not None:
                call.tap(expert.up.weight, x)
            matrix.gated(x, inner)
            return
        up = call.scratch.get("up", len(x), expert.width)
        multiply(x, (expert.up,), _read(own, rows, call), (up,), call.activations, call.tap)
    gate(inner, up, expert.activation, out=inner)


def _read(own: Any, rows: Any, call: Call) -> Any:
    """The weights of a matrix as the rows `rows` of a step take them."""
    return own if call.step.reads is None else of_rows(Reading(own, call.step.reads), rows)
