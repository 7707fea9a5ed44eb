"""Keys and values of texts that were read before: a prompt that begins like one of them is read from there.

Texts are kept in blocks of 32 tokens. A block belongs to the tokens before it as well, so two texts share the
blocks of their common beginning. What is taken over are the very bytes that reading would write again, so an
answer's bits do not change. All blocks lie in one allocation of fixed size; the block that was not used for
longest makes room for a new one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.kernels import PoolLayer
from haversack.models._architecture import Architecture
from haversack.run._cache import Cache

I32 = npt.NDArray[np.int32]
Key = tuple[int, bytes]

BLOCK = 32
"""Tokens of a block."""


class PrefixStore:
    """At most `limit` bytes of blocks for caches of `architecture` and `kind`; 0 keeps nothing."""

    def __init__(self, architecture: Architecture, kind: str, limit: int) -> None:
        self.block_nbytes = architecture.cache_nbytes(BLOCK, kind)
        self.blocks = max(0, limit // self.block_nbytes) if self.block_nbytes else 0
        self.layers: list[PoolLayer | None] = [
            None
            if block.attention is None or not self.blocks
            else PoolLayer.empty(
                self.blocks, block.attention.key_value_heads, BLOCK, block.attention.head_width, kind
            )
            for block in architecture.blocks
        ]
        self._changes = sorted(_changes(architecture))
        # Key (block before, tokens) -> block; the longest unused first. A block stands behind those that
        # continue it, so the first has none.
        self._known: OrderedDict[Key, int] = OrderedDict()
        self._keys: dict[int, Key] = {}
        self._free = list(range(self.blocks))[::-1]

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, used or not."""
        return self.blocks * self.block_nbytes

    @property
    def used(self) -> int:
        """Blocks that hold something."""
        return len(self._known)

    def take(self, prompt: I32, cache: Cache) -> int:
        """Fill the empty `cache` with the longest kept beginning of `prompt` i32 [n], at most n - 1 tokens;
        returns how many. `cache.horizon` must be set."""
        path = self._path(prompt[: (len(prompt) - 1) // BLOCK * BLOCK], cache.horizon)
        if not path:
            return 0
        count, blocks = len(path) * BLOCK, np.asarray(path)
        for layer, kept in zip(cache.layers, self.layers, strict=True):
            for to, held in _arrays(layer, kept):
                _cut(to, count)[...] = held[blocks].swapaxes(0, 1)
        cache.place(np.arange(count, dtype=np.int32), prompt[:count])
        cache.append(count, True)
        cache.long = bool(self._changes) and cache.horizon > self._changes[0]
        return count

    def keep(self, tokens: I32, cache: Cache) -> None:
        """Keep what `cache` holds of the text `tokens` i32 [n], in whole blocks, as far as there is room."""
        if cache.long and cache.horizon <= self._changes[0]:
            return  # read again with other frequencies than it was announced with
        count = min(len(tokens), cache.length, self._same_frequencies(cache.horizon, cache.capacity))
        tokens = tokens[: count // BLOCK * BLOCK]
        path = self._path(tokens, cache.horizon)
        first = len(path)
        on_path = set(path)
        for start in range(first * BLOCK, len(tokens), BLOCK):
            block = self._room(on_path)
            if block is None:
                break
            before = path[-1] if path else self._root(cache.horizon)
            key = (before, tokens[start : start + BLOCK].tobytes())
            self._known[key] = block
            self._keys[block] = key
            path.append(block)
            on_path.add(block)
        self._touch(path)
        if len(path) == first:
            return
        blocks, stop = np.asarray(path[first:]), len(path) * BLOCK
        for layer, kept in zip(cache.layers, self.layers, strict=True):
            for held, to in _arrays(layer, kept):
                to[blocks] = _cut(held, stop)[:, first:].swapaxes(0, 1)

    def _path(self, tokens: I32, horizon: int) -> list[int]:
        """The known blocks of the beginning of `tokens`, and mark them used."""
        path: list[int] = []
        before = self._root(horizon)
        for start in range(0, len(tokens), BLOCK):
            found = self._known.get((before, tokens[start : start + BLOCK].tobytes()))
            if found is None:
                break
            path.append(found)
            before = found
        self._touch(path)
        return path

    def _touch(self, path: list[int]) -> None:
        for block in reversed(path):
            self._known.move_to_end(self._keys[block])

    def _room(self, busy: set[int]) -> int | None:
        """A free block, or the longest unused; None when only blocks in `busy` are left."""
        if self._free:
            return self._free.pop()
        if not self._known:
            return None
        key, block = next(iter(self._known.items()))
        if block in busy:
            return None
        del self._known[key], self._keys[block]
        return block

    def _root(self, horizon: int) -> int:
        """What the first block of a text stands behind: texts whose rotary frequencies differ share none."""
        beyond = [change for change in self._changes if horizon > change]
        return -1 - (horizon if beyond else 0)

    def _same_frequencies(self, horizon: int, capacity: int) -> int:
        """Entries whose frequencies are those of the text that was announced (see `Cache.horizon`)."""
        if not self._changes:
            return capacity
        return max(horizon, self._changes[0])


def _changes(architecture: Architecture) -> Iterator[int]:
    """The lengths from which on frequencies depend on the length of a text."""
    for block in architecture.blocks:
        rope = None if block.attention is None else block.attention.rope
        beyond = None if rope is None else rope.changes_at()
        if beyond is not None:
            yield beyond


def _arrays(layer: Any, kept: PoolLayer | None) -> Iterator[tuple[Any, Any]]:
    """(array of the cache, array of the store) of a block's keys, values and scales."""
    if layer is None or kept is None:
        return
    for name in ("keys", "values", "key_scales", "value_scales"):
        if getattr(layer, name) is not None:
            yield getattr(layer, name), getattr(kept, name)


def _cut(array: Any, count: int) -> Any:
    """The first `count` entries of [heads, capacity, ...] as [heads, blocks, BLOCK, ...]: a view."""
    heads, _, *rest = array.shape
    return array[:, :count].reshape(heads, count // BLOCK, BLOCK, *rest)
