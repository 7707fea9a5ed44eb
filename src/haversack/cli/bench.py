"""Measure a system against its baseline: method and baseline in one run, held against its bars."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from haversack.cli._output import Json, print_json, table


def command(
    system: Annotated[
        str, typer.Argument(help="a system's number or slug (see: haversack systems), or the bench `engine`")
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="at most 60 s: a row of each kind anew, the rest as stored")
    ] = False,
    rows: Annotated[
        str | None, typer.Option("--rows", metavar="GLOB", help="measure only rows whose id matches")
    ] = None,
    json: Json = False,
) -> None:
    """Measure a system against its baseline. A full run takes at most 45 minutes and is stored."""
    from haversack.bench import find_bench, run_bench
    from haversack.core.progress import progress

    bench = find_bench(system)
    with progress(f"bench {bench.slug}") as bar:
        document = run_bench(bench, quick=quick, rows=rows, say=lambda text: bar.advance(label=text))
    if json:
        print_json(document)
    else:
        show(document)


def show(document: dict[str, Any]) -> None:
    """The document as a table: what was measured, each bar and whether it holds, then what needs words."""
    rows = document["rows"]
    table(
        ["row", "unit", "baseline", "ours", "ratio", "bar", "holds", "source"],
        [
            [
                row["id"],
                row["unit"],
                _median(row["baseline"]),
                _median(row["ours"]),
                _number(row["ratio"]),
                _bar(row),
                _verdict(row),
                row["source"] if row["ours"] else "-",
            ]
            for row in rows
        ],
        right=("baseline", "ours", "ratio"),
        title=f"bench {document['system']}, {document['mode']}: {document['seconds']:.0f} s",
    )
    for row in rows:
        if row["holds"] is not True and row["note"]:
            print(f"{row['id']}: {row['note']}")
    held = [row["holds"] for row in rows if row["bar"]]
    machine = document["machine"]
    print(
        f"{held.count(True)} bars hold, {held.count(False)} do not, {held.count(None)} could not be judged; "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['isa']}; "
        f"commit {document['commit'] or 'unknown'}"
    )


def _median(side: dict[str, Any] | None) -> str:
    return _number(side["median"]) if side else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _bar(row: dict[str, Any]) -> str:
    bar = row["bar"]
    if bar is None:
        return "none"
    value = " to ".join(_number(end) for end in bar["value"]) if bar["op"] == "in" else _number(bar["value"])
    return f"{row['judged']} {bar['op']} {value}"


def _verdict(row: dict[str, Any]) -> Any:
    from rich.text import Text

    if row["holds"] is None:
        return Text("-", style="dim")
    return Text("yes", style="green") if row["holds"] else Text("NO", style="bold red")
