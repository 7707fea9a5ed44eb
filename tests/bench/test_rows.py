"""The verdict on a row: bars, ratios of pairs, and what may not be claimed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.bench import Bar, Outcome, Row, Side
from haversack.bench._rows import blank, judge

ROW_KEYS = {
    "id", "claim", "published", "baseline", "ours", "ratio", "unit", "judged", "bar", "holds", "source",
    "note",
}  # fmt: skip
SEVEN = tuple(float(value) for value in range(1, 8))


def row(**changes):
    return Row(**{"id": "r", "claim": "c", "unit": "s", "kind": "quality", "bar": Bar("<=", 1.0)} | changes)


@pytest.mark.parametrize(
    ("op", "value", "inside", "outside"),
    [("<=", 2.0, 2.0, 2.1), (">=", 2.0, 2.0, 1.9), ("==", 2.0, 2.0, 2.5), ("in", (1.0, 2.0), 1.0, 0.9)],
)
def test_each_kind_of_bar_accepts_its_edge_and_refuses_beyond(op, value, inside, outside):
    bar = Bar(op, value)
    assert bar.holds(inside) and not bar.holds(outside)
    assert not bar.holds(math.nan)


def test_bars_that_mean_nothing_are_refused():
    for op, value in (("<", 1.0), ("in", 1.0), ("<=", (1.0, 2.0))):
        with pytest.raises(ValueError):
            Bar(op, value)
    with pytest.raises(ValueError, match="kind"):
        row(kind="speed")
    with pytest.raises(ValueError, match="judged"):
        row(judged="baseline")


def test_ratio_is_the_median_of_the_pairs_ratios_not_the_ratio_of_medians():
    outcome = Outcome(Side("ours", (1.0, 10.0, 100.0)), Side("base", (1.0, 5.0, 400.0)))
    assert outcome.ratio == 1.0  # the pairs give 1, 2 and 0.25
    assert Outcome(Side("ours", (4.0, 6.0)), Side("base", (2.0,))).ratio == 2.5


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=7, max_size=15),
    st.sampled_from(["<=", ">="]),
    st.floats(0.05, 20),
)
def test_verdict_follows_from_ratio_and_bar(pairs, op, value):
    ours, baseline = zip(*pairs, strict=True)
    told = judge(row(kind="time", bar=Bar(op, value)), Outcome(Side("o", ours), Side("b", baseline)))
    assert set(told) == ROW_KEYS
    assert told["holds"] is (told["ratio"] <= value if op == "<=" else told["ratio"] >= value)
    assert told["baseline"]["n"] == told["ours"]["n"] == len(pairs)
    assert told["ours"]["min"] <= told["ours"]["median"] <= told["ours"]["max"]


def test_judging_ours_alone_ignores_the_baseline():
    outcome = Outcome.single(0.9, 0.1, against="other")
    assert judge(row(judged="ours"), outcome)["holds"] is True
    assert judge(row(judged="ratio"), outcome)["holds"] is False


def test_no_bar_or_no_ratio_is_no_verdict():
    assert judge(row(bar=None), Outcome.single(1.0, 2.0))["holds"] is None
    told = judge(row(), Outcome.single(1.0))
    assert told["baseline"] is None and told["ratio"] is None and told["holds"] is None
    assert judge(row(), Outcome.single(1.0, 0.0))["ratio"] is None


def test_a_timing_with_fewer_than_seven_pairs_is_refused():
    six = Outcome(Side("o", SEVEN[:6]), Side("b", SEVEN[:6]))
    with pytest.raises(ValueError, match="at least 7 pairs"):
        judge(row(kind="time"), six)
    assert judge(row(kind="time", bar=None), six)["holds"] is None


def test_blank_rows_have_the_same_keys():
    assert set(blank(row(), "why")) == ROW_KEYS and blank(row())["holds"] is None
