"""A text that an encoder reads before another is written: through its blocks once, all tokens at a time.

The keys and values that the decoder's blocks make of the encoder's last states are made when a step first
passes each block, whose weights are at hand then, and serve all that is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.kernels import CacheLayer
from haversack.models._architecture import Architecture, Block
from haversack.run._forward import Forward, scratch_nbytes
from haversack.run._products import Tap, normalize
from haversack.run._step import Step
from haversack.run._weights import F32, Weights
from haversack.run.layers.cross_attention import listen

if TYPE_CHECKING:
    from haversack.run._cache import Cache
    from haversack.run._engine import Engine

I32 = npt.NDArray[np.int32]


def begin(engine: Engine, ids: I32, cache: Cache) -> None:
    """Let the encoder read `ids` i32 [n] and `cache` begin anew with what it made of them."""
    cache.truncate(0)
    cache.cross = {}
    cache.states = states(engine, ids)


def states(engine: Engine, ids: I32) -> F32:
    """The encoder's last states f32 [n, width] of a text `ids` i32 [n].

    Raises UserError for states that are not finite.
    """
    architecture, held, n = engine.architecture, engine.held, len(ids)
    reader = architecture.reader
    assert reader is not None
    turn(held, True)
    positions = np.arange(n, dtype=np.int32)
    hidden = engine._embed(ids, positions, reader.embedding)
    for block in architecture.reading:
        with held.weights(block.index) as weights:
            read_block(engine.forward, block, hidden, weights)
    turn(held, False)
    normalize(reader.norm, hidden, held.top, hidden)
    if not np.isfinite(hidden).all():
        raise UserError(
            f"the encoder of {engine.model.path} gives states that are not finite; the checkpoint is damaged "
            "or needs another number type.",
            field="model",
            given=str(engine.model.path),
        )
    return hidden


def read_block(forward: Forward, block: Block, hidden: F32, weights: Weights, tap: Tap | None = None) -> None:
    """Take a whole text's `hidden` f32 [n, width] through a block of the encoder in place."""
    layer, n = block.attention, len(hidden)
    assert layer is not None
    cache = CacheLayer.empty(layer.key_value_heads, n, layer.head_width)
    step = Step(np.arange(n, dtype=np.int32), 0)
    forward.advance(block, hidden, step, cache, weights, tap)


def turn(held: object, everything: bool) -> None:
    """Tell a residency that reads blocks in turn which come now: all, or the decoder's alone."""
    told = getattr(held, "turn", None)
    if told is not None:
        told(everything)


def listened(forward: Forward, block: Block, cache: Cache, weights: Weights) -> CacheLayer | None:
    """Keys and values of the encoder's states for a block of the decoder, made when first asked for; None
    for a block without cross-attention. Raises UserError where no text was read.
    """
    layer = block.cross_attention
    if layer is None:
        return None
    found = cache.cross.get(block.index)
    if found is None:
        if cache.states is None:
            raise UserError(
                "this model writes what follows from a text that it has read; give one to Engine.read first.",
                field="cache",
            )
        found = listen(layer, cache.states, weights, cache.kind, forward.activations)
        cache.cross[block.index] = found
    return found


def reading_lines(architecture: Architecture, tokens: int, cache_type: str) -> tuple[tuple[str, int], ...]:
    """Lines of a plan of memory: what a text of `tokens` takes that an encoder reads, and its buffers."""
    number = {"f32": 4, "f16": 2, "int8": 1}[cache_type]
    crossing = [block.cross_attention for block in architecture.writing]
    entry = sum(
        2 * layer.key_value_heads * (layer.head_width * number + (4 if cache_type == "int8" else 0))
        for layer in crossing
        if layer is not None
    )
    own = max(
        (block.attention.cache_nbytes(tokens) for block in architecture.reading if block.attention), default=0
    )
    return (
        (f"keys and values of {tokens} read tokens", entry * tokens),
        ("buffers of the encoder", own + scratch_nbytes(architecture, tokens, tokens)),
    )
