"""`haversack run` of a pack of one file: what follows a table of series, or what a network of some hundred
numbers says of each row."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from haversack.cli._output import print_json
from haversack.core.errors import UserError

_TAKEN = frozenset(("model", "input", "impute", "ram_mib", "json"))
"""Options of `haversack run` that packs of one file have."""
STANDARD_INPUT = Path("standard input")
CELLS = 10
"""Bytes that a byte of the table takes while it is read: its text, its cells, its numbers."""


def run_signal(pack: Path, input: str | None, *, impute: str, ram_mib: float | None, json: bool) -> None:
    """Forecast a table, or predict each of its rows: on standard output as CSV, how it went on standard
    error; with `json` one record."""
    from haversack.cli._given_options import refuse_others
    from haversack.core.budget import Budget
    from haversack.core.memory import MIB, MemoryPlan, peak_mib
    from haversack.formats.small_pack import SmallPack
    from haversack.models.series._saved import FORECASTERS

    refuse_others(_TAKEN, "not for signal packs, which take a table, --impute and --ram-mib.")
    found = SmallPack.read(pack)
    if found.model not in (*FORECASTERS, "cura"):
        raise UserError(
            f"{pack} holds the model {found.model[:40]!r}, which is not run "
            f"({', '.join(FORECASTERS)} and cura are).",
            field="model",
            given=str(pack),
        )
    table, text = _table(pack, input)
    nbytes = len(text.encode()) if text is not None else table.stat().st_size
    plan = MemoryPlan(
        (("process with the pack open", round(peak_mib() * MIB)), ("table while it is read", CELLS * nbytes))
    )
    Budget(ram_mib=ram_mib).require({"ram_mib": plan.total_mib}, f"running {pack.name}")
    made = (
        _predicted(pack, found, table, text)
        if found.model == "cura"
        else _forecast(pack, table, text, impute)
    )
    memory = {"planned": round(plan.total_mib, 2), "measured": round(peak_mib(), 2)}
    record = {"pack": pack, "model": found.model, "input": str(table), **made, "ram_mib": memory}
    if json:
        print_json(record)
        return
    _show(record)


def _table(pack: Path, input: str | None) -> tuple[Path, str | None]:
    """(the table's file, None), or (a name for it, the text) of standard input."""
    if input is None and sys.stdin.isatty():
        raise UserError(f"give a table: haversack run {pack} TABLE.csv, or standard input.", field="input")
    if input is None or input == "-":
        from haversack.cli._given_text import text_of

        return STANDARD_INPUT, text_of(None, "-").removeprefix("\ufeff")
    if not Path(input).is_file():
        raise UserError(f"there is no table {input}.", field="input", given=input)
    return Path(input), None


def _forecast(pack: Path, table: Path, text: str | None, impute: str) -> dict[str, Any]:
    from haversack.formats.series_csv import read_series
    from haversack.sense.forecast import apply_pack

    series = read_series(table, impute=impute, text=text)
    model, ahead = apply_pack(pack, series)
    rows = len(series.values)
    return {
        "task": "forecast",
        "rows": rows,
        "columns": list(series.channels),
        "filled": series.filled,
        "forecast": [
            {"time": series.time_of(rows + at), "values": [float(value) for value in row]}
            for at, row in enumerate(ahead)
        ],
        "predictions": None,
        "parameters": model.count(),
        "warnings": list(series.warnings),
    }


def _predicted(pack: Path, found: Any, table: Path, text: str | None) -> dict[str, Any]:
    from haversack.cli._given_options import given
    from haversack.train.cura import predict

    if given("impute"):
        raise UserError("--impute is for forecasters; this is a pack of cura.", field="impute")
    rows, made = predict(pack, table, text=text)
    return {
        "task": str(found.record.get("task")),
        "rows": rows,
        "columns": [str(found.record.get("target"))],
        "filled": 0,
        "forecast": None,
        "predictions": made,
        "parameters": int(found.arrays["parameters"].size),
        "warnings": [],
    }


def _show(record: dict[str, Any]) -> None:
    import csv

    out = csv.writer(sys.stdout, lineterminator="\n")
    if record["forecast"] is not None:
        out.writerow(["time", *record["columns"]])
        for step in record["forecast"]:
            out.writerow([step["time"], *(f"{value:.9g}" for value in step["values"])])
    else:
        out.writerow(record["columns"])
        for one in record["predictions"]:
            out.writerow([f"{one:.9g}" if isinstance(one, float) else one])
    memory = record["ram_mib"]
    for warning in record["warnings"]:
        print(f"note: {warning}", file=sys.stderr)
    print(
        f"{record['model']}: {record['parameters']:,} learned numbers, {record['rows']} rows read, "
        f"{record['filled']} gaps filled\n"
        f"memory: planned {memory['planned']:.1f} MiB, measured {memory['measured']:.1f} MiB",
        file=sys.stderr,
    )
