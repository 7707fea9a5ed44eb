"""A mixture whose experts arrive plane by plane, in any order of experts.

What a gate or up matrix makes of a token is the sum of its planes' products, so each is added when its plane
arrives. When the last plane that a token wants is there, the token goes through the activation and, plane by
plane, through the down matrix. Experts' results wait until all are done and are then added in the order of
their numbers: the bits are those of the same experts in memory (run/forms/nested.py), whatever arrived when.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haversack.kernels import gate
from haversack.run._products import F32

if TYPE_CHECKING:
    from haversack.models._architecture import FeedForward, Mixture
    from haversack.run._forward import Call
    from haversack.run.layers.mixture import Choice

I64 = npt.NDArray[np.int64]


class Pending:
    """The tokens of one expert, those that want most planes first, and how far they are."""

    def __init__(
        self, expert: FeedForward, x: F32, rows: I64, shares: F32, levels: I64, nested: bool
    ) -> None:
        order = np.argsort(-levels, kind="stable")
        self.expert, self.nested = expert, nested
        self.rows, self.shares, self.levels = rows[order], shares[order][:, None], levels[order]
        self.x = x[self.rows]
        self.out = np.zeros((len(rows), expert.down.outputs), np.float32)
        self._up = np.zeros((len(rows), expert.width), np.float32)
        self._gate = None if expert.gate is None else np.zeros_like(self._up)
        self._down: list[Any] = []
        # how many tokens want each level or more
        wanted = np.arange(int(self.levels[0]) + 1)
        self._until = np.searchsorted(-self.levels, -wanted, side="right").tolist()

    def _from(self, level: int) -> int:
        """How many tokens want `level` or more; they come first."""
        return self._until[level] if level < len(self._until) else 0

    def take(self, level: int, planes: Mapping[str, Any]) -> None:
        """The plane of `level` is there: matrix name -> Plane."""
        done = slice(self._from(level + 1), self._from(level))
        part = slice(0, done.stop) if self.nested else done
        if part.start == part.stop:
            return
        planes[self.expert.up.weight].add(self.x[part], self._up[part])
        if self._gate is not None and self.expert.gate is not None:
            planes[self.expert.gate.weight].add(self.x[part], self._gate[part])
        self._down.append(planes[self.expert.down.weight])
        if done.start < done.stop:
            self._finish(done)
        if level + 1 == len(self._until):
            self._down.clear()  # whose memory is the buffer's again

    def _finish(self, part: slice) -> None:
        inner, up = self._up[part], None
        if self._gate is not None:
            inner, up = self._gate[part], inner
        gate(inner, up, self.expert.activation, out=inner)
        inner *= self.shares[part]
        for plane in self._down if self.nested else self._down[-1:]:
            plane.add(inner, self.out[part])


def by_plane(layer: Mixture, x: F32, choice: Choice, call: Call, to: F32) -> None:
    """to f32 [n, width] += what the chosen experts make of x f32 [n, width]."""
    from haversack.run.layers.mixture import by_expert

    held: Any = call.experts
    pending: dict[int, Pending] = {}
    for number, rows, places in by_expert(choice.experts):
        if choice.levels is None:
            levels = np.full(len(rows), held.last, np.int64)
        else:
            levels = choice.levels[rows, places].astype(np.int64)
        shares = choice.shares[rows, places]
        pending[number] = Pending(layer.experts[number], x, rows, shares, levels, held.nested)
    for number, level, planes in held.arriving(call.block):
        pending[number].take(level, planes)
    for one in pending.values():
        to[one.rows] += one.out
