"""The 58 published systems: their facts from `_systems.toml`, their state from what is there.

The state is computed, never typed. A system is *absent* when no file declares it and it has no bench;
*partial* when something of it exists; it *works* when it has files, a bench, and a full stored result that is
fresh, in which every row was measured and every bar holds or gives its reason for not being judged, and, in
a source checkout, a page in the docs for every one of its files.

A file belongs to a system when its method declares `system = N`, or, in rooms whose files fill no slot, when
it says `SYSTEM = N` at its top level.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haversack.core import index
from haversack.core._declarations import PACKAGE, sources

STATES = ("absent", "partial", "works")
NOT_MEASURED = "not measured yet: run the full bench"
"""The note of a stored row that no run has come to; a row that could not run says why instead."""


@dataclass(frozen=True)
class System:
    """What is known of a published system. `published` is its paper's headline figure on its own hardware;
    `command` is the shape of the line a person types."""

    number: int
    slug: str
    name: str
    title: str
    arxiv: str
    room: str
    command: str
    published: str


@dataclass(frozen=True)
class Evidence:
    """What exists of a system: its `files` and `bench` (relative to the package), the docs pages that a
    source checkout should have and has not, its stored `result` (None without one), each row with its
    `source`."""

    files: tuple[str, ...]
    bench: str | None
    pages_missing: tuple[str, ...] = ()
    result: Mapping[str, Any] | None = None

    @property
    def state(self) -> str:
        """`absent`, `partial` or `works`."""
        if not self.files and self.bench is None:
            return "absent"
        return "partial" if self.missing else "works"

    @property
    def missing(self) -> tuple[str, ...]:
        """What keeps it from working, in words; empty when it works."""
        found = []
        if not self.files:
            found.append("no file of it")
        if self.bench is None:
            found.append("no bench")
        found += [f"no page {page}" for page in self.pages_missing]
        rows = list(self.result["rows"]) if self.result is not None else []
        if not rows or (self.result or {}).get("mode") != "full":
            return (*found, "no stored full result")
        for row in rows:
            if row["ours"] is None and row["note"] == NOT_MEASURED:
                found.append(f"row {row['id']} was never measured")
            elif row["source"] == "stale":
                found.append(f"row {row['id']} is stale")
            elif row["holds"] is False:
                found.append(f"row {row['id']} misses its bar")
            elif row["holds"] is None and row["bar"] is not None and not row["note"]:
                found.append(f"row {row['id']} was not judged and gives no reason")
        if not any(row["holds"] for row in rows):
            found.append("no row holds")
        return tuple(found)

    @property
    def ratio(self) -> float | None:
        """Ours over baseline in the first stored row that has it: the headline."""
        rows = self.result["rows"] if self.result is not None else ()
        return next((float(row["ratio"]) for row in rows if row["ratio"] is not None), None)


@functools.cache
def systems() -> tuple[System, ...]:
    """All systems by number."""
    text = (PACKAGE / "core" / "_systems.toml").read_text(encoding="utf-8")
    entries = [System(**entry) for entry in tomllib.loads(text)["system"]]
    return tuple(sorted(entries, key=lambda entry: entry.number))


def evidence(system: System, result: Mapping[str, Any] | None) -> Evidence:
    """What exists of `system`; `result` is its stored bench document, which a higher floor reads."""
    files = files_of_systems().get(system.number, ())
    stem = system.slug.replace("-", "_")
    benches = [f"bench/{stem}.py", f"bench/{stem}/__init__.py"]
    bench = next((name for name in benches if (PACKAGE / name).is_file()), None)
    root = index.source_root()
    pages = [page_of(file) for file in files] if root is not None else []
    missing = tuple(page for page in pages if root is not None and not (root / page).is_file())
    return Evidence(files, bench, missing, result)


def page_of(file: str) -> str:
    """The docs page of a content file (relative to the package): `docs/methods/STAGE/NAME.md` for a method's,
    its room in place of the stage for others."""
    for entry in index.methods():
        if entry.file == file:
            return f"docs/methods/{entry.stage}/{entry.name.replace(':', '-')}.md"
    path = Path(file)
    return f"docs/methods/{path.parts[0]}/{path.stem.replace('_', '-')}.md"


def files_of_systems() -> dict[int, tuple[str, ...]]:
    """The files that belong to each system, relative to the package."""
    found: dict[int, set[str]] = {}
    for entry in index.methods():
        if entry.system is not None:
            found.setdefault(entry.system, set()).add(entry.file)
    for path in sources(PACKAGE):
        for number in re.findall(
            r"^SYSTEM(?:: \w+)? = (\d+)$", path.read_text(encoding="utf-8"), re.MULTILINE
        ):
            found.setdefault(int(number), set()).add(path.relative_to(PACKAGE).as_posix())
    return {number: tuple(sorted(files)) for number, files in sorted(found.items())}
