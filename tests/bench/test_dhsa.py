"""The bench of DHSA: its documents hold what they ask for, its helpers say what they should."""

from __future__ import annotations

import time

import numpy as np
import pytest

from haversack.bench import Outcome, Run, Unavailable, find_bench
from haversack.bench.dhsa import speed
from haversack.bench.dhsa._models import TEST, TUNE, documents
from haversack.bench.dhsa._records import ASK, FIRST_KEY, FIRST_WORD, START, STOP, VOCABULARY, document


def run(quick: bool = True) -> Run:
    return Run(quick, 1, time.monotonic() + 600)


@pytest.mark.parametrize("length", [64, 700, 4096])
def test_every_question_has_its_answer_in_a_record(length: int) -> None:
    made = document(np.random.default_rng(length), length, answer=3)
    assert made.tokens.shape == (length,) and made.tokens.max() < VOCABULARY
    starts = np.flatnonzero(made.starts)
    records = {int(made.tokens[at]): at for at in starts}
    assert len(records) == len(starts), "a key names one record"
    assert all(FIRST_KEY <= key < FIRST_WORD for key in records)
    ends = np.flatnonzero(made.tokens == STOP)
    assert made.tokens[0] == START
    sizes = ends - starts + 1
    assert sizes.min() >= 5 and sizes.max() <= 60
    asked = np.flatnonzero(made.first)
    assert len(asked) >= length // 8 // 29
    for at in asked:
        assert made.tokens[at - 2] == ASK
        record = records[int(made.tokens[at - 1])]
        assert made.tokens[at : at + 3].tolist() == made.tokens[record + 1 : record + 4].tolist()
        assert made.answers[at : at + 3].all()


def test_splits_share_no_document() -> None:
    one, two = documents(TUNE, 2, 300)[0], documents(TEST, 2, 300)[0]
    assert not np.array_equal(one.tokens, two.tokens)
    assert np.array_equal(one.tokens, documents(TUNE, 1, 300)[0].tokens)
    assert not np.array_equal(two.tokens, documents(TEST, 1, 300, seed=5)[0].tokens)


def test_the_crossing_is_where_the_ratio_passes_one() -> None:
    assert speed.crossed({512: 2.0, 2048: 0.5}) == pytest.approx(512 * 4 ** (2 / 3))
    assert speed.crossed({512: 0.9, 1024: 1.1, 2048: 0.5}) == pytest.approx(1024 * 2 ** (1 / 6))
    assert speed.crossed({512: 0.9, 1024: 0.8}) == 512
    assert speed.crossed({512: 0.9, 1024: 1.01}) is None


def test_attention_over_chosen_entries_takes_fewer_bytes() -> None:
    found = speed.peak_bytes(run())["attention-bytes"]
    assert isinstance(found, Outcome) and found.ratio is not None
    assert 0.2 < found.ratio < 0.65


def test_the_numpy_side_computes_attention() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((2, 5, 5)).astype(np.float32)
    seen = np.tri(5, dtype=bool)
    shares = speed.softmax_of(scores.copy(), seen)
    wanted = np.where(seen, np.exp(scores), 0)
    assert np.allclose(shares, wanted / wanted.sum(axis=-1, keepdims=True), atol=1e-6)


def test_every_bar_has_a_row_and_every_kind_is_quick() -> None:
    bench = find_bench("9")
    assert bench is find_bench("dhsa")
    bars = {row.id: row.bar.value for row in bench.rows if row.bar is not None}
    assert bars["quarter"] == 0.97 and bars["eighth-against-blocks"] == 1.06 and bars["f1"] == 2.0
    assert bars["prefill-8192"] == 0.8 and bars["attention-8192"] == 0.5 and bars["recall-8192"] == 0.97
    assert bars["attention-bytes"] == 0.65 and bars["budget-of-all"] == 1e-5
    assert {row.kind for row in bench.rows if row.quick} == {row.kind for row in bench.rows}
    assert sum(measure.seconds for measure in bench.measures) <= 40 * 60


def test_what_was_published_for_gpus_is_a_reason() -> None:
    found = speed.on_gpus(run())
    assert all(isinstance(each, Unavailable) for each in found.values()) and len(found) == 4
