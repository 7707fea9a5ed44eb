"""From what a person types (a number, a slug, the name of a bench) to the bench."""

from __future__ import annotations

import importlib
import pkgutil
import tomllib
from pathlib import Path
from typing import Any

from haversack.bench._harness import Bench
from haversack.core.errors import UserError, nearest_name

_NOT_BENCHES = {"peers", "results"}


def bench_names() -> tuple[str, ...]:
    """The names of all benches there are: every file or folder here that is not machinery."""
    folder = str(Path(__file__).parent)
    return tuple(
        sorted(
            found.name.replace("_", "-")
            for found in pkgutil.iter_modules([folder])
            if not found.name.startswith("_") and found.name not in _NOT_BENCHES
        )
    )


def systems() -> dict[int, dict[str, Any]]:
    """The published systems by number (core/_systems.toml): slug, title and the rest of their entries."""
    path = Path(__file__).parents[1] / "core" / "_systems.toml"
    data = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    entries = data.get("system", data.get("systems", []))
    return {int(entry["number"]): dict(entry) for entry in entries}


def find_bench(given: str) -> Bench:
    """The bench of `given`: a system's number, a slug, or a named bench such as `engine`.

    Raises UserError for a name that is neither (with the nearest), and for a system that has no bench yet.
    """
    known = systems()
    slugs = {entry["slug"]: number for number, entry in known.items()}
    text = given.strip().lower()
    if text.isdigit():
        if int(text) not in known:
            raise UserError(
                f"system {given} does not exist (1 to {max(known, default=0)}); see: haversack systems",
                field="system",
                given=given,
                nearest=min(known, key=lambda number: abs(number - int(text)), default=None),
            )
        text = known[int(text)]["slug"]
    benches = bench_names()
    if text in benches:
        module = importlib.import_module(f"haversack.bench.{text.replace('-', '_')}")
        bench: Bench = module.bench
        return bench
    if text in slugs:
        entry = known[slugs[text]]
        raise UserError(
            f"{entry['slug']} ({entry['title']}) has no bench: its state is absent; "
            f"benches: {', '.join(benches)}",
            field="system",
            given=given,
            nearest=nearest_name(text, benches) or (benches[0] if benches else None),
        )
    nearest = nearest_name(text, [*benches, *slugs])
    hint = f"; did you mean {nearest}?" if nearest else ""
    raise UserError(
        f"system {given!r} is not known{hint} See: haversack systems",
        field="system",
        given=given,
        nearest=nearest,
    )
