"""Runs a bench: interleaves the timings, judges the rows, fills in stored ones, keeps to the time allowed.

Full runs (at most 45 minutes) are stored; `quick` runs (at most 60 seconds, fresh seed) measure the rows
declared quick, at least one of each kind the bench claims, and show the rest as stored.
"""

from __future__ import annotations

import fnmatch
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from haversack.bench import _store
from haversack.bench._rows import MIN_PAIRS, Outcome, Outcomes, Row, Unavailable, blank, judge
from haversack.core.errors import UserError, nearest_name
from haversack.core.measurement import commit, machine
from haversack.core.systems import NOT_MEASURED

T = TypeVar("T")

QUICK_SECONDS = 60.0
FULL_SECONDS = 45 * 60.0
FULL_SEED = 20260


@dataclass
class Run:
    """What a measuring function gets: the mode, a seed (fresh in quick runs, fixed in full), the clock."""

    quick: bool
    seed: int
    deadline: float
    say: Callable[[str], None] = lambda text: None

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def interleave(self, sides: Mapping[str, Callable[[], T]], rounds: int = MIN_PAIRS) -> dict[str, list[T]]:
        """Call every side once a round, the order reversed from round to round; the values by side.

        Values of equal index stand next to each other in time, so that drift of the machine hits both.
        """
        taken: dict[str, list[T]] = {name: [] for name in sides}
        order = list(sides)
        for _ in range(rounds):
            for name in order:
                taken[name].append(sides[name]())
            order.reverse()
        return taken


@dataclass(frozen=True)
class Measure:
    """One measuring function, the rows it answers for and the seconds it takes on two cores."""

    function: Callable[[Run], Outcomes]
    rows: tuple[Row, ...]
    seconds: float
    quick_seconds: float
    watches: tuple[str, ...]

    @property
    def quick(self) -> bool:
        return any(row.quick for row in self.rows)


@dataclass
class Bench:
    """A system's claims. `watches` are the files a stored result depends on: patterns under the package
    (`kernels/*.py`) or, starting with `native/`, under the repository; the bench's own file is one of them.
    """

    slug: str
    watches: tuple[str, ...]
    number: int | None = None
    measures: list[Measure] = field(default_factory=list)

    def measure(
        self,
        *rows: Row,
        seconds: float,
        quick_seconds: float = 10.0,
        watches: tuple[str, ...] | None = None,
    ) -> Callable[[Callable[[Run], Outcomes]], Callable[[Run], Outcomes]]:
        """Declare that the decorated function measures `rows`; `watches` replaces the bench's for them.

        The function returns an `Outcome` or an `Unavailable` for each row it could settle (in a quick run: of
        the quick ones), or raises Unavailable or UserError for all of them.
        """
        taken = {row.id for row in self.rows}
        for row in rows:
            if row.id in taken:
                raise ValueError(f"bench {self.slug} declares the row {row.id} twice")
            taken.add(row.id)

        def declare(function: Callable[[Run], Outcomes]) -> Callable[[Run], Outcomes]:
            files = self.watches if watches is None else watches
            self.measures.append(Measure(function, rows, seconds, quick_seconds, files))
            return function

        return declare

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for measure in self.measures for row in measure.rows)


def run_bench(
    bench: Bench,
    *,
    quick: bool = False,
    rows: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure `bench` and return the document of `bench --json`; a full run is stored after each measurement,
    so that one that is killed keeps what it had.

    `rows` is a glob over row ids: measuring functions none of whose rows match are not run, their rows are
    shown as stored. A row that cannot be measured here keeps its stored values, or has `holds` null, with
    the reason in its note. A measuring function that breaks gives its rows `holds` false and the error as
    their note. Raises UserError when `rows` matches nothing.
    """
    wanted = _wanted(bench, quick, rows)
    start = time.monotonic()
    limit = QUICK_SECONDS if quick else FULL_SECONDS
    seed = secrets.randbits(31) if quick else FULL_SEED
    stored = _store.stored_result(bench.slug)
    kept = {row["id"]: row for row in stored["rows"]} if stored else {}
    fresh: dict[str, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    watches = {row.id: measure.watches for measure in bench.measures for row in measure.rows}

    def report() -> dict[str, Any]:
        return {
            "system": bench.slug,
            "number": bench.number,
            "mode": "quick" if quick else "full",
            "machine": machine(),
            "commit": commit(),
            "seconds": round(time.monotonic() - start, 1),
            "rows": [_shown(row, fresh, kept, reasons) for row in bench.rows],
        }

    def keep() -> dict[str, Any]:
        document = report()
        _store.store(bench.slug, document, fresh, watches)
        return document

    for measure in _quick_order(wanted) if quick else wanted:
        selected = [row for row in measure.rows if not quick or row.quick]
        run = Run(quick=quick, seed=seed, deadline=start + limit, say=say)
        expected = measure.quick_seconds if quick else measure.seconds
        if run.seconds_left < expected:
            reason = f"{expected:.0f} s more would pass this run's {limit:.0f} s"
            reasons.update({row.id: reason for row in selected})
            continue
        say(", ".join(row.id for row in selected))
        settled, missing = _measure(measure, selected, run)
        fresh.update(settled)
        reasons.update(missing)
        if not quick:
            keep()
    return report() if quick else keep()


def _wanted(bench: Bench, quick: bool, rows: str | None) -> list[Measure]:
    wanted = [
        measure
        for measure in bench.measures
        if rows is None or any(fnmatch.fnmatch(row.id, rows) for row in measure.rows)
    ]
    if not wanted:
        ids = [row.id for row in bench.rows]
        raise UserError(
            f"no row of {bench.slug} matches {rows!r} (its rows: {', '.join(ids)})",
            field="rows",
            given=rows,
            nearest=nearest_name(str(rows), ids),
        )
    return [measure for measure in wanted if measure.quick] if quick else wanted


def _quick_order(measures: Sequence[Measure]) -> list[Measure]:
    """The cheapest measure of each kind first, so that every kind is seen before the minute is over."""
    by_cost = sorted(measures, key=lambda measure: measure.quick_seconds)
    first: list[Measure] = []
    seen: set[str] = set()
    for measure in by_cost:
        kinds = {row.kind for row in measure.rows if row.quick}
        if not kinds <= seen:
            first.append(measure)
            seen |= kinds
    return first + [measure for measure in by_cost if measure not in first]


def _measure(
    measure: Measure, selected: Iterable[Row], run: Run
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Run one measuring function: the judged rows, and the reasons why others have none."""
    settled: dict[str, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    outcomes: Outcomes = {}
    failure: str | None = None
    try:
        outcomes = measure.function(run)
    except (Unavailable, UserError) as error:
        failure = str(error)
    except Exception as error:
        broken = f"the measurement broke: {type(error).__name__}: {error}"
        return {row.id: blank(row, broken, holds=False) for row in selected}, {}
    for row in selected:
        outcome = outcomes.get(row.id)
        if isinstance(outcome, Outcome):
            settled[row.id] = judge(row, outcome, seed=run.seed if run.quick else None)
        else:
            reasons[row.id] = str(outcome or failure or "the measurement left it out")
    return settled, reasons


def _shown(
    row: Row,
    fresh: Mapping[str, dict[str, Any]],
    kept: Mapping[str, dict[str, Any]],
    reasons: Mapping[str, str],
) -> dict[str, Any]:
    """The row as measured now, else as stored (with today's reason), else empty with the reason."""
    if row.id in fresh:
        return fresh[row.id]
    reason = reasons.get(row.id, "")
    if row.id in kept:
        old = {key: kept[row.id].get(key) for key in blank(row)}
        if old["ours"] is None:
            return {**old, "note": reason or old["note"]}
        note = "; ".join(filter(None, (old["note"], reason and f"not measured now: {reason}")))
        return {**old, "note": note}
    return blank(row, reason or NOT_MEASURED)
