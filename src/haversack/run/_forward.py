"""A model's arithmetic, block by block: what the engine steps through and compression walks one block at a
time.

Nothing here knows where weights live. A layer's kind names its file in `layers/`, so a new kind of block is a
new file: `forward` runs the layer, and `ahead`, where there is one, sees the block's input before any branch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from haversack.kernels import CacheLayer, Matrix, matmul
from haversack.kernels import softcap as bounded
from haversack.models._architecture import Architecture, Attention, Block, Layer, Mixture
from haversack.models._distance import distance_table
from haversack.run._products import F32, Scratch, Tap, activations_of, multiply, normalize
from haversack.run._program import Programs
from haversack.run._residency import Experts
from haversack.run._sparsity import Reading
from haversack.run._step import Mask, Step
from haversack.run._weights import Weights, embedding_rows

if TYPE_CHECKING:
    from haversack.run._levels import Levels
    from haversack.run.layers.mixture import Choice, Routing

I32 = npt.NDArray[np.int32]
Tables = Mapping[str, F32]
"""Matrix that attention is biased by (`DistanceBias.weight`) -> its table by distance."""
Observer = Callable[["Routing"], None]

ROWS = 256
"""Most tokens that pass a block at once; longer steps go through it in parts, which changes no bit."""


class AttentionMethod(Protocol):
    """Fills run: attention."""

    def attend(self, query: F32, cache: CacheLayer, step: Step, layer: Attention) -> F32:
        """query f32 [n, heads, head width] over the cache -> f32 [n, heads, head width]."""


class Call:
    """What a layer is given beside its input and weights."""

    __slots__ = (
        "activations",
        "attention",
        "block",
        "cache_layer",
        "choice",
        "cross",
        "distances",
        "experts",
        "levels",
        "observer",
        "scratch",
        "step",
        "tap",
    )

    def __init__(
        self,
        step: Step,
        cache_layer: CacheLayer | None,
        activations: str,
        attention: AttentionMethod,
        scratch: Scratch,
        tap: Tap | None,
        cross: CacheLayer | None = None,
        block: int = 0,
        experts: Experts | None = None,
        observer: Observer | None = None,
        levels: Levels | None = None,
        distances: Tables | None = None,
    ) -> None:
        self.distances: Tables = distances or {}
        self.block, self.experts, self.observer, self.levels = block, experts, observer, levels
        self.choice: Any = None  # of a mixture whose router reads the block's input
        self.cross = cross
        self.step = step
        self.cache_layer = cache_layer
        self.activations = activations
        self.attention = attention
        self.scratch = scratch
        self.tap = tap


class Forward:
    """The arithmetic of `architecture`.

    `activations`: type of the inputs of packed matrices, f32 or int8-dynamic. `attention` fills run:
    attention (default: dense). `rows`: tokens that scratch buffers are made for. `experts`: where mixtures
    find the weights of their experts (None: among those of their block). `observer` is told what their
    routers choose. `levels` says how many bits a token reads of nested experts (None: all).
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        activations: str = "f32",
        attention: AttentionMethod | None = None,
        rows: int = ROWS,
    ) -> None:
        if attention is None:
            from haversack.run.attention.dense import Dense

            attention = Dense()
        self.architecture = architecture
        self.activations = activations
        self.attention = attention
        self.scratch = Scratch(rows)
        self.programs = Programs(architecture, activations, attention)
        self.experts: Experts | None = None
        self.observer: Observer | None = None
        self.levels: Levels | None = None
        self.distances: Tables = {}
        kinds = {branch.layer.kind for block in architecture.blocks for branch in block.branches}
        modules: dict[str, Any] = {kind: import_module(f"haversack.run.layers.{kind}") for kind in kinds}
        self._layers: dict[str, Any] = {kind: module.forward for kind, module in modules.items()}
        self._ahead: dict[str, Any] = {
            kind: module.ahead for kind, module in modules.items() if hasattr(module, "ahead")
        }

    def learn_distances(self, weights: Weights) -> None:
        """Make the tables that attention is biased by, of the matrices among `weights`; before blocks run."""
        self.distances = {
            bias.weight: distance_table(
                embedding_rows(weights[bias.weight], np.arange(bias.buckets, dtype=np.int32)), bias
            )
            for bias in self.architecture.distances
        }

    def embed(
        self,
        tokens: I32,
        table: Matrix,
        weights: Weights | None = None,
        places: tuple[Matrix, I32] | None = None,
    ) -> F32:
        """Hidden states f32 [n, width] of the rows `tokens` i32 [n] of `table`.

        `weights` hold the embedding's projection and `places` the learned positions, a matrix and n rows in
        it, where the architecture has them.
        """
        hidden = embedding_rows(table, tokens)
        if self.architecture.embedding_scale != 1.0:
            hidden *= np.float32(self.architecture.embedding_scale)
        projection = self.architecture.project_in
        if projection is not None:
            assert weights is not None
            wide = np.empty((len(hidden), projection.outputs), np.float32)
            multiply(hidden, (projection,), weights, (wide,), self.activations)
            hidden = wide
        if places is not None:
            hidden += embedding_rows(*places)
        return hidden

    def block_forward(
        self,
        block: int,
        hidden: F32,
        positions: I32,
        cache_layer: CacheLayer | None,
        weights: Weights,
        tap: Tap | None = None,
        *,
        start: int = 0,
        mask: Mask | None = None,
        horizon: int = 0,
    ) -> F32:
        """Hidden states f32 [n, width] after block number `block`, as a new array.

        Keys and values become entries `start` to `start` + n of `cache_layer`, before which `start` entries
        at positions 0 to `start` - 1 are seen. `tap(name, x)` sees the input of every matrix product, in
        order of use; it may raise to end the pass.
        """
        result = np.array(hidden, np.float32)
        linear = mask is None and bool((positions == np.arange(start, start + len(positions))).all())
        held = None if linear else np.arange(start, dtype=np.int32)
        step = Step(np.ascontiguousarray(positions, np.int32), start, mask, held, horizon)
        self.advance(self.architecture.blocks[block], result, step, cache_layer, weights, tap)
        return result

    def advance(
        self,
        block: Block,
        hidden: F32,
        step: Step,
        cache_layer: CacheLayer | None,
        weights: Weights,
        tap: Tap | None = None,
        cross: CacheLayer | None = None,
    ) -> None:
        """Take `hidden` f32 [n, width] through `block` in place. `cross`: keys and values of an encoder's
        states, all of them, for a block with cross-attention.
        """
        read = weights if step.reads is None else Reading(weights, step.reads)
        call = None
        for branch in block.branches if self._ahead else ():
            if branch.layer.kind in self._ahead:
                call = self._call(block, step, cache_layer, tap, cross)
                self._ahead[branch.layer.kind](branch.layer, hidden, read, call)
        ran = 0 if tap is not None else self.programs.run(block, hidden, step, cache_layer, weights)
        if ran == len(block.branches):
            return
        call = call or self._call(block, step, cache_layer, tap, cross)
        weights = read
        n, width = hidden.shape
        entry = hidden.copy() if block.parallel else hidden
        done = None  # the norm that "normal" holds the result of, as long as its input is the same
        for branch in block.branches[ran:]:
            x = entry
            if branch.norm is not None:
                x = self.scratch.get("normal", n, width)
                if branch.norm is not done:
                    normalize(branch.norm, entry, weights, x)
                done = branch.norm if block.parallel else None
            layer: Any = branch.layer
            run = self._layers[layer.kind]
            if branch.post_norm is None:
                run(layer, x, weights, call, hidden)
            else:
                out = run(layer, x, weights, call, None)
                hidden += normalize(branch.post_norm, out, weights, out)
            if branch.after_norm is not None:
                normalize(branch.after_norm, hidden, weights, hidden)

    def _call(
        self,
        block: Block,
        step: Step,
        cache_layer: CacheLayer | None,
        tap: Tap | None,
        cross: CacheLayer | None,
    ) -> Call:
        return Call(
            *(step, cache_layer, self.activations, self.attention, self.scratch, tap, cross),
            *(block.index, self.experts, self.observer, self.levels, self.distances),
        )

    def routed(
        self, block: int, hidden: F32, positions: I32, cache_layer: CacheLayer | None, weights: Weights
    ) -> tuple[F32, Choice]:
        """What the mixture of `block` reads of a text of its own, f32 [n, width], and what its router
        chooses; the hidden states f32 [n, width] before the block are left as they are.
        """
        from haversack.run.layers.mixture import choose

        record, entry = self.architecture.blocks[block], np.array(hidden, np.float32)
        places = [i for i, branch in enumerate(record.branches) if isinstance(branch.layer, Mixture)]
        before, branch = replace(record, branches=record.branches[: places[0]]), record.branches[places[0]]
        step = Step(np.ascontiguousarray(positions, np.int32), 0, None, None, 0)
        x = entry.copy()
        self.advance(before, x, step, cache_layer, weights, _unseen)
        if branch.norm is not None:
            x = normalize(branch.norm, entry if record.parallel else x, weights)
        call = Call(step, cache_layer, self.activations, self.attention, self.scratch, None)
        layer: Any = branch.layer
        return x, choose(layer, entry if layer.tap == "residual" else x, weights, call)

    def expert_forward(
        self, block: int, expert: int, x: F32, shares: F32, weights: Weights, tap: Tap | None
    ) -> F32:
        """What one expert of `block` adds to x f32 [n, width] at `shares` f32 [n], as a new array."""
        from haversack.run.layers.mixture import add_expert

        mixture = self.architecture.blocks[block].mixture
        assert mixture is not None
        step = Step(np.arange(len(x), dtype=np.int32), 0, None, None, 0)
        call = Call(step, None, self.activations, self.attention, self.scratch, tap)
        out = np.zeros((len(x), mixture.experts[expert].down.outputs), np.float32)
        add_expert(mixture.experts[expert], x, shares[:, None], weights, call, out)
        return out

    def layer_forward(
        self, layer: Layer, x: F32, positions: I32, cache_layer: CacheLayer | None, weights: Weights
    ) -> F32:
        """What one layer of a block makes of its input x f32 [n, width], as a new array: neither normed nor
        added to anything."""
        step = Step(np.ascontiguousarray(positions, np.int32), 0, None, None, 0)
        call = Call(step, cache_layer, self.activations, self.attention, self.scratch, None)
        call.distances = self.distances
        return np.array(self._layers[layer.kind](layer, x, weights, call, None), np.float32)

    def finish(self, hidden: F32, weights: Weights) -> F32:
        """What meets the output matrix: the final norm of `hidden` f32 [n, width], and its projection, as a
        new array.
        """
        norm, projection = self.architecture.final_norm, self.architecture.project_out
        normal = hidden.copy() if norm is None else normalize(norm, hidden, weights)
        if self.architecture.head_scale != 1.0:
            normal *= np.float32(self.architecture.head_scale)
        if projection is None:
            return normal
        narrow = np.empty((len(normal), projection.outputs), np.float32)
        multiply(normal, (projection,), weights, (narrow,), self.activations)
        return narrow

    def head(self, normal: F32, matrix: Matrix, out: F32 | None = None, bias: F32 | None = None) -> F32:
        """Logits f32 [n, rows of `matrix`] of normalized hidden states; `matrix` may be a part of the
        head.
        """
        activations = activations_of(matrix, self.activations)
        logits: F32 = matmul(normal, matrix, activations=activations, out=out)
        if bias is not None:
            logits += bias
        softcap = self.architecture.logit_softcap
        if softcap is not None:
            bounded(logits, softcap, out=logits)
        return logits


def _unseen(name: str, x: F32) -> None:
    """A tap that looks at nothing: it keeps a part of a block out of native programs, which are made for
    whole ones.
    """


def scratch_nbytes(architecture: Architecture, rows: int, most: int = ROWS) -> int:
    """Bytes of buffers for steps of `rows` tokens: hidden states and what the widest layers need in parts of
    at most `most` tokens.
    """
    width, part = architecture.width, min(rows, most)
    widest: dict[str, int] = {"hidden": 0, "normal": width, "branch": 0}
    for block in architecture.blocks:
        for branch in block.branches:
            layer = branch.layer
            if isinstance(layer, Mixture):  # the rows of an expert and their sums; its inner numbers
                inner = 2 * width + 2 * layer.experts[0].width + len(layer.experts)
                inner += 0 if layer.shared is None else 2 * layer.shared.width
                widest[layer.kind] = max(widest.get(layer.kind, 0), inner)
                continue
            for group in layer.products():
                inner = 2 * sum(linear.outputs for linear in group) + group[0].inputs
                widest[layer.kind] = max(widest.get(layer.kind, 0), inner)
            if branch.post_norm is not None:
                widest["branch"] = width
    entry = width if any(block.parallel for block in architecture.blocks) else 0
    return 4 * (2 * rows * width + part * (sum(widest.values()) + entry))
