"""What the engine asks of wherever weights live, and the simple case: all of them bound once."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from haversack.core.pack import TensorSource
from haversack.kernels import Matrix
from haversack.models._architecture import Architecture
from haversack.run._weights import Bytes, Steady, Weights, bind

I32 = npt.NDArray[np.int32]
Lines = tuple[tuple[str, int], ...]


class Held(Protocol):
    """The weights of one opened model."""

    top: Weights
    """What stays in memory outside the blocks: the final norm, the head's bias."""

    def weights(self, block: int, names: Sequence[str] = ()) -> AbstractContextManager[Weights]:
        """The tensors of a block (all, or at least `names`), valid inside the `with`."""

    def want(self, block: int, ids: Sequence[int] = (), priority: int = 0) -> None:
        """A hint that `block` (and its parts `ids`) will be asked for soon; a lower priority may wait."""

    def rows(self, tokens: I32, table: str | None = None) -> tuple[Matrix, I32]:
        """A matrix that holds the rows `tokens` i32 [n] of the matrix `table` (None: the embedding), and
        their rows in it.
        """

    def head(self) -> Iterator[tuple[int, Matrix]]:
        """The output matrix in parts: (its first token, rows of the matrix); each valid until the next."""

    def close(self) -> None:
        """Give everything back."""


GUESSED, CHOSEN = 0, 1
"""Priorities of `want`: experts that will perhaps be chosen, and those that a router chose."""


class Experts(Protocol):
    """What a residency has beside `Held` that keeps experts apart from their blocks: then `weights` of a
    block lacks them.

    A step asks for a block's chosen experts in the order in which they were announced, once for each part of
    at most 256 tokens.
    """

    def expert(self, block: int, expert: int) -> AbstractContextManager[Weights]:
        """The tensors of one expert, valid inside the `with`."""

    def routed(self, routing: Any) -> None:
        """What the router of a block chose for each token (`layers.mixture.Routing`); `want` follows."""

    def want(self, block: int, ids: Sequence[int] = (), priority: int = 0) -> None:
        """The experts `ids` of `block` will be asked for (CHOSEN: certainly, in this order)."""


class Telling(Protocol):
    """What a residency has beside `Held` that tells how a run went; `told` is its field in `run --json`."""

    told: str

    def record(self, seconds: float | None = None) -> dict[str, Any]:
        """Of a run that took `seconds`."""

    def words(self, seconds: float | None = None) -> str:
        """The same in a line or two."""


def telling(held: Any) -> Telling | None:
    """`held` where it tells how a run went, else None."""
    return held if hasattr(held, "told") else None


def experts_of(held: Any) -> Experts | None:
    """`held` where it keeps experts apart, else None."""
    return held if hasattr(held, "expert") else None


class Residency(Protocol):
    """Fills run: residency."""

    def open(self, source: TensorSource, architecture: Architecture, limit: int | None = None) -> Held:
        """Bring the weights where they will live, in at most `limit` bytes (None: no limit)."""

    def planned(
        self, blocks: Sequence[int], top: int, files: int = 1, limit: int | None = None, aside: int = 0
    ) -> Lines:
        """(label, bytes) of what will be resident: `blocks` are the stored bytes of each block, `top` those
        of everything outside them, `files` how many files hold them, `aside` what streamed weights take
        beside their buffers (see `_units.aside_nbytes`).
        """


class AllHeld:
    """Every tensor bound once, but those of blocks named in `without`; `data` gives a tensor's bytes
    (default: the mapped file).
    """

    def __init__(
        self,
        source: TensorSource,
        architecture: Architecture,
        data: Bytes | None = None,
        without: Container[str] = (),
    ) -> None:
        self.top: Weights = bind(source, architecture.top_tensors(), data)
        self._table: Matrix = self.top[architecture.embedding]
        self._head: Matrix = self.top[architecture.head.weight]
        self._blocks: list[nullcontext[Steady]] = [
            nullcontext(Steady(bind(source, (n for n in block.tensors() if n not in without), data)))
            for block in architecture.blocks
        ]

    def weights(self, block: int, names: Sequence[str] = ()) -> AbstractContextManager[Weights]:
        """See Held."""
        return self._blocks[block]

    def want(self, block: int, ids: Sequence[int] = (), priority: int = 0) -> None:
        """Nothing to do: every block is there."""

    def rows(self, tokens: I32, table: str | None = None) -> tuple[Matrix, I32]:
        """See Held."""
        return (self._table if table is None else self.top[table]), tokens

    def head(self) -> Iterator[tuple[int, Matrix]]:
        """See Held; one part."""
        yield 0, self._head

    def close(self) -> None:
        """Drop the bindings."""
        self._blocks = []
