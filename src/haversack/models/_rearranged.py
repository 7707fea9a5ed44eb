"""Tensors that lie in their file in another order than the kernels read them: what they are, and where."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from haversack.core.errors import UserError
from haversack.core.pack import TensorEntry, TensorSource
from haversack.models._architecture import Architecture


class Rearranged(TensorEntry, frozen=True):
    """A tensor whose bytes are put in order when it is read: `kind`, `group`, `layout` and `nbytes` are those
    of the result, `offset` and `stored` (bytes) say where it lies.

    `heads`: its rows belong to so many heads, each of which has its two halves interleaved in the file (0:
    rows are in order). `shift` is taken from every number of a vector. What it holds is never changed in
    value.
    """

    stored: int = 0
    heads: int = 0
    shift: float = 0.0


@runtime_checkable
class RearrangingSource(Protocol):
    """A source that holds `Rearranged` tensors; its `bytes` gives a copy of these, in order."""

    def read_into(self, name: str, out: Any) -> None:
        """Put any tensor, in order, into `out` u8 [nbytes], in pieces that leave the page cache."""


def refuse_rearranged(source: TensorSource, architecture: Architecture) -> None:
    """Raises UserError when tensors of `source` are put in order when they are read: what reads parts of a
    file again and again takes them as they lie."""
    count = sum(isinstance(source.tensors[name], Rearranged) for name in architecture.tensors())
    if count:
        raise UserError(
            f"{source.path} keeps {count} tensors in an order that is changed when they are read, which "
            "streamed weights are not; run it with --residency copied, or pack it first: haversack pack "
            f"{source.path} --device DEVICE.",
            field="residency",
            given="streamed",
            nearest="copied",
        )
