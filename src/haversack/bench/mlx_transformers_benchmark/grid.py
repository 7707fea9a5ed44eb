"""Rows of the grid: text lengths by batch sizes, every backend side by side, and whether the times can be
believed: they repeat, they grow with the tokens, and an unforced lazy backend is caught."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.mlx_transformers_benchmark._bench import bench
from haversack.bench.mlx_transformers_benchmark._grid import (
    BATCHES,
    LENGTHS,
    SLOPES,
    Cell,
    measure_cell,
    open_backends,
    slopes,
    suspicious,
)
from haversack.bench.mlx_transformers_benchmark._models import bert_base

FORCED = (
    "numpy",
    "torch-eager",
    "torch-compiled",
    "onnxruntime",
    "onnxruntime-int8",
    "jax",
    "mlx",
    "haversack",
    "haversack-int8",
)
TRAP = "lazy-unsynchronised"
ROUNDS = {1: 21, 16: 7}
"""Calls of a cell by its batch: short ones are cheap, and the machine's noise shows more in them."""
REPEATED = ((200, 1), (200, 16))
"""Places that are measured again right after their first run, so that a machine that others use too has
changed little in between."""
PUBLISHED = "BERT-base, PyTorch on the authors' CPU: 84.7 ms at 50 characters, batch 1"


@bench.measure(
    *[
        Row(
            f"cell-{length}x{texts}",
            f"BERT-base, texts of {length} characters, batch {texts}: our f32 beside PyTorch eager; all "
            "backends in the note",
            "ms",
            "time",
            published=PUBLISHED if (length, texts) == (50, 1) else None,
        )
        for length in LENGTHS
        for texts in BATCHES
    ],
    *[
        Row(
            f"slope-{name}",
            f"{name}, forced: time at batch 16 grows with the tokens as tokens^slope",
            "exponent",
            "quality",
            Bar("in", SLOPES),
            judged="ours",
        )
        for name in FORCED
    ],
    Row(
        "trap",
        "a lazy backend that is not forced inside the timer is flagged by its slope: cases caught of one",
        "cases",
        "quality",
        Bar("==", 1),
        judged="ours",
        published="0.37-0.84 ms whatever the batch: graph-building times in the authors' own table",
    ),
    Row(
        "repeat",
        "medians of a second run right after the first differ by at most 15 %: the worst backend and cell of "
        + " and ".join(f"{length}x{texts}" for length, texts in REPEATED),
        "relative",
        "quality",
        Bar("<=", 0.15),
        judged="ours",
    ),
    seconds=900,
)
def grid(run: Run) -> Outcomes:
    from haversack.models._calibration import default_text

    corpus = default_text("evaluation")[:200_000]
    opened = open_backends(bert_base(), (*FORCED, TRAP), corpus, threads=2, tell=run.say)
    cells: list[Cell] = []
    again: list[Cell] = []
    forced = [name for name in FORCED if name in opened.ready]
    for length in LENGTHS:
        for texts in BATCHES:
            run.say(f"{length} characters, batch {texts}")
            cells += measure_cell(opened, corpus, length, texts, ROUNDS[texts])
            if (length, texts) in REPEATED:
                run.say(f"again: {length} characters, batch {texts}")
                again += measure_cell(opened, corpus, length, texts, ROUNDS[texts], forced)
    found: dict[str, Outcome | Unavailable] = {}
    for length in LENGTHS:
        for texts in BATCHES:
            found[f"cell-{length}x{texts}"] = _cell(cells, length, texts)
    grown = slopes(cells, max(BATCHES))
    for name in FORCED:
        if name in grown:
            found[f"slope-{name}"] = Outcome.single(grown[name], note=suspicious(grown[name]) or "")
        else:
            found[f"slope-{name}"] = Unavailable(opened.skipped.get(name, "it was not measured"))
    caught = suspicious(grown[TRAP])
    found["trap"] = Outcome.single(int(caught is not None), note=f"slope {grown[TRAP]:.2f}: {caught}")
    worst, where = furthest(cells, again)
    found["repeat"] = Outcome.single(worst, note=where)
    return found


def _cell(cells: Sequence[Cell], length: int, texts: int) -> Outcome | Unavailable:
    here = {cell.backend: cell for cell in cells if (cell.characters, cell.batch) == (length, texts)}
    ours = Side("haversack", here["haversack"].times_ms)
    note = f"{here['haversack'].mean_tokens:.1f} tokens a text; median (p90, first call) in ms: " + ", ".join(
        f"{name} {cell.median_ms:.1f} ({cell.p90_ms:.1f}, {cell.first_ms:.1f})" for name, cell in here.items()
    )
    other = here.get("torch-eager")
    return Outcome(ours, Side("torch-eager", other.times_ms) if other else None, note)


def furthest(first: Sequence[Cell], again: Sequence[Cell]) -> tuple[float, str]:
    """The largest difference between the two medians of a backend at a place, over their mean, and where it
    is."""
    medians = {(cell.backend, cell.characters, cell.batch): cell.median_ms for cell in first}
    worst, where = 0.0, ""
    for cell in again:
        before = medians[cell.backend, cell.characters, cell.batch]
        difference = abs(cell.median_ms - before) / statistics.fmean((cell.median_ms, before))
        if difference > worst:
            worst, where = difference, f"{cell.backend} at {cell.characters} characters, batch {cell.batch}"
    return worst, where
