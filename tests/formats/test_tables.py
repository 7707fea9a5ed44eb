"""Tables of texts with labels: three forms, one reading, and every refusal names the line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.formats.tables import is_table, read_table

WORDS = st.text(min_size=1, max_size=30).filter(lambda text: text.strip() and "\0" not in text)
ROWS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8)


@given(ROWS)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("t")
    rows = [
        (text.encode("utf-8", "replace").decode(), label.encode("utf-8", "replace").decode())
        for text, label in rows
    ]
    for name, delimiter in (("t.csv", ","), ("t.tsv", "\t")):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
            writer.writerow(["text", "label"])
            writer.writerows(rows)
    lines = [json.dumps({"label": label, "text": text, "more": 1}) for text, label in rows]
    (folder / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name in ("t.csv", "t.tsv", "t.jsonl"):
        found = read_table(folder / name)
        assert list(found.texts) == [text for text, _ in rows], name
        assert list(found.labels) == [label.strip() for _, label in rows], name


def test_labels_that_are_numbers_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": "x", "label": label}) + "\n" for label in (10, 9, "2")))
    assert read_table(path).classes == ("2", "9", "10")
    (tmp_path / "t.csv").write_text("\ufefftext,label\na,b\nc,10\n", encoding="utf-8")
    assert read_table(tmp_path / "t.csv").classes == ("10", "b")


def test_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("review,stars\nfine,5\n")
    assert read_table(path, "review", "stars").labels == ("5",)
    with pytest.raises(UserError, match=r"column 'text' is not known.*review, stars.*--text-column"):
        read_table(path)
    with pytest.raises(UserError, match="--label-column"):
        read_table(path, "review", "mark")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("t.csv", b"text,label\na,b\nc,d,e\n", "line 3: it has 3 columns and the first line names 2"),
        ("t.csv", b"text,label\na,b\n,d\n", "line 3: the column text is empty"),
        ("t.csv", b"text,label\na,b\nc, \n", "line 3: the column label is empty"),
        ("t.csv", b"text,label\n", "no rows"),
        ("t.csv", b"", "no rows"),
        ("t.csv", b"text,label\na,b\nma\xf1ana,c\n", "line 3: it is not UTF-8"),
        ("t.csv", "text,label\na,b\n".encode("utf-16"), "line 1: it is not UTF-8"),
        ("t.csv", b'text,label\n"a,b\n', "line 2: it is no row"),
        ("t.jsonl", b'{"text": "a", "label": "b"}\n{"text": 1}\n', "line 2"),
        ("t.jsonl", b'{"text": "a", "label": 1.5}\n', "line 1: the column label is 1.5"),
        ("t.jsonl", b'{"text": "a", "label": true}\n', "line 1: the column label is True"),
        ("t.jsonl", b'{"text": null, "label": "b"}\n', "line 1: the column text is empty"),
        ("t.jsonl", b"[1]\n", "line 1: it is no JSON object"),
        ("t.jsonl", b"\n\n{\n", "line 3: it is not JSON"),
        ("t.jsonl", b"[" * 100_000, "line 1: it is not JSON"),
    ],
)
def test_refusals_name_the_line(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError) as refusal:
        read_table(path)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_table_is_told_by_its_ending(tmp_path: Path) -> None:
    assert is_table(Path("A.CSV")) and is_table(Path("a.ndjson")) and not is_table(Path("a.txt"))
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / "none.csv")
