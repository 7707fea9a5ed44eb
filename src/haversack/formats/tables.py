"""Tables of texts with labels: CSV, TSV and JSON lines.

    text,label                        {"text": "my parcel is late", "label": "delivery"}
    my parcel is late,delivery

A table is UTF-8 (a byte order mark is allowed) and its first line names the columns. A label is a word or a
whole number. Every refusal names the line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haversack.core.errors import UserError, unknown_name

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
BYTES_MOST = 1 << 30


@dataclass(frozen=True)
class Table:
    """The rows of one file: a text and the name of its class each."""

    path: Path
    texts: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that occur: by number where all are whole numbers, else by name."""
        found = set(self.labels)
        if all(name.lstrip("-").isdigit() for name in found):
            return tuple(sorted(found, key=int))
        return tuple(sorted(found))


def is_table(path: Path) -> bool:
    """Whether `path` is named like a table."""
    return path.suffix.lower() in ENDINGS


def read_table(path: Path, text: str = "text", label: str = "label") -> Table:
    """The columns `text` and `label` of the table `path`.

    Raises UserError for a file that is absent, not UTF-8 throughout, without these columns, without rows, or
    with a row that has no text or no label, naming the line.
    """
    rows = list(_rows(path, text, label))
    if not rows:
        raise UserError(f"{path} has no rows below its first line.", field="data", given=str(path))
    return Table(path, tuple(text for text, _ in rows), tuple(label for _, label in rows))


def _rows(path: Path, text: str, label: str) -> Iterator[tuple[str, str]]:
    whole = _decoded(path)
    found = _json_rows(path, whole) if path.suffix.lower() in ENDINGS[2:] else _csv_rows(path, whole)
    for line, row in found:
        for column in (text, label):
            if column not in row:
                option = "text-column" if column == text else "label-column"
                error = unknown_name("column", column, [str(name) for name in row], field=option)
                raise UserError(
                    f"{path}, line {line}: {error}; name it with --{option}.",
                    field=error.field,
                    given=column,
                    nearest=error.nearest,
                )
        said, name = row[text], row[label]
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        for column, value in ((text, said), (label, name)):
            if not isinstance(value, str) or not value.strip():
                what = "is empty" if value in ("", None) or isinstance(value, str) else f"is {value!r:.40}"
                raise UserError(
                    f"{path}, line {line}: the column {column} {what}; it takes a text.",
                    field="data",
                    given=f"line {line}",
                )
        yield said, name.strip()


def _csv_rows(path: Path, whole: str) -> Iterator[tuple[int, dict[str, Any]]]:
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(1 << 24)
    reader = csv.reader(io.StringIO(whole, newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        names = [name.strip() for name in next(reader, [])]
        while True:
            line = reader.line_num + 1
            cells = next(reader)
            if not cells:
                continue
            if len(cells) != len(names):
                raise UserError(
                    f"{path}, line {line}: it has {len(cells)} columns and the first line names "
                    f"{len(names)}; put a text that holds {'tabs' if separator == chr(9) else 'commas'} "
                    "between quotes.",
                    field="data",
                    given=f"line {line}",
                )
            yield line, dict(zip(names, cells, strict=True))
    except StopIteration:
        return
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: it is no row of a table ({error}).", field="data", given=f"line {line}"
        ) from error


def _json_rows(path: Path, whole: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(whole.split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, line {line}: it is not JSON ({error}).", field="data", given=f"line {line}"
            ) from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {line}: it is no JSON object.", field="data", given=f"line {line}")
        yield line, row


def _decoded(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(BYTES_MOST + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", field="data", given=str(path)) from error
    if len(data) > BYTES_MOST:
        raise UserError(f"{path} has more than {BYTES_MOST >> 20} MiB.", field="data", given=str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: it is not UTF-8 (byte {error.start}); save the whole table in UTF-8.",
            field="data",
            given=f"line {line}",
        ) from error
