"""The harness on small real benches: interleaving, storing, staleness, quick runs, honest failures."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from haversack.bench import (
    Bar,
    Bench,
    Outcome,
    Row,
    Run,
    Unavailable,
    _harness,
    _store,
    run_bench,
    stored_result,
)
from haversack.core.errors import DamagedFileError, UserError

DOCUMENT_KEYS = {"system", "number", "mode", "machine", "commit", "seconds", "rows"}


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A package folder with one method file to watch; results land beside it, not in the project's own."""
    package = tmp_path / "site" / "haversack"
    (package / "bench").mkdir(parents=True)
    (package / "kernels").mkdir()
    (package / "kernels" / "sums.py").write_text("first = 1\n")
    monkeypatch.setattr(_store, "PACKAGE", package)
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))
    return package


def sums_bench(**changes) -> Bench:
    """Adding numbers by numpy against a Python loop: a time row, a quality row, a bytes row."""
    bench = Bench(**{"slug": "sums", "watches": ("kernels/*.py",)} | changes)

    @bench.measure(
        Row("speed", "numpy adds faster than a loop", unit="s", kind="time", bar=Bar("<=", 0.5), quick=True),
        Row(
            "error",
            "and as exactly",
            unit="relative",
            kind="quality",
            judged="ours",
            bar=Bar("<=", 1e-9),
            quick=True,
        ),
        seconds=1,
        quick_seconds=1,
    )
    def speed(run: Run):
        values = np.random.default_rng(run.seed).random(20000)
        numbers = values.tolist()

        def timed(function):
            def once():
                start = time.perf_counter()
                function()
                return time.perf_counter() - start

            return once

        taken = run.interleave({"loop": timed(lambda: sum(numbers)), "numpy": timed(values.sum)})
        error = abs(values.sum() - sum(numbers)) / sum(numbers)
        return {
            "speed": Outcome.of(taken, baseline="loop", ours="numpy"),
            "error": Outcome.single(error, note="against a loop"),
        }

    @bench.measure(
        Row("bytes", "an array is smaller than a list", unit="B", kind="bytes", bar=Bar("<=", 0.01)),
        seconds=1,
    )
    def size(run: Run):
        return {"bytes": Outcome.single(8 * 1000, 36 * 1000, against="list")}

    return bench


def by_id(document):
    return {row["id"]: row for row in document["rows"]}


def test_a_full_run_is_judged_and_stored(house):
    document = run_bench(sums_bench(number=4))
    assert set(document) == DOCUMENT_KEYS
    assert (document["system"], document["number"], document["mode"]) == ("sums", 4, "full")
    rows = by_id(document)
    assert rows["speed"]["holds"] is True and rows["speed"]["ours"]["n"] == 7
    assert rows["bytes"]["holds"] is False, "a missed bar is shown as missed"
    assert all(row["source"] == "measured" for row in rows.values())
    again = stored_result("sums")
    assert {row["id"]: row["ratio"] for row in again["rows"]} == {
        key: row["ratio"] for key, row in rows.items()
    }
    assert {row["source"] for row in again["rows"]} == {"stored"}
    json.dumps(document)


def test_a_quick_run_measures_each_quick_kind_anew_and_stores_nothing(house):
    run_bench(sums_bench())
    before = _store.result_path("sums").read_bytes()
    seeds = set()
    for _ in range(2):
        rows = by_id(run_bench(sums_bench(), quick=True))
        assert rows["speed"]["source"] == rows["error"]["source"] == "measured"
        assert rows["bytes"]["source"] == "stored" and rows["bytes"]["holds"] is False
        seeds.add(rows["error"]["note"])
    assert len(seeds) == 2 and all("seed" in note for note in seeds)
    assert _store.result_path("sums").read_bytes() == before


def test_stored_rows_turn_stale_when_a_watched_file_changes(house):
    run_bench(sums_bench())
    (house / "kernels" / "sums.py").write_text("first = 2\n")
    assert {row["source"] for row in stored_result("sums")["rows"]} == {"stale"}
    assert by_id(run_bench(sums_bench(), quick=True))["bytes"]["source"] == "stale"
    (house / "kernels" / "sums.py").write_text("first = 1\n")
    assert {row["source"] for row in stored_result("sums")["rows"]} == {"stored"}
    (house / "kernels" / "more.py").write_text("")
    assert {row["source"] for row in stored_result("sums")["rows"]} == {"stale"}, "a new file counts too"


def test_rows_measured_apart_keep_their_own_hash(house):
    run_bench(sums_bench())
    (house / "kernels" / "sums.py").write_text("first = 2\n")
    document = run_bench(sums_bench(), rows="by*")
    assert by_id(document)["bytes"]["source"] == "measured"
    sources = {row["id"]: row["source"] for row in stored_result("sums")["rows"]}
    assert sources == {"speed": "stale", "error": "stale", "bytes": "stored"}


def test_native_sources_count_only_where_they_exist(house, tmp_path):
    bench = sums_bench(watches=("kernels/*.py", "native/*.cpp"))
    root = tmp_path / "checkout"
    package = root / "src" / "haversack"
    package.parent.mkdir(parents=True)
    house.rename(package)
    (root / "pyproject.toml").write_text("")
    (root / "native").mkdir()
    (root / "native" / "k.cpp").write_text("1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_store, "PACKAGE", package)
        run_bench(bench)
        assert _store.result_path("sums") == package / "bench" / "results" / "sums.json"
        (root / "native" / "k.cpp").write_text("2")
        assert {row["source"] for row in stored_result("sums")["rows"]} == {"stale"}
        (root / "pyproject.toml").unlink()  # now an installed package: shipped results, no native sources
        assert {row["source"] for row in stored_result("sums")["rows"]} == {"stored"}


def test_interleaving_alternates_the_order_and_pairs_by_index():
    calls = []
    run = Run(quick=False, seed=1, deadline=time.monotonic() + 9)

    def side(name):
        return lambda: calls.append(name) or len(calls)

    taken = run.interleave({"a": side("a"), "b": side("b"), "c": side("c")}, rounds=4)
    assert "".join(calls) == "abccbaabccba"
    assert taken == {"a": [1, 6, 7, 12], "b": [2, 5, 8, 11], "c": [3, 4, 9, 10]}


def test_what_cannot_be_measured_has_no_verdict_but_a_reason(house):
    bench = sums_bench()

    @bench.measure(Row("peer", "beats a peer", unit="s", kind="time", bar=Bar("<=", 1.0)), seconds=1)
    def peer(run: Run):
        raise Unavailable("the peer is not built here")

    row = by_id(run_bench(bench))["peer"]
    assert row["holds"] is None and row["note"] == "the peer is not built here" and row["ours"] is None
    assert by_id(run_bench(bench, rows="peer"))["peer"]["note"] == "the peer is not built here"
    (house / "kernels" / "sums.py").write_text("first = 2\n")
    sources = {row["id"]: row["source"] for row in stored_result("sums")["rows"]}
    assert sources == {"speed": "stale", "error": "stale", "bytes": "stale", "peer": "stored"}


def test_a_row_that_was_never_measured_keeps_its_latest_reason(house):
    bench = sums_bench()

    @bench.measure(Row("peer", "beats a peer", unit="s", kind="time", bar=Bar("<=", 1.0)), seconds=1)
    def peer(run: Run):
        raise Unavailable("the peer is not built here")

    run_bench(bench, rows="bytes")
    assert by_id(stored_result("sums"))["peer"]["note"] != "the peer is not built here"
    run_bench(bench, rows="peer")
    run_bench(bench, rows="bytes")
    assert by_id(stored_result("sums"))["peer"]["note"] == "the peer is not built here"


def test_a_later_pattern_takes_back_what_an_earlier_one_left_out(house):
    bench = sums_bench(watches=("kernels/*.py", "!kernels/s*.py", "kernels/sums.py", "!kernels/other.py"))
    run_bench(bench)
    (house / "kernels" / "other.py").write_text("")
    assert {row["source"] for row in stored_result("sums")["rows"]} == {"stored"}
    (house / "kernels" / "sums.py").write_text("first = 2\n")
    assert {row["source"] for row in stored_result("sums")["rows"]} == {"stale"}


def test_an_absent_peer_leaves_the_stored_measurement_with_the_reason(house):
    bench = Bench("peer", watches=())
    present = True

    @bench.measure(Row("size", "smaller", unit="B", kind="bytes", bar=Bar("<=", 1.0)), seconds=1)
    def size(run: Run):
        if not present:
            return {"size": Unavailable("gone")}
        return {"size": Outcome.single(1, 2)}

    run_bench(bench)
    present = False
    for _ in range(2):
        row = by_id(run_bench(bench))["size"]
        assert row["source"] == "stored" and row["holds"] is True and row["ratio"] == 0.5
        assert row["note"] == "not measured now: gone"


def test_a_measurement_that_breaks_fails_its_rows_and_spares_the_others(house):
    bench = sums_bench()

    @bench.measure(Row("broken", "works", unit="s", kind="time", bar=Bar("<=", 1.0)), seconds=1)
    def broken(run: Run):
        return 1 / 0

    rows = by_id(run_bench(bench))
    assert rows["broken"]["holds"] is False and "ZeroDivisionError" in rows["broken"]["note"]
    assert rows["speed"]["holds"] is True


def test_measures_that_no_longer_fit_the_time_are_left_out_and_say_so(house, monkeypatch):
    bench = sums_bench()
    monkeypatch.setattr(_harness, "QUICK_SECONDS", 0.5)
    rows = by_id(run_bench(bench, quick=True))
    assert rows["speed"]["holds"] is None and "would pass" in rows["speed"]["note"]


def test_quick_runs_take_the_cheapest_measure_of_each_kind_first():
    bench = Bench("order", watches=())
    costs = {"a": ("time", 30), "b": ("time", 5), "c": ("quality", 20), "d": ("time", 6)}
    for name, (kind, cost) in costs.items():
        bench.measure(Row(name, "", unit="s", kind=kind, quick=True), seconds=1, quick_seconds=cost)(
            lambda run: {}
        )
    order = [measure.rows[0].id for measure in _harness._quick_order(bench.measures)]
    assert order == ["b", "c", "d", "a"]


def test_globs_that_match_nothing_and_rows_declared_twice_are_refused(house):
    with pytest.raises(UserError, match="no row of sums matches 'spede'") as caught:
        run_bench(sums_bench(), rows="spede")
    assert caught.value.nearest == "speed"
    with pytest.raises(ValueError, match="twice"):
        sums_bench().measure(Row("speed", "", unit="s", kind="time"), seconds=1)


def test_a_damaged_result_file_is_a_sentence(house):
    path = _store.result_path("sums")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(DamagedFileError, match="no bench result"):
        run_bench(sums_bench(), quick=True)


def _rows_of(path):
    return {row["id"]: row for row in json.loads(path.read_text())["rows"]}


def test_a_run_killed_in_the_middle_keeps_what_it_measured_and_the_old_rows(house, tmp_path):
    run_bench(sums_bench())
    before = _rows_of(_store.result_path("sums"))
    script = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from haversack.bench import _store, Bar, Bench, Outcome, Row, run_bench
        _store.PACKAGE = Path({str(house)!r})
        bench = Bench("sums", watches=())
        @bench.measure(Row("bytes", "", unit="B", kind="bytes", bar=Bar("<=", 1.0)), seconds=1)
        def first(run):
            return {{"bytes": Outcome.single(5, 7)}}
        @bench.measure(Row("speed", "", unit="s", kind="time"), seconds=1)
        def second(run):
            print("busy", flush=True)
            time.sleep(60)
        run_bench(bench)
        """
    )
    for stop in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(os.environ),
        ) as process:
            assert process.stdout.readline() == b"busy\n"
            process.send_signal(stop)
            assert process.wait(20) != 0
        after = _rows_of(_store.result_path("sums"))
        assert after["bytes"]["ours"]["median"] == 5 and after["speed"] == before["speed"]
        assert [path.name for path in _store.result_path("sums").parent.iterdir()] == ["sums.json"]
