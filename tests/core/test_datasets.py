"""The registry of public data: where a set is looked for, and that a download is held against its hash."""

from __future__ import annotations

import functools
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from haversack.core import _datasets
from haversack.core._datasets import Dataset, contents_sha256, dataset_path, datasets, local_path
from haversack.core.errors import DamagedFileError, UserError


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address it is served at."""
    folder = tmp_path / "origin"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def archive(files: dict[str, bytes], compression: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w:{compression}") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


FILES = {"set-1/a.wav": b"first", "set-1/b.wav": b"second", "set-1/README.md": b"words"}


@pytest.fixture
def registered(
    origin: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path
) -> Dataset:
    folder, address = origin
    (folder / "set.tar.gz").write_bytes(archive(FILES, "gz"))
    held = contents_sha256(folder / "set.tar.gz", (".wav",))
    entry = Dataset(
        "few",
        "a few",
        "audio/few.tar",
        f"{address}/set.tar.gz",
        "CC0",
        contents_sha256=held,
        endings=(".wav",),
    )
    monkeypatch.setattr(_datasets, "datasets", lambda: {"few": entry})
    monkeypatch.setenv("HAVERSACK_DATA", str(tmp_path / "data"))
    return entry


def test_every_set_says_where_it_comes_from_and_what_it_is() -> None:
    for entry in datasets().values():
        assert entry.url.startswith("https://") and entry.licence and entry.file
        assert len(entry.sha256 or entry.contents_sha256) == 64
        assert bool(entry.contents_sha256) == bool(entry.endings)


def test_the_named_folder_comes_first(registered: Dataset, tmp_path: Path) -> None:
    assert local_path("few") is None
    own = tmp_path / "data" / "audio" / "few.tar"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"a copy of one's own")
    assert dataset_path("few") == own


def test_a_download_is_kept_when_its_contents_are_right(
    registered: Dataset, origin: tuple[Path, str]
) -> None:
    folder, _ = origin
    found = dataset_path("few")
    assert contents_sha256(found, (".wav",)) == registered.contents_sha256
    (folder / "set.tar.gz").unlink()
    assert dataset_path("few") == found  # from the cache


def test_an_archive_made_anew_is_the_same_set(registered: Dataset, origin: tuple[Path, str]) -> None:
    folder, _ = origin
    (folder / "set.tar.gz").write_bytes(archive(dict(reversed(FILES.items())), "bz2"))
    assert dataset_path("few").is_file()


@pytest.mark.parametrize(
    "content",
    [archive({**FILES, "set-1/b.wav": b"altered"}, "gz"), archive({}, "gz"), b"an error page"],
    ids=["altered", "empty", "no archive"],
)
def test_an_altered_download_is_removed(
    registered: Dataset, origin: tuple[Path, str], content: bytes, cache: Path
) -> None:
    folder, _ = origin
    (folder / "set.tar.gz").write_bytes(content)
    with pytest.raises(DamagedFileError):
        dataset_path("few")
    assert not [path for path in (cache / "data").iterdir() if path.is_file()]


def test_an_origin_that_does_not_answer_is_named(registered: Dataset, origin: tuple[Path, str]) -> None:
    folder, _ = origin
    (folder / "set.tar.gz").unlink()
    with pytest.raises(UserError, match=r"cannot be fetched from .*HAVERSACK_DATA"):
        dataset_path("few")


def test_an_unknown_set_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean spoken-digits"):
        dataset_path("spoken-digit")
