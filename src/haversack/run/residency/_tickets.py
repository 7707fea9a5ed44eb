"""What is under way: one restoration of a unit, and the pieces that it is read in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haversack.formats.sealed import BLOCK
from haversack.run.residency._regions import Region
from haversack.run.residency._restoration import Span


class Ticket:
    """One restoration of a unit into a region. `left`: blocks to come; `states`: 0 to come, 1 under way, 2
    restored, for each span; `flying`: tasks being done. A `dead` one is not wanted any more.
    """

    def __init__(self, unit: int, key: Any, spans: Sequence[Span]) -> None:
        self.unit, self.key, self.spans = unit, key, spans
        self.region: Region | None = None
        self.number = -1
        self.left = sum(span.count for span in spans)
        self.states = [bytearray(span.count) for span in spans]
        self.flying = 0
        self.dead = False
        self.ready = False


class Piece:
    """Blocks that are read at once: `count` from `first` of a ticket's span number `span`, `nbytes` for
    byte `to` of its region."""

    def __init__(self, ticket: Ticket, span: int, first: int, count: int) -> None:
        self.span, self.first, self.count = span, first, count
        whole = ticket.spans[span]
        begin = (first - whole.first) * BLOCK
        self.to, self.nbytes = whole.at + begin, min(count * BLOCK, whole.nbytes - begin)
        self.claimed: list[int] = []
        """Blocks to decrypt, the last first; nobody else will."""
        self.buffer: Any = None
        self.data: Any = None

    def claim(self, ticket: Ticket) -> None:
        """Take the blocks that are still to come, once."""
        states, first = ticket.states[self.span], ticket.spans[self.span].first
        for block in reversed(range(self.first, self.first + self.count)):
            if states[block - first] == 0:
                states[block - first] = 1
                self.claimed.append(block)

    def restored(self, ticket: Ticket) -> bool:
        """Whether all its blocks are there already."""
        at = self.first - ticket.spans[self.span].first
        return min(ticket.states[self.span][at : at + self.count], default=2) == 2
