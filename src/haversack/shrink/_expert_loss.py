"""The loss of a model whose experts have given bits, on calibration text; and how the text chooses experts.

The model is in memory in f32. Experts of a plan are rounded when a pass needs them; what comes before the
first block that differs from the base plan (all experts at 4 bits) is computed once, so that trying experts
one by one costs half of as many passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.kernels import Matrix
from haversack.models._experts import Expert, Experts, identity
from haversack.run._forward import Observer
from haversack.run._paths import Profile
from haversack.run.layers.mixture import Routing, by_expert
from haversack.shrink._expert_bits import BASE, LOWERED, Plan
from haversack.shrink._rounding import F32
from haversack.shrink._source import read_tensor

I32 = NDArray[np.int32]
KEPT_NBYTES = 256 << 20
"""Hidden states of the base plan that are kept, at most."""


class Passes:
    """Passes of `texts` i32 [pieces, length] through the model of `source`, whose weights are read once."""

    def __init__(self, source: Any, walk: Any, texts: I32) -> None:
        self.texts = texts
        self.walk = walk
        self.architecture = walk.architecture
        self.forward = walk.forward
        names = {*walk.first, *walk.last, walk.output}
        self.top = {name: _bound(source, name) for name in names}
        self.blocks = [
            {name: _bound(source, name) for name in walk.names(block)} for block in range(walk.blocks)
        ]

    def embedded(self) -> list[F32]:
        """Hidden states of every text before the first block."""
        return [self.walk.embed(tokens, self.top) for tokens in self.texts]

    def through(
        self, block: int, states: list[F32], weights: Mapping[str, Any], tap: Any = None
    ) -> list[F32]:
        """Hidden states after `block` with `weights`."""
        return [self.walk.run(block, hidden, weights, tap) for hidden in states]

    def loss(self, states: list[F32]) -> float:
        """Mean next-token loss in nats of the states after the last block."""
        head = self.architecture.head
        bias = None if head.bias is None else self.top[head.bias]
        total, count = 0.0, 0
        for hidden, tokens in zip(states, self.texts, strict=True):
            predicting, wanted = self.walk.targets(hidden, tokens)
            normal = self.forward.finish(predicting, self.top)
            logits = self.forward.head(normal, self.top[head.weight], None, bias).astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            chosen = np.take_along_axis(logits, wanted[:, None].astype(np.int64), axis=1)[:, 0]
            total += float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum())
            count += len(chosen)
        return total / max(1, count)


class ModelLoss:
    """Plan -> mean next-token loss. `reference` is that of the model as it came."""

    def __init__(self, source: Any, walk: Any, experts: Experts, texts: I32) -> None:
        self.passes = Passes(source, walk, texts)
        self.experts = experts
        self._layers = {block: layer for layer, block in enumerate(experts.blocks)}
        self._rounded: dict[tuple[str, int], Matrix] = {}
        self._before: dict[int, list[F32]] = {}
        states = self.passes.embedded()
        nbytes = sum(hidden.nbytes for hidden in states) * (walk.blocks + 1)
        self._keeps = nbytes <= KEPT_NBYTES
        self._first = states
        for block in range(walk.blocks):
            states = self.passes.through(block, states, self.passes.blocks[block])
        self.reference = self.passes.loss(states)

    def __call__(self, plan: Plan) -> float:
        """The loss with the experts of `plan` at their bits."""
        base = all(bits == BASE for bits in plan.values())
        changed = [self.experts.blocks[key[0]] for key, bits in plan.items() if bits != BASE]
        start = min(changed, default=0)
        start = start if start in self._before and not base else 0
        states = self._before.get(start, self._first)
        for block in range(start, self.passes.walk.blocks):
            if base and self._keeps:
                self._before[block] = states
            states = self.passes.through(block, states, self._weights(block, plan))
        return self.passes.loss(states)

    def errors(self) -> dict[Expert, float]:
        """Expert -> the squared error of what it adds to tokens at LOWERED bits, over the tokens that choose
        it when nothing is rounded."""
        found = dict.fromkeys(self.experts.tensors, 0.0)
        states, passes = self._first, self.passes
        for block in range(passes.walk.blocks):
            weights, layer = passes.blocks[block], self._layers.get(block)
            for hidden in states if layer is not None else ():
                assert layer is not None
                x, choice = passes.walk.routed(block, hidden, weights)
                for number, rows, places in by_expert(choice.experts):
                    names = self.experts.tensors[layer, number]
                    lowered = {**weights, **{name: self._at(block, name, LOWERED) for name in names}}
                    given = (block, number, np.ascontiguousarray(x[rows]), choice.shares[rows, places])
                    missed = passes.forward.expert_forward(*given, weights, None)
                    missed -= passes.forward.expert_forward(*given, lowered, None)
                    found[layer, number] += float(np.square(missed, dtype=np.float64).sum())
            states = passes.through(block, states, weights)
        return found

    def _weights(self, block: int, plan: Plan) -> Mapping[str, Any]:
        layer = self._layers.get(block)
        if layer is None:
            return self.passes.blocks[block]
        changed = {
            name: self._at(block, name, plan[layer, expert])
            for expert in range(self.experts.count)
            for name in self.experts.tensors[layer, expert]
        }
        return {**self.passes.blocks[block], **changed}

    def _at(self, block: int, name: str, bits: int) -> Any:
        """The tensor `name` as `bits` leave it; matrices of the base plan are kept."""
        from haversack.shrink.precision.edgemoe import compressed

        exact = self.passes.blocks[block][name]
        if not isinstance(exact, Matrix) or bits == 32:
            return exact
        if (name, bits) in self._rounded:
            return self._rounded[name, bits]
        made = compressed(_values(exact), bits).packed()
        if bits == BASE:
            self._rounded[name, bits] = made
        return made


def profile_of(source: Any, walk: Any, experts: Experts, texts: I32) -> Profile:
    """How `texts` i32 [pieces, length] choose experts: the profile of the model as it came."""
    passes = Passes(source, walk, texts)
    written = {block: layer for layer, block in enumerate(experts.blocks[experts.read :])}
    pieces, length = texts.shape[0], texts.shape[1] - getattr(walk, "reads", 0)
    routes = np.zeros((pieces, length, len(written), experts.chosen), np.int32)

    def observed(piece: int) -> Observer:
        def observe(routing: Routing) -> None:
            if routing.block in written:
                routes[piece, routing.positions, written[routing.block]] = routing.experts

        return observe

    for piece, state in enumerate(passes.embedded()):
        passes.forward.observer = observed(piece)
        states = [state]
        for block in range(walk.blocks):
            states = passes.through(block, states, passes.blocks[block])
    passes.forward.observer = None
    flat = routes.reshape(-1, *routes.shape[2:])
    return Profile.of_routes(flat, experts.count, identity(source, passes.architecture), experts.read)


def _bound(source: Any, name: str) -> Any:
    values = read_tensor(source, name)
    return Matrix.from_array(values) if values.ndim == 2 else values


def _values(matrix: Matrix) -> F32:
    found: F32 = matrix.data.view("<f4").reshape(matrix.shape)
    return found
