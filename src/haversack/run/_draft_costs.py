"""What a drafted token costs beside a pass of the large model, by the run itself, and whether drafting pays.

Everything here is measured times or, where a run must not depend on the clock, fixed numbers: sampling by
rejection gives other tokens (of the same distribution) when other trees are drafted.
"""

from __future__ import annotations

DECAY = 0.9
"""What one observation leaves of those before it."""
FIRST_REST, LONGEST_REST = 4, 256
"""Passes without drafts when they did not pay, doubled each time up to the second."""
JUDGED = 3
"""Passes with drafts before they are judged."""
PROBED = 2
"""The same after a rest."""


class Line:
    """Seconds of a step over n tokens as `first` + `more` (n - 1): a line through what was observed, the
    newest weighing most."""

    def __init__(self) -> None:
        self._sums = [0.0] * 5  # of weights, n - 1, its squares, seconds, seconds (n - 1)

    def observe(self, seconds: float, tokens: int) -> None:
        """A step over `tokens` tokens took `seconds`."""
        n = float(tokens - 1)
        for at, value in enumerate((1.0, n, n * n, seconds, n * seconds)):
            self._sums[at] = DECAY * self._sums[at] + value

    @property
    def more(self) -> float:
        """What one more token adds; 0 while all steps were alike."""
        w, n, nn, s, ns = self._sums
        spread = w * nn - n * n
        return max(0.0, (w * ns - n * s) / spread) if spread > 1e-6 * max(1.0, w * nn) else 0.0

    @property
    def first(self) -> float:
        """A step over one token; 0 before the first."""
        w, n, _, s, _ = self._sums
        return max((s - self.more * n) / w, 0.05 * s / w) if w else 0.0


class Costs:
    """What drafting and verifying cost: a step of the small model, and the line of the large one's passes.

    `fixed`: (step, pass), which no observation changes.
    """

    def __init__(self, fixed: tuple[float, float] | None = None) -> None:
        self.fixed = fixed
        self._line = Line()
        self._small, self._steps = 0.0, 0.0

    def drafted(self, seconds: float, steps: int) -> None:
        """`steps` steps of the small model took `seconds`."""
        if steps:
            self._small = DECAY * self._small + seconds
            self._steps = DECAY * self._steps + steps

    def passed(self, seconds: float, tokens: int) -> None:
        """A pass over `tokens` tokens took `seconds`."""
        self._line.observe(seconds, tokens)

    @property
    def small(self) -> float:
        """A step of the small model."""
        if self.fixed is not None:
            return self.fixed[0]
        return self._small / self._steps if self._steps else 0.0

    @property
    def more(self) -> float:
        """What one more token adds to a pass."""
        return 0.0 if self.fixed is not None else self._line.more

    @property
    def first(self) -> float:
        """A pass over one token; 0 before the first."""
        return self._line.first if self.fixed is None else self.fixed[1]

    @property
    def wider(self) -> float:
        """What one more token adds to a pass, in passes over one; at most as much as a drafted token where
        that is not observed. 0 while unknown."""
        if self.fixed is not None:
            return self.fixed[0] / self.fixed[1]
        return self.more / self.first if self.first else 0.0

    @property
    def ratio(self) -> float:
        """What a drafted token costs, in passes over one token: it pays to go on while the chance that the
        next token is right exceeds this. 0 while unknown."""
        return (self.small + self.more) / self.first if self.first else 0.0


class Pause:
    """Leaves drafting out for a while when passes with drafts gave fewer tokens a second than passes without
    would."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._rest, self._length = 0, FIRST_REST
        self._tokens = self._seconds = 0.0
        self._count = 0

    @property
    def resting(self) -> bool:
        """True when the next pass is to be without drafts."""
        return self._rest > 0

    def passed(self, tokens: int, drafted: int, steps: int) -> None:
        """A pass over `drafted` drafts gave `tokens` tokens, after `steps` steps of the small model."""
        if self._rest:
            self._rest -= 1
            return
        costs = self._costs
        self._tokens = DECAY * self._tokens + tokens
        self._seconds = DECAY * self._seconds + costs.first + costs.more * drafted + costs.small * steps
        self._count += 1
        if self._count < JUDGED:
            return
        if self._tokens * costs.first >= self._seconds:
            self._length = FIRST_REST
            return
        self._rest, self._length = self._length, min(2 * self._length, LONGEST_REST)
        self._count, self._tokens, self._seconds = JUDGED - PROBED, 0.0, 0.0
