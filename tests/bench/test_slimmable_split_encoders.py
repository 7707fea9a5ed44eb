"""The bench of slimmable split encoders: a row for every bar, worlds whose best is known, parts that do what
they say."""

from __future__ import annotations

import time

import pytest

from haversack.bench import Run, find_bench
from haversack.bench.slimmable_split_encoders import links
from haversack.bench.slimmable_split_encoders._bench import told
from haversack.share._split_links import segment
from haversack.share.slimmable import Adaptive, Fixed


def test_every_bar_has_a_row() -> None:
    bench = find_bench("13")
    assert bench is find_bench("slimmable-split-encoders")
    ids = {row.id for row in bench.rows}
    assert {"four-over-one", "one-over-teacher", "falls-with-members", "falls-with-bits"} <= ids
    assert {"largest-over-teacher", "bytes-over-jpeg", "below-statics", "switch-ms"} <= ids
    assert {"reload-over-switch", "ensemble-over-largest", "all-statics-over-largest"} <= ids
    assert {"without-sandwich", "without-mode-norms", "without-gains", "payload", "digits"} <= ids
    assert {"over-predecessor", "hits-by-the-clock"} <= ids
    for deadline in (100, 200, 400):
        assert {f"hits-{deadline}", f"gain-{deadline}", f"oracle-gap-{deadline}"} <= ids
    assert {row.kind for row in bench.rows if row.quick} == {row.kind for row in bench.rows}


def test_a_world_whose_best_is_known() -> None:
    """At 432 kB/s a bit takes one millisecond more (and a frame's head a little): 200 ms take three members
    of 60 ms with any bits; four take too long."""
    quality = {(k, b): 10.0 * k + b for k in range(1, 5) for b in range(1, 5)}
    encode = {k: 60.0 * k for k in range(1, 5)}
    world = links.World(quality, encode, [segment(1.0, 432.0)], 20.0)
    assert links.static([world], 200)[0] == (3, 4)
    narrow = links.World(quality, encode, [segment(1.0, 20.0)], 20.0)
    assert links.static([world, narrow], 200)[0] == (2, 3), "one mode for every link"
    best, ours = world.oracle(200), world.played(Adaptive(quality, world.nbytes, encode), 200)
    assert best.hits == ours.hits == 1.0 and best.quality == 34.0
    assert ours.quality > 33.0
    assert world.played(Fixed((4, 1)), 200).hits == 0.0 == world.played(Fixed((4, 1)), 200).quality


def test_links_of_a_run_are_not_those_of_the_tuning() -> None:
    run = Run(False, 0, time.monotonic() + 60)
    names = links.traces(run)
    assert "wave" in names and len(names) == 5
    assert all(int(name.split()[1]) >= 100 for name in names if name != "wave")


def test_a_table_reads_as_rows() -> None:
    assert told({(1, 1): 10.0, (1, 2): 20.04, (2, 1): 30.0}) == "k=1: 10.0 20.0; k=2: 30.0"
    assert told({}) == ""


@pytest.mark.parametrize("deadline", [100, 200, 400])
def test_hits_are_of_the_worst_link(deadline: int) -> None:
    row = next(row for row in find_bench("13").rows if row.id == f"hits-{deadline}")
    assert row.bar is not None and row.bar.value == 0.97 and row.judged == "ours"
