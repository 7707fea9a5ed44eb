"""Stored results: where they live, which files they depend on, and when they are stale.

A stored row keeps, besides the row of `bench --json`, what it was measured with: machine, commit, date, the
watched file patterns and a hash over those files. The hash has two parts, because an installed wheel has the
package's files but not the native sources: there only the first part is compared.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from haversack.bench._cache import cache_folder
from haversack.core import _files
from haversack.core.errors import DamagedFileError

PACKAGE = Path(__file__).resolve().parents[1]
_ALWAYS = ("bench/_rows.py", "bench/_harness.py")


def source_root() -> Path | None:
    """The repository's root when the package runs from a source checkout, else None."""
    root = PACKAGE.parents[1]
    return root if (root / "pyproject.toml").is_file() and PACKAGE.parent.name == "src" else None


def watched_files(patterns: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The files that `patterns` name, of the package and (patterns `native/...`) of the repository.

    One pattern after the other: one that begins with `!` takes files away again.
    """
    package: set[Path] = set()
    native: set[Path] = set()
    root = source_root()
    for pattern in (*patterns, *_ALWAYS):
        name = pattern.removeprefix("!")
        if name.startswith("native/"):
            found, base = native, root
        else:
            found, base = package, PACKAGE
        if base is None:
            continue
        if pattern.startswith("!"):
            found.difference_update(base.glob(name))
        else:
            found.update(path for path in base.glob(name) if path.is_file())
    return sorted(package), sorted(native)


def content_hash(patterns: Sequence[str]) -> dict[str, str | None]:
    """`{"package": hex, "native": hex or None}` over names and bytes of the watched files."""
    package, native = watched_files(patterns)
    return {
        "package": _hash(package, PACKAGE),
        "native": _hash(native, source_root() or PACKAGE) if source_root() else None,
    }


def _hash(paths: Sequence[Path], base: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(str(path.relative_to(base)).encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:20]


def is_stale(stored: Mapping[str, Any]) -> bool:
    """Whether a watched file changed since the row was measured; one that has only a reason cannot age."""
    if stored.get("ours") is None and stored.get("holds") is None:
        return False
    then, now = stored.get("hash") or {}, content_hash(stored.get("watches") or ())
    if then.get("package") != now["package"]:
        return True
    return now["native"] is not None and then.get("native") != now["native"]


def result_path(slug: str) -> Path:
    """Where results are written: beside the bench files in a source checkout, else in the user's cache."""
    folder = PACKAGE / "bench" / "results" if source_root() else cache_folder() / "bench" / "results"
    return folder / f"{slug}.json"


def stored_result(slug: str) -> dict[str, Any] | None:
    """The stored document of `slug`, each row's `source` set to `stored` or `stale`; None when there is none.

    An installed package's own results (shipped) are read where the user has not measured any yet.
    Raises DamagedFileError when the file is not what `store` writes.
    """
    for path in (result_path(slug), PACKAGE / "bench" / "results" / f"{slug}.json"):
        if path.is_file():
            break
    else:
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = {row["id"]: row for row in document["rows"]}
    except (ValueError, KeyError, TypeError) as error:
        advice = f"Remove it and run: haversack bench {slug}"
        raise DamagedFileError(path, f"it holds no bench result ({error})", advice=advice) from error
    for row in rows.values():
        row["source"] = "stale" if is_stale(row) else "stored"
    return dict(document)


def store(
    slug: str,
    document: Mapping[str, Any],
    measured: Iterable[str],
    watches: Mapping[str, Sequence[str]],
) -> Path:
    """Write the rows whose ids are in `measured`, keeping the old file's other rows as they were; in one
    step.

    `watches` names each row's files. Rows that were never measured are written with their latest reason.
    """
    path = result_path(slug)
    old = stored_result(slug)
    kept = {row["id"]: row for row in old["rows"]} if old else {}
    hashes: dict[tuple[str, ...], dict[str, str | None]] = {}
    fresh = set(measured)
    rows = []
    for row in document["rows"]:
        old_row = kept.get(row["id"])
        if old_row is not None and row["id"] not in fresh:
            never = old_row["ours"] is None and old_row["holds"] is None
            reason = {"note": row["note"]} if never else {}
            rows.append({**old_row, **reason, "source": "stored"})
            continue
        patterns = tuple(watches[row["id"]])
        if patterns not in hashes:
            hashes[patterns] = content_hash(patterns)
        stamp = {
            "machine": document["machine"],
            "commit": document["commit"],
            "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "watches": list(patterns),
            "hash": hashes[patterns],
        }
        rows.append({**row, "source": "stored", **stamp})
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**document, "rows": rows}, indent=1, ensure_ascii=False) + "\n"
    _files.write_atomically(path, text.encode())
    return path
