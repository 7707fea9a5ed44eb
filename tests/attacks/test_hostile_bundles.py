"""Bundles made to reach other paths, to take memory, or to pass for consented: refused in one sentence."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import time
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.collect._findings import check_bundle
from haversack.collect._tables import read_table
from haversack.collect.bundle import MANIFEST_MOST, BundleError, Manifest, parse_manifest

_spec = importlib.util.spec_from_file_location(
    "collect_bundles", Path(__file__).parents[1] / "collect" / "bundles.py"
)
bundles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bundles)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = bundles.make(tmp_path_factory.mktemp("spool"))
    return json.loads((folder / "manifest.json").read_text())


def changed(raw, path, value):
    """The manifest with one field, named by `path`, replaced or (...) removed."""
    made = json.loads(json.dumps(raw))
    place = made
    *above, last = path.split("/")
    for part in above:
        place = place[int(part) if part.isdigit() else part]
    if value is ...:
        del place[last]
    else:
        place[int(last) if last.isdigit() else last] = value
    return json.dumps(made).encode()


HOSTILE = {
    "no-consent": ("consent", ..., "consent"),
    "null-consent": ("consent", None, "consent"),
    "consent-of-nobody": ("consent/contributor_pseudonym", "", "consent"),
    "consent-to-nothing": ("consent/policy_version", ..., "consent"),
    "consent-for-no-time": ("consent/retention_days", 0, "consent"),
    "consent-for-ever": ("consent/retention_days", 10**9, "consent"),
    "consent-true": ("consent/retention_days", True, "consent"),
    "consent-path": ("consent/contributor_pseudonym", "../anna", "consent"),
    "session-above": ("session", "../../etc", "name"),
    "session-absolute": ("session", "/etc/passwd", "name"),
    "session-hidden": ("session", ".ssh", "name"),
    "session-empty": ("session", "", "name"),
    "session-nul": ("session", "a\0b", "name"),
    "session-newline": ("session", "a\nb", "name"),
    "session-endless": ("session", "a" * 5000, "name"),
    "session-unicode": ("session", "ａ", "name"),
    "device-above": ("device/id", "..", "name"),
    "uuid-above": ("clip_uuid", "../../../x", "name"),
    "uuid-upper": ("clip_uuid", "6F9619FF-8B86-D011-B42D-00CF4FC964FF", "name"),
    "uuid-braces": ("clip_uuid", "{6f9619ff-8b86-d011-b42d-00cf4fc964ff}", "name"),
    "file-above": ("files/0/name", "../../video.mp4", "name"),
    "file-twice": ("files/0/name", "imu.parquet", "name"),
    "file-absolute": ("files/0/name", "/etc/passwd", "name"),
    "file-missing": ("files", [], "name"),
    "hash-short": ("files/0/sha256", "ab", "hash"),
    "hash-upper": ("files/0/sha256", "A" * 64, "hash"),
    "hash-path": ("files/0/sha256", "../" * 21 + "a", "hash"),
    "bytes-negative": ("files/0/bytes", -1, "size"),
    "bytes-zero": ("files/0/bytes", 0, "size"),
    "bytes-endless": ("files/0/bytes", 2**63 - 1, "size"),
    "bytes-beyond-64-bits": ("files/0/bytes", 2**70, "size"),
    "frames-endless": ("n_frames", 2**40, "size"),
    "frames-none": ("n_frames", 0, "size"),
    "frames-fraction": ("n_frames", 1.5, "manifest"),
    "wide": ("width", 2**20, "size"),
    "both-large": ("height", 8192 * 4096, "size"),
    "fps-nought": ("fps_nominal", 0, "manifest"),
    "fps-negative": ("fps_nominal", -30, "manifest"),
    "fps-endless": ("fps_nominal", 1e300, "manifest"),
    "rotation": ("rotation", 45, "manifest"),
    "gap-backwards": ("gaps", [[5, 1]], "timestamps"),
    "gaps-endless": ("gaps", [[1, 2]] * 5000, "timestamps"),
    "future": ("schema_version", 2, "schema-version"),
    "version-true": ("schema_version", True, "schema-version"),
    "version-none": ("schema_version", ..., "schema-version"),
    "more": ("extra", 1, "manifest"),
    "model-endless": ("device/model", "x" * 10_000, "manifest"),
    "model-terminal": ("device/model", "\x1b[2J", "manifest"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_is_refused(good, name):
    path, value, code = HOSTILE[name]
    with pytest.raises(BundleError) as caught:
        parse_manifest(changed(good, path, value))
    assert caught.value.code == code
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"{" * 100_000,
        b"[" * 250_000,
        b" " * (MANIFEST_MOST + 1),
        b'{"a":1}{}',
    ],
    ids=lambda data: repr(data[:8]),
)
def test_what_is_no_manifest_is_refused_quickly(data):
    tracemalloc.start()
    begun = time.monotonic()
    with pytest.raises(BundleError):
        parse_manifest(data)
    assert time.monotonic() - begun < 1
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*Manifest.__struct_fields__, "x"]), inner)
        ),
    )
)
def test_no_document_does_anything_but_hold_or_be_refused(document):
    with contextlib.suppress(BundleError):
        parse_manifest(msgspec.json.encode(document))


def refused(folder, *expected):
    tracemalloc.start()
    begun = time.monotonic()
    checked = check_bundle(folder)
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()
    assert time.monotonic() - begun < 10
    assert {finding.code for finding in checked.findings} & set(expected), checked.findings


def test_a_link_in_the_place_of_a_file(tmp_path):
    folder = bundles.make(tmp_path)
    (folder / "imu.parquet").unlink()
    (folder / "imu.parquet").symlink_to("/etc/passwd")
    refused(folder, "name")


def test_a_stranger_in_the_folder(tmp_path):
    folder = bundles.make(tmp_path)
    (folder / "run.sh").write_text("#!/bin/sh")
    refused(folder, "name")


def test_a_video_cut_short_with_a_manifest_that_agrees(tmp_path):
    folder = bundles.make(tmp_path, 60)
    data = (folder / "video.mp4").read_bytes()
    for part in (0.3, 0.6, 0.9):
        (folder / "video.mp4").write_bytes(data[: int(len(data) * part)])
        bundles.reseal(folder, "video.mp4")
        refused(folder, "video", "count")


def test_a_video_with_garbage_within(tmp_path):
    folder = bundles.make(tmp_path, 60)
    data = bytearray((folder / "video.mp4").read_bytes())
    begin = data.index(b"mdat") + 200
    data[begin : begin + 3000] = np.random.default_rng(0).bytes(3000)
    (folder / "video.mp4").write_bytes(data)
    bundles.reseal(folder, "video.mp4")
    refused(folder, "video", "count")


def test_a_video_that_is_wider_than_the_manifest_says(tmp_path):
    folder = bundles.make(tmp_path)
    wide = np.zeros((16, 8208, 3), np.uint8)
    bundles.write_video(folder / "video.mp4", [(t, wide) for t in bundles.times(2).tolist()], 15.0)
    bundles.reseal(folder, "video.mp4")
    refused(folder, "video")


@pytest.mark.parametrize(
    "data",
    [b"\0", b"not a video at all" * 100, b"\0\0\0\x18ftypmp42" + b"\0" * 5000],
    ids=["nul", "text", "box"],
)
def test_what_is_no_video(tmp_path, data):
    folder = bundles.make(tmp_path)
    (folder / "video.mp4").write_bytes(data)
    bundles.reseal(folder, "video.mp4")
    refused(folder, "video")


def test_a_playlist_is_not_followed(tmp_path):
    """FFmpeg reads other files when a playlist says so; a clip is MP4 and nothing else."""
    folder = bundles.make(tmp_path)
    (folder / "video.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n")
    bundles.reseal(folder, "video.mp4")
    refused(folder, "video")


@pytest.mark.parametrize("name", ["frames.parquet", "imu.parquet", "edge.parquet"])
def test_tables_with_a_byte_of_each_place_altered(tmp_path, name):
    """Never anything but a table that holds or a finding."""
    folder = bundles.make(tmp_path, 8)
    whole = (folder / name).read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(whole)
        data[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))
        (folder / name).write_bytes(data)
        try:
            read_table(folder / name)
        except BundleError as error:
            assert error.code == "table"


def test_a_table_that_claims_a_thousand_million_rows(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder = bundles.make(tmp_path, 8)
    count = 2_000_000
    table = pa.table(
        {"t_ns": pa.array(np.zeros(count, np.int64)), "key": pa.array(np.zeros(count, bool))},
        schema=pa.schema([pa.field("t_ns", pa.int64(), False), pa.field("key", pa.bool_(), False)]),
    )
    parquet.write_table(table, folder / "frames.parquet", compression="zstd")
    assert (folder / "frames.parquet").stat().st_size < 20_000
    bundles.reseal(folder, "frames.parquet")
    refused(folder, "table")
