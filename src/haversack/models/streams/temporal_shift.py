"""Multi-scale temporal shift: channels of one unit meet those of its neighbours, at no cost of numbers.

Paper: MMEdge (arXiv 2510.25327), after the temporal shift module (Lin et al., 2019). Encoding unit by unit
loses what lies between units; a quarter of the channels is taken from one step back, one from one step
ahead, one from two steps back, one from two ahead. Where there is no such step, a channel keeps its own
value. Two steps need more than two units.

Here: the definition, and the same on a stream that grows: a new unit changes the last two columns alone, so
only they are computed again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SYSTEM = 6

F32 = NDArray[np.float32]
STEPS = (1, -1, 2, -2)
"""How far each fold of channels is moved; above 0: later."""


def folds(channels: int) -> list[slice]:
    """The four folds; where channels do not divide by four the last is the smallest."""
    size = -(-channels // 4)
    return [slice(min(at * size, channels), min((at + 1) * size, channels)) for at in range(4)]


def temporal_shift(x: F32) -> F32:
    """Features [steps, channels] shifted. One and two steps: no move by two.

    >>> temporal_shift(np.repeat(np.arange(5.0)[:, None], 4, 1)).T.tolist()[0]
    [0.0, 0.0, 1.0, 2.0, 3.0]
    """
    moved = x.copy()
    for fold, by in zip(folds(x.shape[1]), STEPS, strict=True):
        if len(x) <= abs(by) or (abs(by) == 2 and len(x) <= 2):
            continue
        if by > 0:
            moved[by:, fold] = x[:-by, fold]
        else:
            moved[:by, fold] = x[-by:, fold]
    return moved


class GrowingShift:
    """The shift of a stream: `push` one unit's features [channels]; `value` is the shift of all so far.

    Room for `most` units; a push computes the new column and at most the two before it.
    """

    def __init__(self, most: int, channels: int) -> None:
        self._x = np.zeros((most, channels), np.float32)
        self._moved = np.zeros_like(self._x)
        self.steps = 0
        self.computed = 0

    def push(self, features: F32) -> None:
        """One more unit. Raises IndexError when there is no room."""
        if self.steps == len(self._x):
            raise IndexError(f"the stream was made for {len(self._x)} units")
        self._x[self.steps] = features
        self.steps += 1
        # With the third unit the moves by two begin to count in all columns.
        start = 0 if self.steps <= 3 else self.steps - 3
        for at in range(start, self.steps):
            self._column(at)

    def _column(self, at: int) -> None:
        for fold, by in zip(folds(self._x.shape[1]), STEPS, strict=True):
            there = at - by
            fits = 0 <= there < self.steps and (abs(by) == 1 or self.steps > 2)
            self._moved[at, fold] = self._x[there if fits else at, fold]
        self.computed += 1

    @property
    def value(self) -> F32:
        """Shifted features [steps, channels]: the same bits as `temporal_shift` of all units."""
        return self._moved[: self.steps]

    @property
    def plain(self) -> F32:
        """Features [steps, channels] as they were pushed."""
        return self._x[: self.steps]
