"""The comparison as Markdown: every cell, means by length and by batch, speed-ups, and what does not hold."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from haversack.bench.mlx_transformers_benchmark._grid import Cell, speed_up, suspicious


def markdown(report: Mapping[str, Any], cells: Sequence[Cell]) -> str:
    """The page of one model; `report` is its record (see `record`)."""
    machine = report["machine"]
    lines = [
        f"# {report['model']}",
        "",
        f"{report['parameters']:,} parameters, {report['architecture']}; {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['isa']}, {machine['os']}; {report['threads']} threads.",
        "Times in ms, forced inside the timer. The first call of a backend in a cell stands apart.",
        "",
        "## Equal outputs",
        "",
        *_table(
            ("backend", "largest difference", "mean cosine", "verdict"),
            (
                (
                    name,
                    f"{found['difference']:.2e}",
                    f"{found['cosine']:.6f}",
                    "equal" if found["exact"] else "compressed: not held to the bar",
                )
                for name, found in report["parity"].items()
            ),
        ),
        "",
        "## Every cell",
        "",
        *_table(
            ("characters", "batch", "mean tokens", "backend", "median", "p90", "fastest", "first", "copy"),
            (
                (
                    cell.characters,
                    cell.batch,
                    f"{cell.mean_tokens:.1f}",
                    cell.backend,
                    *(
                        f"{value:.2f}"
                        for value in (
                            cell.median_ms,
                            cell.p90_ms,
                            cell.fastest_ms,
                            cell.first_ms,
                            cell.copy_ms,
                        )
                    ),
                )
                for cell in cells
            ),
        ),
        "",
        *means(cells),
    ]
    lines += ["## Honesty", ""]
    for name, value in report["slopes"].items():
        wrong = suspicious(value)
        lines.append(
            f"- {name}: slope {value:.2f}; {'**flagged**: ' + wrong if wrong else 'as it should be'}"
        )
    lines += [f"- {name}: not measured; {reason}" for name, reason in report["skipped"].items()]
    if not report["slopes"] and not report["skipped"]:
        lines.append("- one length only: how time grows with tokens was not checked")
    return "\n".join(lines) + "\n"


def means(cells: Sequence[Cell]) -> list[str]:
    """Means of the medians by length, by batch and overall, with the speed-up over the slowest."""
    names = list(dict.fromkeys(cell.backend for cell in cells))
    lengths = sorted({cell.characters for cell in cells})
    batches = sorted({cell.batch for cell in cells})

    def mean(name: str, **where: int) -> float:
        chosen = [
            cell.median_ms
            for cell in cells
            if cell.backend == name and all(getattr(cell, key) == value for key, value in where.items())
        ]
        return statistics.fmean(chosen)

    overall = {name: mean(name) for name in names}
    slowest = max(overall.values())
    heads = [
        "backend",
        *(f"{length} characters" for length in lengths),
        *(f"batch {batch}" for batch in batches),
        "all",
        "speed-up",
    ]
    rows = [
        [
            name,
            *(f"{mean(name, characters=length):.2f}" for length in lengths),
            *(f"{mean(name, batch=batch):.2f}" for batch in batches),
            f"{overall[name]:.2f}",
            f"{speed_up(slowest, overall[name]):+.0f} %",
        ]
        for name in names
    ]
    return ["## Means of the medians", "", *_table(heads, rows), ""]


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
    ]
