"""A lazy backend, as array frameworks with deferred execution are: `run` records operations, nothing more.

Whoever times it without forcing the result times the recording: the trap that the slope check is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench.mlx_transformers_benchmark._backends import Batch, Checkpoint
from haversack.bench.mlx_transformers_benchmark._reference import Operations, encode

F32 = npt.NDArray[np.float32]


class Node:
    """An operation that was asked for; `value` computes it, and what it needs, once."""

    __slots__ = ("_inputs", "_operation", "_value")

    def __init__(self, operation: Callable[..., Any], *inputs: Any) -> None:
        self._operation: Callable[..., Any] | None = operation
        self._inputs = inputs
        self._value: Any = None

    def value(self) -> Any:
        """The result. Inputs first, on a stack of our own: graphs are deeper than Python's."""
        waiting = [self]
        while waiting:
            node = waiting[-1]
            missing = [one for one in node._inputs if isinstance(one, Node) and one._operation is not None]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if node._operation is not None:
                given = [one._value if isinstance(one, Node) else one for one in node._inputs]
                node._value = node._operation(*given)
                node._operation, node._inputs = None, ()
        return self._value


class Recorded(Operations):
    """The operations, recorded."""

    def rows(self, table: F32, numbers: Any) -> Any:
        """See Operations."""
        return Node(super().rows, table, numbers)

    def add(self, first: Any, second: Any) -> Any:
        """See Operations."""
        return Node(super().add, first, second)

    def linear(self, x: Any, weight: F32, bias: F32) -> Any:
        """See Operations."""
        return Node(super().linear, x, weight, bias)

    def norm(self, x: Any, weight: F32, bias: F32, eps: float) -> Any:
        """See Operations."""
        return Node(super().norm, x, weight, bias, eps)

    def activation(self, x: Any, kind: str) -> Any:
        """See Operations."""
        return Node(super().activation, x, kind)

    def attention(self, query: Any, key: Any, value: Any, mask: F32, heads: int) -> Any:
        """See Operations."""
        return Node(super().attention, query, key, value, mask, heads)


class LazyModel:
    """The checkpoint, recorded at `run`; `forced` says whether `finish` computes."""

    def __init__(self, checkpoint: Checkpoint, forced: bool) -> None:
        self.checkpoint = checkpoint
        self.forced = forced

    def run(self, batch: Batch) -> Node:
        """The last operation."""
        found: Node = encode(Recorded(), self.checkpoint, batch)
        return found

    def finish(self, result: Node) -> None:
        """Compute it, unless this is the demonstration of leaving that out."""
        if self.forced:
            result.value()

    def array(self, result: Node) -> F32:
        """See Loaded."""
        return np.asarray(result.value(), np.float32)


class LazyNumpy:
    """Deferred numpy, forced inside the timer as it must be."""

    name = "lazy"
    exact = True
    forced = True

    def unavailable(self) -> str | None:
        """Never."""
        return None

    def load(self, checkpoint: Checkpoint, threads: int) -> LazyModel:
        """See Backend."""
        return LazyModel(checkpoint, self.forced)


class LazyUnsynchronised(LazyNumpy):
    """The same with the forcing left out: its times are worthless, and the slope check says so."""

    name = "lazy-unsynchronised"
    forced = False
