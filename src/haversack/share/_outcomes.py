"""Paired outcomes: how a weak and a strong model did on the same queries, read from CSV and JSON lines.

CSV: a column of queries (prompt, query, question or text) and one column of true/false or 0..1 a model, as
RouteLLM publishes its MMLU and GSM8K answers; other columns are ignored, but `subject`. Several files make
one set; a file named mmlu_SUBJECT.csv gives its rows that subject. JSON lines: objects with the same fields.
Which model is the weak one is told by name, else by who is right more rarely.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, UserError, unknown_name

QUERY = ("prompt", "query", "question", "text")
MOST_BYTES = 512 << 20
MOST_FIELD = 1 << 20
F64 = NDArray[np.float64]
_WORDS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}


@dataclass(frozen=True)
class Outcomes:
    """`weak`, `strong` f64 [n] in [0, 1]: how right each was on `queries`; `pair`: their names; `subjects`
    are empty texts where none is told."""

    queries: tuple[str, ...]
    weak: F64
    strong: F64
    pair: tuple[str, str]
    subjects: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.queries)

    def part(self, index: Sequence[int] | NDArray[np.int64]) -> Outcomes:
        """The outcomes at some places."""
        return Outcomes(
            tuple(self.queries[int(at)] for at in index),
            self.weak[np.asarray(index, np.int64)],
            self.strong[np.asarray(index, np.int64)],
            self.pair,
            tuple(self.subjects[int(at)] for at in index),
        )


def read_outcomes(
    paths: Sequence[str | os.PathLike[str]], weak: str | None = None, strong: str | None = None
) -> Outcomes:
    """The outcomes of all files together. Raises UserError for a file that is absent or tells nothing of two
    models, DamagedFileError for a row that does not hold."""
    if not paths:
        raise UserError("no file of outcomes is given.", field="outcomes")
    rows: list[tuple[Path, int, dict[str, Any]]] = []
    for given in paths:
        path = Path(given)
        rows += [(path, number, row) for number, row in _rows(path)]
    if not rows:
        raise UserError("the outcomes hold no row.", field="outcomes", given=str(paths[0]))
    first = rows[0][2]
    query = next((name for name in QUERY if name in first), None)
    if query is None:
        raise UserError(
            f"{rows[0][0]} has no column of queries (one of {', '.join(QUERY)}).",
            field="outcomes",
            nearest="prompt",
        )
    names = _pair([row for _, _, row in rows[:2000]], query, weak, strong)
    values = np.array([[_score(path, number, row, name) for name in names] for path, number, row in rows])
    if weak is None and strong is None and values[:, 0].mean() > values[:, 1].mean():
        names, values = (names[1], names[0]), values[:, ::-1]
    queries = tuple(str(row.get(query) or "") for _, _, row in rows)
    subjects = tuple(str(row.get("subject") or _subject(path)) for path, _, row in rows)
    return Outcomes(queries, values[:, 0].copy(), values[:, 1].copy(), names, subjects)


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} is larger than 512 MiB.", field="outcomes", given=str(path))
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedFileError(path, "it is not UTF-8", field="outcomes") from error
    except OSError as error:
        said = f"{path} cannot be read: {error.strerror}."
        raise UserError(said, field="outcomes", given=str(path)) from error
    if path.suffix in (".jsonl", ".json", ".ndjson"):
        return _json_lines(path, text)
    csv.field_size_limit(MOST_FIELD)
    reader = csv.DictReader(text.splitlines(keepends=True))
    try:
        return [(reader.line_num, dict(row)) for row in reader]
    except csv.Error as error:
        raise DamagedFileError(
            path, f"line {reader.line_num} is no CSV ({error})", field="outcomes"
        ) from error


def _json_lines(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DamagedFileError(path, f"line {number} is no JSON", field="outcomes") from error
        if not isinstance(row, dict):
            raise DamagedFileError(path, f"line {number} is no object", field="outcomes")
        rows.append((number, row))
    return rows


def _pair(rows: list[dict[str, Any]], query: str, weak: str | None, strong: str | None) -> tuple[str, str]:
    """The columns of the two models, in the file's order where they are not named."""
    found = [
        name
        for name in rows[0]
        if name and name not in (query, "subject") and all(_number(row.get(name)) is not None for row in rows)
    ]
    for given, field in ((weak, "weak"), (strong, "strong")):
        if given is not None and given not in found:
            raise unknown_name("model", given, found, field=field)
    if weak is not None or strong is not None:
        others = [name for name in found if name not in (weak, strong)]
        missing = (weak is None) + (strong is None)
        if missing and len(others) != 1:
            raise UserError(f"name both models; the file has {', '.join(found)}.", field="weak")
        return weak or others[0], strong or others[0]
    if len(found) != 2:
        raise UserError(
            f"two columns of outcomes are needed and {len(found)} are there ({', '.join(found) or 'none'}); "
            "name them with --weak and --strong.",
            field="weak",
        )
    return found[0], found[1]


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _WORDS:
            return _WORDS[text]
        if not re.fullmatch(r"[01]?\.?\d{1,12}", text):
            return None
        value = float(text)
    if isinstance(value, int | float) and 0 <= value <= 1:
        return float(value)
    return None


def _score(path: Path, number: int, row: dict[str, Any], name: str) -> float:
    value = _number(row.get(name))
    if value is None:
        shown = str(row.get(name))[:40]
        raise DamagedFileError(path, f"line {number}: {name}={shown} is no outcome in 0..1", field="outcomes")
    return value


def _subject(path: Path) -> str:
    found = re.fullmatch(r"mmlu_(.+)", path.stem)
    return found[1] if found else ""
