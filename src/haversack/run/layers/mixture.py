"""A mixture of experts: of every token the few feed-forward layers that its router rates highest.

The record is `models.Mixture`. The router's numbers become a choice and shares (kernels/routing.py); what the
chosen experts make of the token, times their shares, is added to it in the order of their numbers, and what
the shared expert makes last. So a token's bits follow from the token alone: many tokens at once equal them
one by one, whichever experts the others chose. Of a text that is read as a whole, a token that comes too late
for an expert's capacity has a share of 0. The share multiplies the input of an expert's down matrix, which
then adds to the token without a copy, and which calibration sees so.

Where an expert's weights live is asked of `Call.experts` (run/_residency.py), one expert after the other, in
the order of their numbers; where that is None they are the block's own, and one token takes all its experts
in a few native calls. The choice is announced before, and told to `Call.observer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from haversack.kernels import gate, route
from haversack.run._products import F32, multiply, multiply_add
from haversack.run._residency import CHOSEN
from haversack.run._sparsity import Reading, of_rows
from haversack.run.layers._by_matrix import by_matrix
from haversack.run.layers._by_plane import by_plane
from haversack.run.layers.feed_forward import activated

if TYPE_CHECKING:
    from haversack.models._architecture import FeedForward, Mixture
    from haversack.run._forward import Call

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
AT_ONCE = 4
"""Experts whose gate and up products share a native call, which takes eight matrices."""


class Choice(NamedTuple):
    """What a router decided for n tokens: `experts` i32 [n, top], the highest rated first, and their `shares`
    f32 [n, top]; of nested experts also the `levels` i32 [n, top] that are read (None: all bits).
    """

    experts: I32
    shares: F32
    levels: I32 | None = None


class Routing(NamedTuple):
    """What an observer is told of a block's router. Arrays are valid during the call: copy what stays.

    `positions` i32 [n] of the tokens, `experts`, `shares` and `levels` as in `Choice`, `x` f32 [n, width]
    what the router read.
    """

    block: int
    positions: I32
    experts: I32
    shares: F32
    x: F32
    levels: I32 | None = None


def by_expert(experts: I32) -> Iterator[tuple[int, I64, I64]]:
    """(expert, the rows that chose it, at which place of theirs) of a choice i32 [n, top], by number."""
    top = experts.shape[1]
    flat = experts.reshape(-1)
    order = np.argsort(flat, kind="stable")
    numbers, starts = np.unique(flat[order], return_index=True)
    for number, places in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
        yield number, places // top, places % top


def beyond(experts: I32, capacity: int) -> npt.NDArray[np.bool_]:
    """bool [n, top]: where a choice i32 [n, top] comes after `capacity` earlier tokens had made the same."""
    found = np.zeros(experts.shape, np.bool_)
    for _, rows, places in by_expert(experts):
        found[rows[capacity:], places[capacity:]] = True
    return found


def choose(layer: Mixture, x: F32, weights: Any, call: Call) -> Choice:
    """The experts of x f32 [n, width], announced to the residency and told to the observer."""
    logits = call.scratch.get("logits", len(x), len(layer.experts))
    multiply(x, (layer.router,), weights, (logits,), call.activations, call.tap)
    experts, shares = route(
        logits, layer.top, layer.scoring, chosen=layer.scored == "chosen", normalized=layer.normalized
    )
    if layer.capacity is not None:
        shares[beyond(experts, layer.capacity)] = 0
    levels = None if call.levels is None else call.levels(call.block, x, experts)
    routing = Routing(call.block, call.step.positions, experts, shares, x, levels)
    if call.experts is not None:
        call.experts.routed(routing)
        call.experts.want(call.block, sorted(set(experts.reshape(-1).tolist())), CHOSEN)
    if call.observer is not None:
        call.observer(routing)
    return Choice(experts, shares, levels)


def ahead(layer: Mixture, entry: F32, weights: Any, call: Call) -> None:
    """Choose by the block's input, before anything else of the block runs, where the router reads that."""
    if layer.tap == "residual":
        call.choice = choose(layer, entry, weights, call)


def forward(layer: Mixture, x: F32, weights: Any, call: Call, hidden: F32 | None) -> F32 | None:
    """The mixture's result of x f32 [n, width]; added to `hidden` in place when given, else returned."""
    choice = call.choice if layer.tap == "residual" else choose(layer, x, weights, call)
    assert choice is not None, "the block's input was routed before its branches"
    to = hidden
    if to is None:
        to = call.scratch.get("branch", len(x), x.shape[1])
        to[...] = 0
    if hasattr(call.experts, "matrix"):
        by_matrix(layer, x, choice, weights, call, to)
    elif hasattr(call.experts, "arriving"):
        by_plane(layer, x, choice, call, to)
    elif len(x) == 1:
        _one_token(layer, x, choice, weights, call, to)
    else:
        _many_tokens(layer, x, choice, weights, call, to)
    if layer.shared is not None:
        shares = None
        if layer.shared_gate is not None:
            number = call.scratch.get("logits", len(x), 1)
            multiply(x, (layer.shared_gate,), weights, (number,), call.activations, call.tap)
            shares = route(number, 1, "sigmoid")[1]
        add_expert(layer.shared, x, shares, weights, call, to)
    return None if hidden is not None else to


def add_expert(expert: FeedForward, x: F32, shares: F32 | None, weights: Any, call: Call, to: F32) -> None:
    """to += shares f32 [n, 1] (None: all of it) times what `expert` makes of x f32 [n, width]."""
    inner = activated(expert, x, weights, call)
    if shares is not None:
        inner *= shares
    multiply_add(inner, expert.down, weights, to, call.activations, call.tap)


def _one_token(layer: Mixture, x: F32, choice: Choice, weights: Any, call: Call, to: F32) -> None:
    order = np.argsort(choice.experts[0])
    numbers, shares = choice.experts[0][order].tolist(), choice.shares[0][order][:, None]
    first = layer.experts[numbers[0]]
    apart = call.experts is not None or choice.levels is not None
    if apart or first.gate is None or hasattr(weights[first.up.weight], "gated"):
        for place, number, share in zip(order.tolist(), numbers, shares, strict=True):
            with _weights(call, number, weights) as own:
                own = _at_levels(layer.experts[number], own, choice, np.zeros(1, np.int64), place)
                add_expert(layer.experts[number], x, share, own, call, to)
        return
    experts = [layer.experts[number] for number in numbers]
    gates = call.scratch.get("gate", layer.top, first.width)
    ups = call.scratch.get("up", layer.top, first.width)
    for start in range(0, layer.top, AT_ONCE):
        linears, outs = [], []
        for place in range(start, min(start + AT_ONCE, layer.top)):
            linears += experts[place].products()[0]
            outs += [gates[place : place + 1], ups[place : place + 1]]
        multiply(x, linears, weights, outs, call.activations, call.tap)
    gate(gates, ups, first.activation, out=gates)
    gates *= shares
    for place, expert in enumerate(experts):
        inner = gates[place : place + 1]
        multiply_add(inner, expert.down, weights, to, call.activations, call.tap)


def _many_tokens(layer: Mixture, x: F32, choice: Choice, weights: Any, call: Call, to: F32) -> None:
    for number, rows, places in by_expert(choice.experts):
        if layer.capacity is not None:
            rows, places = rows[: layer.capacity], places[: layer.capacity]
        read = call.scratch.get("read", len(rows), x.shape[1])
        sums = call.scratch.get("sums", len(rows), x.shape[1])
        np.take(x, rows, axis=0, out=read, mode="clip")
        np.take(to, rows, axis=0, out=sums, mode="clip")
        shares = choice.shares[rows, places][:, None]
        with _weights(call, number, weights) as own:
            own = _at_levels(layer.experts[number], of_rows(own, rows), choice, rows, places)
            add_expert(layer.experts[number], read, shares, own, call, sums)
        to[rows] = sums


def _at_levels(expert: FeedForward, own: Any, choice: Choice, rows: I64, places: Any) -> Any:
    """The expert's weights as the tokens `rows`, whose choice at `places` it was, read them."""
    if choice.levels is None:
        return own
    from haversack.run.forms.nested import AtLevels

    names = [name for group in expert.products() for linear in group for name, _ in linear.tensors()]
    return AtLevels(own, names, choice.levels[rows, places])


@contextmanager
def _weights(call: Call, expert: int, weights: Any) -> Iterator[Any]:
    """The weights of an expert of this block: the block's own where the residency keeps no experts apart."""
    if call.experts is None:
        yield weights
        return
    with call.experts.expert(call.block, expert) as own:
        yield own if call.step.reads is None else Reading(own, call.step.reads)
