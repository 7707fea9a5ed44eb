"""How the fixed profile's thresholds and offsets come out of LUDB's odd records, lead II.

`python -m haversack.bench.featuredb_ecg.calibration` prints them. Each bound in its turn: of a grid of scales
and shares the pair with the least spread around the median error (mean absolute), then the offset that takes
the median error away. The even records are never looked at."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.featuredb_ecg._bench import bench, part
from haversack.bench.featuredb_ecg._marked import Marked
from haversack.core.errors import UserError
from haversack.sense import _ecg_fixed as fixed
from haversack.sense._ecg_beat import FINE, Bounds
from haversack.sense._ecg_fixed import RULES, Rules, Template

F64 = NDArray[np.float64]
QRS_GRID = ((3, 4), (0.08, 0.12, 0.18, 0.25), (0.05, 0.08, 0.12, 0.18))
P_GRID = ((5, 6), (4, 5, 6), (0.05, 0.1, 0.2, 0.3, 0.4))
T_GRID = ((5, 6, 7), (5, 6, 7), (0.05, 0.1, 0.15, 0.2, 0.3, 0.4))


def templates(marked: Iterable[Marked]) -> list[tuple[Template, Marked]]:
    """Each record's average beat, of those with beats enough."""
    out = []
    for one in marked:
        signal = fixed.cleaned(one.samples)
        peaks = fixed.fixed_peaks(signal)
        if len(peaks) >= 4:
            out.append((fixed.template(signal, peaks), one))
    return out


def ms(start: int | None, end: int | None) -> float:
    """Between two positions; nan without one."""
    return float("nan") if start is None or end is None else (end - start) * 1000 / FINE


TAKEN: dict[str, Callable[[Bounds], float]] = {
    "qrs": lambda found: ms(found.qrs_on, found.qrs_off),
    "pr": lambda found: ms(found.p_on, found.qrs_on),
    "qt": lambda found: ms(found.qrs_on, found.t_off),
}


def errors(beats: list[tuple[Template, Marked]], rules: Rules, quantity: str) -> F64:
    """Errors in ms of the records that have the quantity and its mark."""
    out = [
        TAKEN[quantity](fixed.fixed_bounds(beat.beat, beat.r, beat.period, rules)) - getattr(one, quantity)
        for beat, one in beats
    ]
    found = np.array(out)
    return np.asarray(found[np.isfinite(found)])


def spread(found: F64) -> float:
    """Mean absolute distance from the median."""
    return float(np.abs(found - np.median(found)).mean())


def calibrated(marked: Iterable[Marked]) -> Rules:
    """The rules that the marked records give."""
    beats = templates(marked)
    rules = Rules(qrs_on_ms=0.0, qrs_off_ms=0.0, p_on_ms=0.0, t_off_ms=0.0)

    def search(
        quantity: str, names: tuple[str, ...], grid: tuple[tuple[float, ...], ...], offset: str
    ) -> None:
        nonlocal rules
        best = min(
            itertools.product(*grid),
            key=lambda chosen: spread(
                errors(beats, dataclasses.replace(rules, **dict(zip(names, chosen, strict=True))), quantity)  # type: ignore[arg-type]
            ),
        )
        rules = dataclasses.replace(rules, **dict(zip(names, best, strict=True)))  # type: ignore[arg-type]
        bias = float(np.median(errors(beats, rules, quantity)))
        late = offset in ("qrs_off_ms", "t_off_ms")
        rules = dataclasses.replace(rules, **{offset: round(-bias if late else bias, 2)})  # type: ignore[arg-type]

    search("qrs", ("qrs_scale", "qrs_on", "qrs_off"), QRS_GRID, "qrs_off_ms")
    # What is left of the QRS's error is shared between its two ends.
    rules = dataclasses.replace(
        rules, qrs_on_ms=-round(rules.qrs_off_ms / 2, 2), qrs_off_ms=round(rules.qrs_off_ms / 2, 2)
    )
    search("pr", ("p_scale", "p_edge", "p_on"), P_GRID, "p_on_ms")
    search("qt", ("t_scale", "t_edge", "t_off"), T_GRID, "t_off_ms")
    return rules


@bench.measure(
    Row(
        "calibration",
        "the fixed profile's thresholds and offsets are those that the odd records give (1: they are)",
        "share",
        "quality",
        Bar("==", 1.0),
        judged="ours",
    ),
    seconds=30,
)
def calibration(run: Run) -> Outcomes:
    found = calibrated(part(odd=True))
    same = [getattr(found, one.name) == getattr(RULES, one.name) for one in dataclasses.fields(Rules)]
    return {
        "calibration": Outcome.single(
            sum(same) / len(same), note="grids in bench/featuredb_ecg/calibration.py"
        )
    }


if __name__ == "__main__":
    try:
        print(calibrated(part(odd=True)))
    except UserError as error:
        raise SystemExit(str(error)) from None
