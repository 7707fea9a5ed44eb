"""The registry of public data: where a set lies, where it comes from, its hash, its licence.

`dataset_path` looks in the folder that HAVERSACK_DATA names, then in the user's cache, and fetches from the
public origin (through pooch, imported only then) what is in neither. What is fetched is held against its
hash; what lies in the folder is the user's own choice and may be a part of the set or a newer copy.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from haversack.core._files import cache_folder
from haversack.core.errors import DamagedFileError, MissingExtraError, UserError, unknown_name


@dataclass(frozen=True)
class Dataset:
    """One set: the facts of `_datasets.toml`."""

    name: str
    title: str
    file: str
    url: str
    licence: str
    sha256: str = ""
    contents_sha256: str = ""
    endings: tuple[str, ...] = ()
    name_parts: int = 1


@functools.cache
def datasets() -> dict[str, Dataset]:
    """All sets by name."""
    path = Path(__file__).with_name("_datasets.toml")
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["dataset"]
    sets = [Dataset(**{**entry, "endings": tuple(entry.get("endings", ()))}) for entry in entries]
    return {one.name: one for one in sets}


def local_path(name: str) -> Path | None:
    """Where the set lies on this machine: the folder that HAVERSACK_DATA names, else the cache, else None.

    Raises UserError for a name that is not in the registry.
    """
    entry = _entry(name)
    folder = os.environ.get("HAVERSACK_DATA")
    places = [Path(folder) / entry.file] if folder else []
    places.append(_cached(entry))
    return next((place for place in places if place.exists()), None)


def dataset_path(name: str) -> Path:
    """Where the set lies, fetched into the cache when it is nowhere yet.

    Raises UserError for an unknown name and for an origin that does not answer, MissingExtraError without
    pooch, DamagedFileError for a download that is not what the registry says (it is removed).
    """
    entry = _entry(name)
    if (found := local_path(name)) is not None:
        return found
    try:
        import pooch
    except ImportError:
        raise MissingExtraError(f"fetching the data set {name}", "pooch", "bench") from None
    goal = _cached(entry)
    fetched = goal.with_name(f"{goal.name}.fetched")
    try:
        pooch.retrieve(entry.url, None, fname=fetched.name, path=fetched.parent, progressbar=False)
        held = (
            contents_sha256(fetched, entry.endings, entry.name_parts)
            if entry.contents_sha256
            else _sha256(fetched)
        )
        if held != (entry.contents_sha256 or entry.sha256):
            raise DamagedFileError(
                entry.url, "what came is not what the registry names (SHA-256)", field="data"
            )
        fetched.replace(goal)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the data set {name} cannot be fetched from {entry.url} ({error}); put it at {entry.file} in a "
            "folder and let HAVERSACK_DATA name the folder.",
            field="data",
            given=name,
        ) from error
    finally:
        fetched.unlink(missing_ok=True)
    return goal


def contents_sha256(path: Path, endings: tuple[str, ...], name_parts: int = 1) -> str:
    """The hash of a tar archive's files with these `endings`, whatever the archive's own bytes are: over the
    lines "SHA256  NAME" of all of them, sorted by name, which is the last `name_parts` parts of the path.
    Raises DamagedFileError for what is no archive."""
    hashes = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and member.name.endswith(endings):
                    name = "/".join(Path(member.name).parts[-name_parts:])
                    hashes[name] = hashlib.sha256(file.read()).hexdigest()
    except (tarfile.TarError, EOFError) as error:
        raise DamagedFileError(path, f"it is no whole tar archive ({error})", field="data") from error
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _entry(name: str) -> Dataset:
    known = datasets()
    if name not in known:
        raise unknown_name("data set", name, known, field="data")
    return known[name]


def _cached(entry: Dataset) -> Path:
    return cache_folder() / "data" / entry.name


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
