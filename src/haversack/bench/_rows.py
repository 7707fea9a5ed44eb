"""What a bench claims (`Row`, `Bar`), what a measurement brought (`Outcome`), and the verdict on it.

The verdict is computed here and nowhere else: a measuring function hands over numbers, never `holds`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from haversack.core.errors import HaversackError
from haversack.core.measurement import Spread

KINDS = ("quality", "time", "memory", "bytes")
JUDGED = ("ratio", "ours")
MIN_PAIRS = 7


class Unavailable(HaversackError):  # noqa: N818 - a verdict, not a fault
    """A row that cannot be measured here (a peer or data is absent); its text is the reason."""


@dataclass(frozen=True)
class Bar:
    """What the judged number is held against: `op` is `<=`, `>=`, `==` or `in` (a pair: from, to)."""

    op: str
    value: float | tuple[float, float]

    def __post_init__(self) -> None:
        if self.op not in ("<=", ">=", "==", "in"):
            raise ValueError(f"a bar's op is <=, >=, == or in, not {self.op!r}")
        if (self.op == "in") != isinstance(self.value, tuple):
            raise ValueError(f"a bar with op {self.op!r} does not take the value {self.value!r}")

    def holds(self, measured: float) -> bool:
        """Whether `measured` meets the bar; what is not a number never does."""
        if math.isnan(measured):
            return False
        if isinstance(self.value, tuple):
            return self.value[0] <= measured <= self.value[1]
        if self.op == "<=":
            return measured <= self.value
        return measured >= self.value if self.op == ">=" else measured == self.value

    def record(self) -> dict[str, Any]:
        return {"op": self.op, "value": list(self.value) if isinstance(self.value, tuple) else self.value}


@dataclass(frozen=True)
class Row:
    """One claim. `judged` says which number the bar judges: the ratio ours / baseline, or ours alone.

    `kind` is quality, time, memory or bytes. `published` is what the source reports, as text or number.
    `quick` rows are measured by `--quick`; each kind that a bench claims needs one. A row without a bar
    informs: its `holds` stays null.
    """

    id: str
    claim: str
    unit: str
    kind: str
    bar: Bar | None = None
    judged: str = "ratio"
    published: str | float | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"row {self.id}: kind is one of {KINDS}, not {self.kind!r}")
        if self.judged not in JUDGED:
            raise ValueError(f"row {self.id}: judged is one of {JUDGED}, not {self.judged!r}")


@dataclass(frozen=True)
class Side:
    """One side of a row: its name and its measured values, in the row's unit."""

    name: str
    values: tuple[float, ...]

    def record(self) -> dict[str, Any]:
        spread = Spread.of(self.values)
        return {
            "name": self.name,
            "median": spread.median,
            "min": spread.min,
            "max": spread.max,
            "n": spread.n,
        }


@dataclass(frozen=True)
class Outcome:
    """What was measured for one row. Values of equal index are a pair, taken next to each other."""

    ours: Side
    baseline: Side | None = None
    note: str = ""

    @classmethod
    def of(
        cls, taken: Mapping[str, Sequence[float]], *, ours: str, baseline: str | None = None, note: str = ""
    ) -> Outcome:
        """Pick two sides out of `Run.interleave`'s answer."""
        sides = {name: Side(name, tuple(float(value) for value in values)) for name, values in taken.items()}
        return cls(sides[ours], sides[baseline] if baseline is not None else None, note)

    @classmethod
    def single(
        cls,
        ours: float,
        baseline: float | None = None,
        *,
        name: str = "haversack",
        against: str = "",
        note: str = "",
    ) -> Outcome:
        """One number for each side: sizes, counts, losses of one evaluation."""
        other = Side(against, (float(baseline),)) if baseline is not None else None
        return cls(Side(name, (float(ours),)), other, note)

    @property
    def ratio(self) -> float | None:
        """Ours / baseline: the median of the pairs' ratios; None without a baseline or over a zero."""
        if self.baseline is None:
            return None
        ours, baseline = self.ours.values, self.baseline.values
        if len(ours) != len(baseline):
            ours, baseline = (statistics.median(ours),), (statistics.median(baseline),)
        if any(value == 0 for value in baseline):
            return None
        return statistics.median(a / b for a, b in zip(ours, baseline, strict=True))


Outcomes = Mapping[str, "Outcome | Unavailable"]


def judge(row: Row, outcome: Outcome, *, seed: int | None = None) -> dict[str, Any]:
    """The row of `bench --json` for what was measured.

    Raises ValueError for a timing row with fewer than seven pairs: such a row would claim more than it knows.
    """
    ratio = outcome.ratio
    if row.kind == "time" and row.bar is not None:
        fewest = min(len(side.values) for side in (outcome.ours, outcome.baseline) if side is not None)
        if fewest < MIN_PAIRS:
            raise ValueError(f"row {row.id}: a timing needs at least {MIN_PAIRS} pairs, got {fewest}")
    judged = ratio if row.judged == "ratio" else statistics.median(outcome.ours.values)
    note = outcome.note
    if seed is not None:
        note = f"{note}; seed {seed}" if note else f"seed {seed}"
    return blank(row) | {
        "baseline": outcome.baseline.record() if outcome.baseline else None,
        "ours": outcome.ours.record(),
        "ratio": ratio,
        "holds": row.bar.holds(judged) if row.bar is not None and judged is not None else None,
        "source": "measured",
        "note": note,
    }


def blank(row: Row, note: str = "", *, holds: bool | None = None) -> dict[str, Any]:
    """The row as declared, with no measurement: `holds` is null unless the measurement itself broke."""
    return {
        "id": row.id,
        "claim": row.claim,
        "published": row.published,
        "baseline": None,
        "ours": None,
        "ratio": None,
        "unit": row.unit,
        "judged": row.judged,
        "bar": row.bar.record() if row.bar else None,
        "holds": holds,
        "source": "measured",
        "note": note,
    }
