"""Measure a system against its baseline: method and baseline in one run, held against its bars."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer


def command(
    system: Annotated[
        str, typer.Argument(help="a system's number or slug (see: haversack systems), or the bench `engine`")
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="at most 60 s: a row of each kind, the rest as stored")
    ] = False,
    rows: Annotated[
        str | None, typer.Option("--rows", metavar="GLOB", help="measure only rows whose id matches")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Measure a system against its baseline; a full run (at most 45 minutes) is stored."""
    from haversack.bench import find_bench, run_bench
    from haversack.core.progress import quiet

    bench = find_bench(system)
    if json:
        import msgspec

        with quiet():
            document = run_bench(bench, quick=quick, rows=rows)
        print(msgspec.json.encode(document).decode())
        return
    document = run_bench(bench, quick=quick, rows=rows, say=_tell)
    _show(document)


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print(f"  measuring: {text}", file=sys.stderr)


def _show(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    machine = document["machine"]
    title = f"bench {document['system']} ({document['mode']}, {document['seconds']:.0f} s)"
    table = Table(title=title, title_justify="left", pad_edge=False, expand=False)
    for name, options in (
        ("row", {"overflow": "fold"}),
        ("baseline", {"justify": "right"}),
        ("ours", {"justify": "right"}),
        ("ratio", {"justify": "right"}),
        ("bar", {"justify": "right"}),
        ("holds", {}),
        ("source", {}),
    ):
        table.add_column(name, **options)  # type: ignore[arg-type]
    for row in document["rows"]:
        table.add_row(
            f"{row['id']} ({row['unit']})",
            _side(row["baseline"]),
            _side(row["ours"]),
            _number(row["ratio"]),
            _bar(row),
            _verdict(row["holds"], Text),
            row["source"] if row["ours"] else "-",
        )
    console.print(table)
    for row in document["rows"]:
        if row["holds"] is not True and row["note"]:
            console.print(f"{row['id']}: {row['note']}", style="red" if row["holds"] is False else "dim")
    judged = [row["holds"] for row in document["rows"] if row["bar"]]
    console.print(
        f"{judged.count(True)} bars hold, {judged.count(False)} do not, "
        f"{judged.count(None)} were not judged; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['isa']}; commit {document['commit'] or 'unknown'}"
    )


def _side(side: dict[str, Any] | None) -> str:
    return f"{_number(side['median'])}" if side else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _bar(row: dict[str, Any]) -> str:
    bar = row["bar"]
    if bar is None:
        return "none"
    value = "..".join(_number(end) for end in bar["value"]) if bar["op"] == "in" else _number(bar["value"])
    return f"{row['judged']} {bar['op']} {value}"


def _verdict(holds: bool | None, text: Any) -> Any:
    if holds is None:
        return text("-", style="dim")
    return text("yes", style="green") if holds else text("NO", style="bold red")
