"""The table of `haversack pack --compare`: what each method makes of a model, and what making it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from haversack.cli._output import print_json, show_memory, table, width

if TYPE_CHECKING:
    from haversack.plan import Job
    from haversack.plan._compare import Comparison, Row

RESULTS = ("bits", "quality", "loss", "MiB", "speed")
COSTS = ("Mbit op", "share", "s", "MiB to pack")
ONE_TABLE = 110
"""Characters of a line from which on all columns stand in one table."""


def show_comparison(job: Job, *, write: bool, limited: bool, as_json: bool) -> None:
    """Compare methods for `job` and print; `limited`: the device's memory and storage bound the budget. Exits
    with 130 when interrupted, what was measured being printed."""
    from haversack.core.memory import peak_mib
    from haversack.plan._compare import compare
    from haversack.plan._job import device_budget

    if limited:
        job = replace(job, budget=device_budget(job.budget, job.device))
    found = compare(job, write=write)
    if as_json:
        print_json(found.record() | {"ram_mib": {"measured": peak_mib()}})
    else:
        _print(found)
    if found.interrupted:
        raise SystemExit(130)  # typer's own exit of that code is taken for an interrupt and printed


def _print(found: Comparison) -> None:
    from rich.text import Text

    plain = next((row.bit_operations[0] for row in found.rows if row.bit_operations), None)
    rows = []
    for row in found.rows:
        style = "bold" if row.candidate is not None and row.candidate is found.chosen else ""
        rows.append([Text(cell, style) for cell in _cells(row, plain)])
    names, numbers = ("setting", "method"), (*RESULTS, *COSTS)
    if width() >= ONE_TABLE:
        table((*names, *numbers), rows, right=numbers)
    else:
        first, last = len(names), len(names) + len(RESULTS)
        table((*names, *RESULTS), [row[:last] for row in rows], right=RESULTS)
        table((*names, *COSTS), [[*row[:first], *row[last:]] for row in rows], right=COSTS)
    for row in found.rows:
        if row.reason is not None:
            print(f"{row.way.setting} {_method(row)}: {row.reason}")
    print(f"quality: {found.quality}; loss: against the f32 model; speed: tokens (or states) a second here")
    print("Mbit op: million bit operations of a token (or window), floats at 16 bits;")
    print("share: those of the blocks' matrices over the first row's;")
    print("s, MiB to pack: of the compression itself, in a process of its own")
    if found.pack is not None:
        print(f"pack: {found.pack}   report: {found.pack / 'report.html'}")
    if found.interrupted:
        print("interrupted: the methods that are not listed were not tried")
    show_memory()


def _cells(row: Row, plain: float | None) -> list[str]:
    one = row.candidate
    if one is None or row.bit_operations is None:
        return [row.way.setting, _method(row), *["-"] * (len(RESULTS) + len(COSTS))]
    return [
        row.way.setting,
        _method(row),
        f"{one.bits:.2f}",
        "" if one.quality is None else f"{one.quality:.4f}",
        f"{100 * one.loss:+.2f} %",
        f"{one.storage_mib:.1f}",
        "" if one.here is None else f"{one.here:.1f}",
        f"{row.bit_operations[1] / 1e6:.0f}",
        f"{row.bit_operations[0] / plain:.4g}" if plain else "",
        f"{row.seconds:.1f}",
        f"{row.peak_mib:.0f}",
    ]


def _method(row: Row) -> str:
    plan = row.way.plan
    return plan.precision if plan.structure == "none" else f"{plan.structure} {plan.precision}"
