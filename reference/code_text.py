"""The text that the `code` models learn from: library sources, by path and SHA-256 in code_text.tsv.

``python reference/code_text.py verify [--stdlib DIR]`` checks every file; ``select`` writes the list anew
from the running interpreter's library (maintainers, once per CPython release). The rules of the selection are
the constants below; whole packages, with their tests, are held out and never trained on.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import sys
import sysconfig
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

LIST_FILE = Path(__file__).with_name("code_text.tsv")
RELEASE = "3.11.7"

EXCLUDED_FOLDERS = (
    "encodings",
    "pydoc_data",
    "lib2to3",
    "test/test_lib2to3",
    "idlelib",
    "site-packages",
    "ensurepip/_bundled",
    "msilib",
)
# Written by a program, or mostly numbers.
GENERATED_TABLES = (
    "keyword.py",
    "token.py",
    "stringprep.py",
    "html/entities.py",
    "re/_casefix.py",
    "test/test_strtod.py",
    "test/test_int_literal.py",
    "test/test_sunau.py",
    "test/test_wave.py",
    "test/test_aifc.py",
    "test/re_tests.py",
)
# A file or folder of this list is held out with everything below it: library packages, and the tests of three
# of them, in about the proportion of `xz -9` costing 1.46 bits a byte.
HELD_OUT = (
    "concurrent",
    "configparser.py",
    "dataclasses.py",
    "email",
    "http",
    "json",
    "test/test_json",
    "test/test_tomllib",
    "test/test_wsgiref.py",
    "tomllib",
    "wsgiref",
    "zoneinfo",
)
# Tests of held-out packages, and older copies of their code: neither trained on nor scored.
HELD_BACK = (
    "test/test_concurrent_futures.py",
    "test/test_configparser.py",
    "test/test_dataclasses",
    "test/test_email",
    "test/test_http_cookiejar.py",
    "test/test_http_cookies.py",
    "test/test_httplib.py",
    "test/test_httpservers.py",
    "test/test_zoneinfo",
)
SHORTEST_BYTES = 200
LONG_LINE_CHARACTERS = 20  # shorter lines do not count as shared between files
NEAR_DUPLICATE_SHARE = 0.5  # of a file's long lines that another, larger file has too


@dataclass(frozen=True)
class TextFile:
    """One listed file; ``part`` is ``train`` or ``held-out``."""

    part: str
    sha256: str
    size: int
    path: str


class TextDiffersError(Exception):
    """The standard library found is not the listed release."""


def running_stdlib() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def listed_files(list_file: Path = LIST_FILE) -> list[TextFile]:
    """The tracked list in its order, which is the order of the text."""
    files = []
    for line in list_file.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            part, sha256, size, path = line.split("\t")
            files.append(TextFile(part, sha256, int(size), path))
    return files


def read_text(stdlib: Path | None = None, list_file: Path = LIST_FILE) -> dict[str, list[tuple[str, str]]]:
    """``{"train": [(path, text), ...], "held-out": [...]}`` after checking every hash."""
    folder = stdlib or running_stdlib()
    texts: dict[str, list[tuple[str, str]]] = {"train": [], "held-out": []}
    wrong = []
    for file in listed_files(list_file):
        source = folder / file.path
        content = source.read_bytes() if source.is_file() else b""
        if hashlib.sha256(content).hexdigest() != file.sha256:
            wrong.append(f"{file.path} ({'differs' if content else 'is missing'})")
        else:
            texts[file.part].append((file.path, content.decode("utf-8").replace("\r\n", "\n")))
    if wrong:
        raise TextDiffersError(
            f"{len(wrong)} of the listed standard-library files are not those of CPython {RELEASE} "
            f"(first: {wrong[0]}). Run this script with CPython {RELEASE}, tests of the library included, or "
            f"give the Lib folder of its source archive with --stdlib DIR "
            f"(https://www.python.org/downloads/release/python-{RELEASE.replace('.', '')}/)."
        )
    return texts


def is_below(path: str, places: tuple[str, ...]) -> bool:
    """Whether ``path`` is one of ``places`` or lies in one of them."""
    return any(path == place or path.startswith(place + "/") for place in places)


def long_lines(text: str) -> set[str]:
    """The distinct stripped lines that say enough to be recognised elsewhere."""
    return {line.strip() for line in text.split("\n") if len(line.strip()) > LONG_LINE_CHARACTERS}


def near_duplicates(texts: dict[str, str], held_out: set[str]) -> set[str]:
    """Paths whose long lines mostly stand in one other file; held-out files are kept and win over others."""
    owners: dict[str, list[str]] = defaultdict(list)
    dropped = set()
    for path in sorted(texts, key=lambda path: (path not in held_out, -len(texts[path]), path)):
        lines = long_lines(texts[path])
        shared = Counter(owner for line in lines for owner in owners[line])
        if shared and max(shared.values()) >= NEAR_DUPLICATE_SHARE * len(lines) and path not in held_out:
            dropped.add(path)
            continue
        for line in lines:
            owners[line].append(path)
    return dropped


def select(stdlib: Path) -> list[TextFile]:
    """Apply the rules above to a standard library."""
    texts, hashes = {}, {}
    for source in sorted(stdlib.rglob("*.py")):
        path = source.relative_to(stdlib).as_posix()
        if is_below(path, EXCLUDED_FOLDERS + GENERATED_TABLES + HELD_BACK) or path.startswith(
            ("config-", "_sysconfigdata")
        ):
            continue
        content = source.read_bytes()
        try:
            text = content.decode("utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in string literals are fine
                ast.parse(text)
        except (ValueError, SyntaxError):
            continue  # test data that is broken on purpose
        if len(content) < SHORTEST_BYTES:
            continue
        texts[path] = text
        hashes[path] = (hashlib.sha256(content).hexdigest(), len(content))
    held_out = {path for path in texts if is_below(path, HELD_OUT)}
    dropped = near_duplicates(texts, held_out)
    return [
        TextFile("held-out" if path in held_out else "train", *hashes[path], path)
        for path in texts
        if path not in dropped
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("verify", "select"))
    parser.add_argument("--stdlib", type=Path, default=None, help="default: that of the running interpreter")
    arguments = parser.parse_args()
    if arguments.action == "select":
        files = select(arguments.stdlib or running_stdlib())
        header = f"# Standard library of CPython {RELEASE}: part, SHA-256, bytes, path (by code_text.py).\n"
        rows = "".join(f"{file.part}\t{file.sha256}\t{file.size}\t{file.path}\n" for file in files)
        LIST_FILE.write_text(header + rows, encoding="utf-8")
    try:
        texts = read_text(arguments.stdlib)
    except TextDiffersError as error:
        sys.exit(str(error))
    for part, documents in texts.items():
        print(f"{part}: {len(documents)} files, {sum(len(text.encode()) for _, text in documents):,} bytes")


if __name__ == "__main__":
    main()
