"""docs/benchmarks.md from the stored results: `python -m haversack.bench._page > docs/benchmarks.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from haversack.bench._find import bench_names
from haversack.bench._store import stored_result

_HEAD = """# Benchmarks

Written by `python -m haversack.bench._page` from `src/haversack/bench/results/`; do not edit. Each line is
a row of `haversack bench SYSTEM`: ours and its baseline in one run, the ratio ours / baseline, the bar and
whether it holds. Timings are interleaved; the ratio is the median of the pairs' ratios.
"""


def page() -> str:
    """The page as Markdown, one section for each bench that has stored results."""
    return "\n".join([_HEAD, *(line for name in bench_names() for line in _section(name))])


def _section(name: str) -> Iterator[str]:
    document = stored_result(name)
    if document is None:
        return
    yield f"## {name}\n"
    yield "| row | claim | baseline | ours | unit | ratio | bar | holds |"
    yield "|---|---|---:|---:|---|---:|---|---|"
    for row in document["rows"]:
        bar = row["bar"]
        held = {True: "yes", False: "**no**", None: "-"}[row["holds"]]
        cells = [
            row["id"],
            row["claim"],
            _side(row["baseline"]),
            _side(row["ours"]),
            row["unit"],
            _number(row["ratio"]),
            f"{row['judged']} {bar['op']} {_number(bar['value'])}" if bar else "none",
            held,
        ]
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
    yield ""
    notes = [f"- {row['id']}: {row['note']}" for row in document["rows"] if row["note"]]
    if notes:
        yield from ("Notes:", "", *notes, "")
    machines = sorted({_machine(row) for row in document["rows"] if row["ours"]})
    yield from (f"Measured on {machine}." for machine in machines)
    yield ""


def _machine(row: dict[str, Any]) -> str:
    machine = row["machine"]
    when = row["measured"].partition("T")[0]
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['isa']}, {machine['os'].split()[0]}, {when}"


def _side(side: dict[str, Any] | None) -> str:
    if side is None:
        return "-"
    spread = f" ({_number(side['min'])} to {_number(side['max'])})" if side["n"] > 1 else ""
    return f"{side['name']} {_number(side['median'])}{spread}"


def _number(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(_number(end) for end in value)
    return "-" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    print(page(), end="")
