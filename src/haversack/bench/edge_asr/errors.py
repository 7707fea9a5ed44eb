"""Word error rates: eight methods x four settings x two models, and the bars over them.

The rows of the grid inform; the rows with bars are computed from the same numbers. Methods that learn take 80
to 150 s a cell, so the grid of each model is a measurement of its own, kept cell by cell. An increase is a
method's word error rate less the float model's, in points, of the same engine on the same strings.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.edge_asr._bench import (
    BETTER,
    MODELS,
    NAMES,
    SETTINGS,
    Setting,
    bench,
    choice,
    undefined,
)
from haversack.bench.edge_asr._models import float_errors, packed_errors, same_texts
from haversack.bench.edge_asr._strings import QUICK_EACH_SPEAKER, SetErrors

Grid = Mapping[tuple[str, str, str], SetErrors | Unavailable]  # size, setting, method
W3 = "w3a16"


def grid_row(size: str, setting: Setting, method: str) -> Row:
    """A cell of the table."""
    return Row(
        f"wer-{size}-{setting.name}-{method}",
        f"{NAMES[method]} at {setting.name}, {size} model: word error rate, mean over speakers",
        "% of words",
        "quality",
    )


CELLS = tuple(
    (size, setting, method)
    for size in MODELS
    for setting in SETTINGS.values()
    for method in NAMES
    if undefined(method, setting) is None
)

FLOAT_ROWS = tuple(
    Row(
        f"wer-{size}-float",
        f"the {size} model before compression: word error rate, mean over speakers",
        "% of words",
        "quality",
        Bar("<=", 6.0),
        judged="ours",
        published="target 6 %",
        quick=True,
    )
    for size in MODELS
)

BARS = (
    *(
        Row(
            f"w8a8-{size}",
            f"SmoothQuant at w8a8 adds at most half a point to the {size} model's word error rate",
            "points",
            "quality",
            Bar("<=", 0.5),
            judged="ours",
        )
        for size in MODELS
    ),
    Row(
        "w3a16-best",
        "the best method at w3a16 adds at most three points to the larger model's word error rate",
        "points",
        "quality",
        Bar("<=", 3.0),
        judged="ours",
        published="3 bits succeed on models of higher capacity",
    ),
    Row(
        "w3a16-nearest",
        "at w3a16 on the larger model the best method adds at most half of what round-to-nearest adds",
        "points",
        "quality",
        Bar("<=", 0.5),
    ),
    Row(
        "w3a16-rank",
        "GPTQ, AWQ, OmniQuant, TesseraQ and SpQR rank before round-to-nearest at w3a16 (mean of both models)",
        "rank",
        "quality",
        Bar("<=", 0.999),
    ),
    Row(
        "w3a16-sizes",
        "at w3a16 the larger model loses fewer points than the smaller (mean over the methods at hand)",
        "points",
        "quality",
        Bar("<=", 0.999),
    ),
)


def ranks(increases: Mapping[str, float]) -> dict[str, float]:
    """1 for the smallest; those that are equal share the mean of their places."""
    ordered = sorted(increases.values())
    return {
        name: statistics.mean(place for place, other in enumerate(ordered, 1) if other == value)
        for name, value in increases.items()
    }


def _increases(grid: Grid, floats: Mapping[str, SetErrors], size: str, setting: str) -> dict[str, float]:
    """Points that each method at hand adds."""
    return {
        method: found.mean - floats[size].mean
        for (its_size, its_setting, method), found in grid.items()
        if (its_size, its_setting) == (size, setting) and isinstance(found, SetErrors)
    }


def judged(grid: Grid, floats: Mapping[str, SetErrors]) -> dict[str, Outcome | Unavailable]:
    """The rows with bars, from the grid and the float models' errors."""
    found: dict[str, Outcome | Unavailable] = {}
    for size in MODELS:
        cell = grid[size, "w8a8", "smoothquant"]
        if isinstance(cell, Unavailable):
            found[f"w8a8-{size}"] = cell
        else:
            increase, note = cell.mean - floats[size].mean, f"float {floats[size].mean:.2f} %"
            found[f"w8a8-{size}"] = Outcome.single(increase, name="smoothquant", note=note)
    small, base = (_increases(grid, floats, size, W3) for size in ("small", "base"))
    nearest = base.get("rtn")
    others = {name: value for name, value in base.items() if name != "rtn"}
    rows = ("w3a16-best", "w3a16-nearest", "w3a16-rank", "w3a16-sizes")
    if nearest is None or not others:
        reason = Unavailable("3 bits are not there for round-to-nearest and another method")
        return found | dict.fromkeys(rows, reason)
    best = min(others, key=lambda name: others[name])
    table = ", ".join(f"{name} {value:+.2f}" for name, value in sorted(base.items()))
    note = f"points added: {table}; float {floats['base'].mean:.2f} %"
    found["w3a16-best"] = Outcome.single(others[best], name=best, note=note)
    if nearest <= 0:
        found["w3a16-nearest"] = Unavailable(f"round-to-nearest adds nothing at w3a16: {note}")
    else:
        found["w3a16-nearest"] = Outcome.single(
            max(others[best], 0.0), nearest, name=best, against="round-to-nearest", note=note
        )
    missing = [name for name in BETTER if name not in base or name not in small]
    places = [ranks(increases) for increases in (small, base)]
    ranked = [name for name in BETTER if name not in missing]
    if ranked and "rtn" in small:
        lacking = f"; not there: {', '.join(missing)}" if missing else ""
        shown = "; ".join(
            f"{size}: " + ", ".join(f"{name} {value:g}" for name, value in sorted(place.items()))
            for size, place in zip(("small", "base"), places, strict=True)
        )
        found["w3a16-rank"] = Outcome.single(
            statistics.mean(place[name] for place in places for name in ranked),
            statistics.mean(place["rtn"] for place in places),
            name=", ".join(ranked),
            against="round-to-nearest",
            note=shown + lacking,
        )
    both = sorted(set(small) & set(base))
    found["w3a16-sizes"] = Outcome.single(
        statistics.mean(base[name] for name in both),
        statistics.mean(small[name] for name in both),
        name="larger model",
        against="smaller model",
        note="; ".join(f"{name}: {small[name]:+.2f} small, {base[name]:+.2f} base" for name in both),
    )
    return found


@bench.measure(
    *FLOAT_ROWS,
    Row(
        "texts-transformers",
        "the engine writes the same line as transformers, larger model in float",
        "share of strings",
        "quality",
        Bar(">=", 0.99),
        judged="ours",
        quick=True,
    ),
    seconds=90,
    quick_seconds=25,
)
def floats(run: Run) -> Outcomes:
    found: dict[str, Outcome | Unavailable] = {}
    each = QUICK_EACH_SPEAKER if run.quick else None
    for size in MODELS:
        errors = float_errors(size, each, run.seed if run.quick else None)
        found[f"wer-{size}-float"] = Outcome.single(errors.mean, name="float", note=str(errors))
    found["texts-transformers"] = same_texts("base", each, run.seed if run.quick else None)
    return found


def rows_of(size: str) -> list[Row]:
    """The rows of the grid of one model."""
    return [grid_row(*cell) for cell in CELLS if cell[0] == size]


def measured_cell(size: str, setting: Setting, method: str) -> SetErrors | Unavailable:
    """The errors of one cell of the grid, from the cache where they are there, or why there are none."""
    try:
        return packed_errors(size, choice(method, setting), setting.activations)
    except Unavailable as reason:
        return reason


def outcomes(run: Run, size: str) -> tuple[dict[str, Outcome | Unavailable], Grid]:
    """The rows of one model's grid, and its cells."""
    plain = float_errors(size)
    cells: dict[tuple[str, str, str], SetErrors | Unavailable] = {}
    found: dict[str, Outcome | Unavailable] = {}
    for _, setting, method in (cell for cell in CELLS if cell[0] == size):
        name = f"wer-{size}-{setting.name}-{method}"
        run.say(name)
        errors = cells[size, setting.name, method] = measured_cell(size, setting, method)
        if isinstance(errors, Unavailable):
            found[name] = errors
        else:
            found[name] = Outcome.single(
                errors.mean, plain.mean, name=choice(method, setting), against="float", note=str(errors)
            )
    return found, cells


@bench.measure(*rows_of("small"), seconds=900)
def small(run: Run) -> Outcomes:
    return outcomes(run, "small")[0]


# 1000 s of these are the larger model's; the rest are cells of the smaller one that the bars need, where they
# are not in the cache.
@bench.measure(*BARS, *rows_of("base"), seconds=1350)
def base(run: Run) -> Outcomes:
    found, cells = outcomes(run, "base")
    others = {
        ("small", setting.name, method): measured_cell("small", setting, method)
        for size, setting, method in CELLS
        if size == "small" and (setting.name == W3 or (setting.name, method) == ("w8a8", "smoothquant"))
    }
    return found | judged({**cells, **others}, {size: float_errors(size) for size in MODELS})
