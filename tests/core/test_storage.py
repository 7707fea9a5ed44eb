import os
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from haversack.core._pace import Pace
from haversack.core.device import device
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.memory import cached_mib, drop_cached
from haversack.core.storage import DirectFile, SlowStorage, aligned_buffer

DATA = os.urandom(40_001)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("storage") / "data"
    path.write_bytes(DATA)
    return path


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, 40_001), count=st.integers(0, 40_001))
def test_any_range_reads_as_it_is(file, offset, count):
    with DirectFile(file) as opened:
        if offset + count > len(DATA):
            with pytest.raises(DamagedFileError, match="ends at byte"):
                opened.read(offset, count)
        else:
            assert bytes(opened.read(offset, count)) == DATA[offset : offset + count]
            buffer = aligned_buffer(count)
            assert bytes(opened.read(offset, count, buffer)) == DATA[offset : offset + count]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranges=st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 10_000)), max_size=8))
def test_many_ranges_come_in_the_order_asked_for(file, ranges):
    with DirectFile(file) as opened:
        found = opened.read_many(ranges)
    assert [bytes(view) for view in found] == [DATA[offset : offset + count] for offset, count in ranges]


def test_touching_ranges_are_read_together(file):
    with DirectFile(file) as opened:
        opened.read_many([(4096, 4096), (0, 4096), (8192, 100)])
        assert opened.bytes_read == 3 * 4096


def test_reading_leaves_nothing_in_the_page_cache(tmp_path):
    path = tmp_path / "big"
    path.write_bytes(bytes(12 << 20))
    drop_cached([path])
    if cached_mib(path) > 1:
        pytest.skip("this file system keeps its files in memory")
    with DirectFile(path) as opened:
        assert bytes(opened.read(5, 11 << 20)) == bytes(11 << 20)
    assert cached_mib(path) < 1


def test_a_file_system_without_direct_reads_still_reads(file, monkeypatch):
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    with DirectFile(file) as opened:
        assert not opened.direct
        assert bytes(opened.read(4000, 5000)) == DATA[4000:9000]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="absent cannot be read"):
        DirectFile(tmp_path / "absent")


@settings(max_examples=100, deadline=None)
@given(
    rate=st.floats(1, 1e9),
    burst=st.floats(0, 1e6),
    asks=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1e6)), min_size=1, max_size=30),
)
def test_a_pace_is_kept_over_any_stretch(rate, burst, asks):
    pace, now, done = Pace(rate, burst), 0.0, []
    for gap, count in asks:
        now += gap
        ready = pace.reserve(count, now)
        assert ready >= now
        done.append((now, ready, count))
    for first in range(len(done)):  # bytes that passed from any ask on never exceed rate x time + burst
        for last in range(first, len(done)):
            passed = sum(count for _, _, count in done[first : last + 1])
            allowed = burst + rate * (done[last][1] - done[first][0])
            assert passed <= allowed * (1 + 1e-9) + 1e-3


def test_slow_storage_takes_its_time_and_is_shared(file):
    storage = SlowStorage(mb_s=1.0, latency_us=2000)
    files = [DirectFile(file, storage) for _ in range(2)]
    started = time.monotonic()
    threads = [threading.Thread(target=opened.read, args=(0, 40_000)) for opened in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - started
    assert 2 * 40_960 / 1e6 <= took < 2 * 40_960 / 1e6 + 0.5


def test_small_reads_in_a_row_keep_the_rate_though_sleeps_end_late(file):
    nominal, taken, plain = 300 * 4096 / 50e6, [], []
    with DirectFile(file, SlowStorage(mb_s=50.0)) as opened, DirectFile(file) as fast:
        for _ in range(5):
            for one, into in ((opened, taken), (fast, plain)):
                started = time.monotonic()
                for _ in range(300):
                    one.read(0, 4096)
                into.append(time.monotonic() - started)
    assert min(taken) >= nominal - 1e-3
    # the other work of the machine may be in some, and its own storage may be the slower one
    assert min(taken) < 1.6 * max(nominal, min(plain)) + min(plain)


def test_a_device_lends_its_storage():
    assert SlowStorage.of(device("raspberry-pi-zero-2w")).ready_at(22_000_000, 0.0) == pytest.approx(1.0)
    with pytest.raises(UserError):
        SlowStorage(0)
