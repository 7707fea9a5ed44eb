"""Calibrating the experts of a mixture, each on the tokens that chose it.

One pass of the calibration text through the part of a block before its mixture, as compressed, gives what the
mixture reads and what its router chooses; both are kept while the block's experts are compressed, one after
the other, on the rows that chose them. The input of an expert's down matrix is taken times the token's share,
as the engine multiplies it.

An expert that no token of the text chose has no statistics. It is fitted to inputs that all matter alike
(unit vectors), which makes GPTQ and its kin round to nearest, and is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from haversack.shrink._activations import Activations
from haversack.shrink._precision import Gathering, InputStatistics
from haversack.shrink._rounding import F32

I32 = NDArray[np.int32]
PANEL = 256


class ExpertInputs:
    """The experts of `block` on the calibration text whose hidden states before it are `states`; a context
    manager. `walk` is any Walk: one without `experts` (shrink/_language.py has it) has none.

    `unreached` are the names of the experts that no token chose, as far as statistics were asked for.
    """

    def __init__(self, walk: Any, block: int, states: Activations, folder: Path, limit_mib: float) -> None:
        self.unreached: list[str] = []
        self._walk, self._block, self._states = walk, block, states
        self._numbers: Mapping[str, int] = getattr(walk, "experts", lambda block: {})(block)
        self._folder, self._limit_mib = folder, limit_mib
        self._inputs: Activations | None = None
        self._choices: list[tuple[I32, F32]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._inputs is not None:
            self._inputs.__exit__(*error)

    def statistics(
        self, first: str, weights: Mapping[str, Any], needs: frozenset[str]
    ) -> InputStatistics | None:
        """What the tokens that chose the expert of the matrix `first` send into it; None for a matrix of no
        expert. `weights` are the block's as far as it is compressed: all before its experts.
        """
        expert = self._numbers.get(first)
        if expert is None:
            return None
        inputs = self._inputs or self._gather(weights)
        chosen = [np.nonzero(experts == expert) for experts, _ in self._choices]
        tokens = sum(len(rows) for rows, _ in chosen)
        columns = self._walk.shape(first)[1]
        if tokens == 0:
            name = first.rpartition(f".{expert}.")[0] + f".{expert}"
            self.unreached += [] if name in self.unreached else [name]
            return all_alike(columns, needs, first)
        found = Gathering(columns, needs, tokens)

        def see(name: str, x: F32) -> None:
            if name == first:
                found.add(x)

        for index, (rows, places) in enumerate(chosen):
            if len(rows):
                x = np.ascontiguousarray(inputs.read(index)[rows])
                shares = self._choices[index][1][rows, places]
                self._walk.expert(self._block, expert, x, shares, weights, see)
        return found.finish(first)

    def _gather(self, weights: Mapping[str, Any]) -> Activations:
        """What the mixture reads of every piece of the text; its choices are kept beside it."""
        self._inputs = Activations(*self._states.shape, self._folder, self._limit_mib)
        for index in range(len(self._states)):
            x, choice = self._walk.routed(self._block, self._states.read(index), weights)
            self._inputs.write(index, x)
            self._choices.append((choice.experts, choice.shares))
        return self._inputs


def all_alike(columns: int, needs: frozenset[str], name: str) -> InputStatistics:
    """The statistics of the `columns` unit vectors: no input matters more than another, and none goes with
    another."""
    found = Gathering(columns, needs, columns)
    for start in range(0, columns, PANEL):
        count = min(PANEL, columns - start)
        found.add(np.eye(count, columns, start, dtype=np.float32))
    return found.finish(name)
