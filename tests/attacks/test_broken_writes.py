"""Writes that end badly: killed, interrupted, on a full disk. The old pack or the new one is there, whole."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from haversack.core.errors import UserError
from haversack.core.pack import Pack, PackWriter, check_pack

WRITE = """
import sys
from haversack.core.pack import PackWriter
path, mark, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
while True:
    with PackWriter(path) as writer:
        for i in range(count):
            writer.add_tensor(f"t{i}", "u8", (300_000,), [bytes([i]) * 300_000])
        writer.add_file("tokenizer.json", b"{}" * 1000)
        writer.finish({"provenance": {"mark": mark}})
"""


def write(path, mark="old", count=3):
    with PackWriter(path) as writer:
        for i in range(count):
            writer.add_tensor(f"t{i}", "u8", (300_000,), [bytes([i]) * 300_000])
        writer.finish({"provenance": {"mark": mark}})


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_at_any_moment_the_old_pack_or_the_new_is_whole(tmp_path, old, how):
    path = tmp_path / "a.pack"
    rounds = 12 if how == signal.SIGKILL else 4
    moments = random.Random(f"{how}{old}")
    seen = set()
    for _ in range(rounds):
        shutil.rmtree(path, ignore_errors=True)
        if old:
            write(path)
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE, path, "new", "3"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(moments.uniform(0.0, 0.05))
        process.send_signal(how)
        process.wait()
        process.stdout.close()
        if path.exists():
            assert check_pack(path) == []
            seen.add(Pack.open(path).record.provenance["mark"])
        else:
            assert not old
            seen.add(None)
        left = [entry.name for entry in tmp_path.iterdir() if entry.name not in ("a.pack", "cache")]
        if how == signal.SIGINT:
            assert left == [], "Ctrl-C leaves nothing half written"
        assert all(name.startswith("a.pack.partial-") for name in left)
    write(path, "last")
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "cache"] == ["a.pack"]
    assert Pack.open(path).record.provenance == {"mark": "last"} and seen


def test_a_partial_of_a_living_writer_is_left_alone(tmp_path):
    path = tmp_path / "a.pack"
    with PackWriter(path) as slow:
        slow.add_tensor("a", "u8", (1,), [b"x"])
        write(path, "quick")
        slow.finish({"provenance": {"mark": "slow"}})
    assert Pack.open(path).record.provenance == {"mark": "slow"}
    assert check_pack(path) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB, as root; elsewhere the test skips."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mount], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small file system can be mounted: {done.stderr.strip()}")
    yield mount
    subprocess.run(["umount", mount], check=True)


@pytest.mark.parametrize("count", [7, 100])
def test_a_full_disk_keeps_the_old_pack_and_leaves_nothing(small_disk, count):
    path = small_disk / "a.pack"
    write(path, count=2)
    with pytest.raises(UserError, match="the disk is full") as caught:
        write(path, "new", count=count)
    assert "MiB are free" in str(caught.value)
    assert Pack.open(path).record.provenance == {"mark": "old"} and check_pack(path) == []
    assert [entry.name for entry in small_disk.iterdir()] == ["a.pack"]
    with pytest.raises(UserError, match="the disk is full"), PackWriter(path) as writer:
        writer.add_file("big.bin", bytes(3 << 20))
    assert [entry.name for entry in small_disk.iterdir()] == ["a.pack"]


def test_a_file_size_limit_is_told_too(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="larger than this process may write"):
            write(tmp_path / "a.pack")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.glob("a.pack*"))


@pytest.mark.parametrize("folder", ["open", "closed"])
def test_a_folder_one_may_not_write_is_told(tmp_path, folder):
    """`open`: one may look but not write; `closed`: one may not even look."""
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o555 if folder == "open" else 0)
    user = os.geteuid()
    if user == 0:
        for above in (tmp_path, *tmp_path.parents[:2]):
            above.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match="you may not write there"):
            write(place / "a.pack")
    finally:
        os.seteuid(user)
        place.chmod(0o755)


def test_a_read_only_place_is_told():
    proc = Path("/proc/self")
    if not proc.is_dir():
        pytest.skip("no /proc here")
    with pytest.raises(UserError, match="cannot be written"):
        write(proc / "a.pack")
