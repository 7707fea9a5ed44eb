"""Keys and values of what a model has read: grows by steps, is cut back, and keeps chosen entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError, not_allowed
from haversack.kernels import CacheLayer, cache_gather
from haversack.models._architecture import Architecture
from haversack.run._window import BACK, Windows, stretches_of, whole

if TYPE_CHECKING:
    from haversack.run._step import Step

I32 = npt.NDArray[np.int32]

CACHE_TYPES = ("f32", "f16", "int8")


class Cache:
    """One layer of keys and values a block, for `capacity` entries of `kind` f32, f16 or int8.

    `length` entries are held, `positions` i32 [capacity] says where each stood. A layer that has one of
    `windows` keeps that of the text and little more (see `_window`): after any steps the text can be cut back
    by `back` entries, or to nothing. `horizon` is the length of the text that is being read (0: unknown);
    rotary scalings that depend on the length of a text take it from here, so that a prompt gives the same
    bits in one piece or in many. Models that read a text again when it outgrows a length (see `_switch`) find
    its `tokens` i32 [capacity] here; `long` says which frequencies the entries have. Positions before
    `sparse_from` read row-sparse weights whole (run/forms/row_sparse.py); a prefill method sets it to the end
    of its prompt. `gaps` is what a sparse attention method remembers of the text (None: nothing). `layers`:
    memory that is there already (default: its own), in which every layer keeps everything. Where an encoder
    reads a text before, `states` f32 [n, width] are its last ones until a step has made keys and values of
    them, which `cross` holds by block; a prompt takes no entries then (`apart`).
    """

    def __init__(
        self,
        architecture: Architecture,
        capacity: int,
        kind: str = "f32",
        layers: list[CacheLayer | None] | None = None,
        windows: Windows | None = None,
        back: int = BACK,
    ) -> None:
        if kind not in CACHE_TYPES:
            raise not_allowed("cache_type", kind, CACHE_TYPES)
        if capacity < 1:
            raise UserError(
                f"a cache of {capacity} tokens holds nothing.",
                field="context_length",
                given=capacity,
                nearest=1,
            )
        self.capacity = capacity
        self.kind = kind
        self.length = 0
        self.horizon = 0
        self.sparse_from = 0
        self.gaps: Any = None
        self.apart = architecture.reader is not None
        self.states: Any = None
        self.cross: dict[int, CacheLayer] = {}
        self.linear = True
        self.positions: I32 = np.zeros(capacity, np.int32)
        self.tokens: I32 | None = np.full(capacity, -1, np.int32) if architecture.changes_at else None
        self.long = False
        if windows is None or layers is not None:
            windows = whole(architecture)
        self.stretches = stretches_of(windows, capacity, back)
        self._distinct = list(dict.fromkeys(self.stretches.values()))
        written = {block.index for block in architecture.writing}
        self.layers: list[CacheLayer | None] = layers or [
            None
            if block.attention is None or block.index not in written
            else CacheLayer.empty(
                block.attention.key_value_heads,
                self.stretches[block.index].room if block.index in self.stretches else capacity,
                block.attention.head_width,
                kind,
            )
            for block in architecture.blocks
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and scales at full capacity."""
        return sum(layer.nbytes for layer in self.layers if layer is not None)

    def require(self, count: int) -> None:
        """Raises UserError when `count` more entries do not fit."""
        if self.length + count > self.capacity:
            raise UserError(
                f"{self.length} tokens are held and {count} more do not fit in a context of {self.capacity}.",
                field="context_length",
                given=self.capacity,
                nearest=self.length + count,
            )

    def place(self, positions: I32, tokens: I32) -> None:
        """Note where the next entries stand, positions [n], and what they are, before a step writes them."""
        self.positions[self.length : self.length + len(positions)] = positions
        if self.tokens is not None:
            self.tokens[self.length : self.length + len(tokens)] = tokens

    def append(self, count: int, linear: bool) -> None:
        """Count the `count` entries that a step has written; `linear`: each stands at its own index."""
        self.length += count
        self.linear = linear

    def plan(self, steps: Sequence[Step]) -> None:
        """Give the layers with a window room for `steps`, one text's in order; see `Stretch.plan`."""
        for stretch in self._distinct:
            stretch.plan(steps)

    def reach(self, length: int) -> int:
        """How many of the first `length` entries the cache can be cut back to: `length`, unless a layer with
        a window no longer holds what the next token would see."""
        while True:
            reached = min((stretch.reach(length) for stretch in self._distinct), default=length)
            if reached == length:
                return length
            length = reached

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` entries. Raises UserError for more than are held, and for less
        than layers with a window can go on from (see `reach`).
        """
        if not 0 <= length <= self.length:
            raise UserError(
                f"the cache holds {self.length} entries and cannot be cut to {length}.",
                field="length",
                given=length,
                nearest=max(0, min(length, self.length)),
            )
        self._require_reach(length)
        self.length = length
        self.gaps = None
        self.sparse_from = min(self.sparse_from, length)
        if length == 0:
            self.horizon = 0
        self._check_linear()

    def gather(self, indices: Sequence[int] | I32) -> None:
        """Keep the entries `indices` (ascending) and forget the others; entry indices[i] becomes entry i.

        Raises UserError for others, and for entries that layers with a window no longer hold.
        """
        kept = np.asarray(indices, np.int64)
        if kept.ndim != 1 or (
            kept.size and (kept[0] < 0 or kept[-1] >= self.length or bool((np.diff(kept) <= 0).any()))
        ):
            raise UserError(
                f"gather takes ascending indices of the {self.length} entries held.", field="indices"
            )
        moved = np.flatnonzero(kept != np.arange(len(kept)))
        first = int(moved[0]) if moved.size else len(kept)
        self._require_reach(len(kept))
        if any(stretch.shift and first < stretch.base for stretch in self._distinct):
            self._refuse(first, max(stretch.base for stretch in self._distinct))
        if moved.size:
            for index, layer in enumerate(self.layers):
                if layer is not None:
                    stretch = self.stretches.get(index)
                    shift = 0 if stretch is None else stretch.shift_of(index)
                    cache_gather(layer, first - shift, kept[first:] - shift)
            self.positions[first : len(kept)] = self.positions[kept[first:]]
            if self.tokens is not None:
                self.tokens[first : len(kept)] = self.tokens[kept[first:]]
        self.length = len(kept)
        self.gaps = None
        self._check_linear()

    def _require_reach(self, length: int) -> None:
        if self._distinct and self.reach(length) != length:
            self._refuse(length, max(stretch.least for stretch in self._distinct))

    def _refuse(self, length: int, least: int) -> None:
        raise UserError(
            f"layers with a window no longer hold what a text of {length} entries goes on from; cut the "
            f"cache to {least} or more, cut it to 0 and read the text again, or make it with whole=True.",
            field="length",
            given=length,
            nearest=least if least <= self.length else 0,
        )

    def _check_linear(self) -> None:
        if not self.linear:
            self.linear = bool((self.positions[: self.length] == np.arange(self.length)).all())
