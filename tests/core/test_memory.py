import mmap
import os
import subprocess
import sys

import pytest

from haversack.core.errors import UserError
from haversack.core.memory import (
    MemoryPlan,
    MemoryWatch,
    cached_mib,
    drop_cached,
    peak_mib,
    run_measured,
)

MIB = 2**20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc, which is Linux's")


def run(code, **kwargs):
    done = run_measured([sys.executable, "-S", "-c", code], **kwargs)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def nothing_mib():
    """What an interpreter that does nothing holds."""
    return run("import mmap, os, sys, time; time.sleep(0.3)").peak_mib


@pytest.fixture
def file(tmp_path):
    """A file of 24 MiB on a disk, out of the page cache."""
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(24 * MIB))
    drop_cached([path])
    if cached_mib(path) > 1:
        pytest.skip("this file system keeps its files in memory")
    return path


def test_a_buffer_is_counted_also_when_it_is_gone_again(nothing_mib):
    used = run("import time; b = bytearray(b'x') * (40 << 20); del b; time.sleep(0.3)").peak_mib - nothing_mib
    assert 39 < used < 44


def test_the_parent_does_not_colour_the_child(nothing_mib):
    held = bytearray(b"x") * (200 * MIB)
    assert abs(run("import mmap, os, sys, time; time.sleep(0.3)").peak_mib - nothing_mib) < 4
    assert len(held) and peak_mib() > 200


def test_children_are_summed_also_those_that_ended(nothing_mib):
    grow = "import time; b = bytearray(b'x') * (20 << 20); time.sleep(0.3)"
    code = (
        f"import subprocess, sys\nfor _ in range(2): subprocess.run([sys.executable, '-S', '-c', {grow!r}])"
    )
    used = run(code).peak_mib
    assert 3 * nothing_mib + 38 < used < 3 * nothing_mib + 60


def test_a_child_in_its_parents_memory_is_not_counted_twice(nothing_mib):
    code = """
import ctypes, os
libc = ctypes.CDLL(None)
held = bytearray(b"x") * (60 << 20)
stack = ctypes.create_string_buffer(1 << 16)
top = ctypes.c_void_p(ctypes.addressof(stack) + (1 << 15))
CLONE_VM, CLONE_VFORK, SIGCHLD = 0x100, 0x4000, 17  # as vfork does; the child sleeps, then ends
libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
sleep = ctypes.cast(libc.usleep, ctypes.c_void_p)
child = libc.clone(sleep, top, CLONE_VM | CLONE_VFORK | SIGCHLD, 300_000)
assert child > 0 and os.waitpid(child, 0)[0] == child
"""
    assert 59 < run(code).peak_mib - nothing_mib < 75


def test_reading_a_file_costs_its_cached_pages(nothing_mib, file):
    code = f"import os, time; f = os.open({str(file)!r}, 0)\nwhile os.read(f, 1 << 20): pass\ntime.sleep(0.3)"
    assert 23 < run(code, files=[file]).peak_mib - nothing_mib < 30
    assert run(code).peak_mib - nothing_mib < 6, "not asked for, not counted"


def test_dropping_what_was_read_does_not_cost(nothing_mib, file):
    code = (
        f"import os, time; f = os.open({str(file)!r}, 0)\n"
        "while os.read(f, 1 << 20): os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)\ntime.sleep(0.3)"
    )
    # A look in the middle of a read sees what is about to be dropped; kept, all 24 MiB would count.
    assert run(code, files=[file]).peak_mib - nothing_mib < 16


def test_mapped_pages_are_counted_once(nothing_mib, file):
    code = (
        f"import mmap, os, time; f = os.open({str(file)!r}, 0)\n"
        "m = mmap.mmap(f, 0, access=mmap.ACCESS_READ); s = sum(m[i] for i in range(0, len(m), 4096))\n"
        "time.sleep(0.3)"
    )
    for _ in range(2):  # cold, then warm: the cached pages must not count beside the mapped ones
        assert 23 < run(code, files=[file]).peak_mib - nothing_mib < 30


def test_pages_that_were_mapped_at_the_peak_are_not_counted_again_when_unmapped(nothing_mib, file):
    code = (
        f"import mmap, os, time; f = os.open({str(file)!r}, 0)\n"
        "m = mmap.mmap(f, 0, access=mmap.ACCESS_READ); s = sum(m[i] for i in range(0, len(m), 4096))\n"
        "time.sleep(0.3); m.close(); time.sleep(0.3)"
    )
    assert 23 < run(code, files=[file]).peak_mib - nothing_mib < 30


def test_a_copy_beside_the_cached_file_is_counted_with_it(nothing_mib, file):
    code = (
        f"import mmap, os, time; f = os.open({str(file)!r}, 0); b = bytearray()\n"
        "for at in range(0, 24 << 20, 4 << 20):\n"
        "    m = mmap.mmap(f, 4 << 20, offset=at, access=mmap.ACCESS_READ)\n"
        "    b += m; m.close(); time.sleep(0.05)\n"
        "time.sleep(0.3)"
    )
    assert 40 < run(code, files=[file]).peak_mib - nothing_mib < 60


def test_half_mapped_half_read(nothing_mib, file):
    code = (
        f"import mmap, os, time; f = os.open({str(file)!r}, 0)\nwhile os.read(f, 1 << 20): pass\n"
        "m = mmap.mmap(f, 12 << 20, access=mmap.ACCESS_READ); s = sum(m[i] for i in range(0, len(m), 4096))\n"
        "time.sleep(0.3)"
    )
    assert 23 < run(code, files=[file]).peak_mib - nothing_mib < 30


def test_this_process_can_watch_itself(file):
    import subprocess

    with MemoryWatch() as watch:
        before = watch.peak_mib
        grow = "import time; b = bytearray(b'x') * (30 << 20); time.sleep(0.3)"
        subprocess.run([sys.executable, "-S", "-c", grow], check=True)
    assert watch.peak_mib - before > 30
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as view:
        opened.read()
        unmapped = peak_mib([file]) - peak_mib()
        assert 20 < unmapped <= 24.5
        assert sum(view[i] for i in range(0, len(view), 4096)) >= 0
        assert peak_mib([file]) - peak_mib() < 1


PEAKS = """
from haversack.core.memory import peak_mib, reset_peak
if not reset_peak():
    raise SystemExit(3)
block = bytearray(b"x") * (64 << 20)
high = peak_mib()
del block
reset_peak()
print(high - peak_mib())
"""


def test_the_peak_can_start_again():
    """In a fresh process: one that trained keeps what it freed."""
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("this system does not let a process reset its peak")
    assert done.returncode == 0 and float(done.stdout) > 50, done.stderr


def test_output_return_code_and_environment_arrive():
    code = "import os, sys; print(os.environ['NOTE']); print(sys.stdin.read(), file=sys.stderr); sys.exit(3)"
    done = run_measured([sys.executable, "-S", "-c", code], env={"NOTE": "here"}, stdin="said")
    assert (done.returncode, done.stdout, done.stderr) == (3, "here\n", "said\n")
    assert done.seconds > 0


def test_a_command_that_hangs_is_ended_with_its_children():
    with pytest.raises(UserError, match="took longer"):
        run_measured(["/bin/sh", "-c", "sleep 60 & sleep 60"], timeout=0.2)


def test_a_command_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no-such-command cannot be started"):
        run_measured(["no-such-command"])


def test_the_kernel_enforces_a_limit():
    code = "b = bytearray(b'x') * (100 << 20)"
    try:
        fits = run_measured([sys.executable, "-S", "-c", code], limit_mib=160)
    except UserError as error:
        pytest.skip(str(error))
    assert fits.returncode == 0, fits.stderr
    assert run_measured([sys.executable, "-S", "-c", code], limit_mib=60).returncode == -9


def test_a_plan_adds_up_and_prints_its_lines():
    plan = MemoryPlan((("weights", 10 * MIB), ("cache", MIB // 2))) + MemoryPlan((("tokenizer", MIB),))
    assert plan.total_mib == 11.5
    assert plan.record() == {"total_mib": 11.5, "lines": {"weights": 10.0, "cache": 0.5, "tokenizer": 1.0}}
    assert plan.text(12.25).splitlines()[-2:] == ["  planned        11.5 MiB", "  measured       12.2 MiB"]
