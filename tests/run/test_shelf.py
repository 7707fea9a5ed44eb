"""The books of an expert buffer, and the recipes for what leaves it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.run._eviction import EVICTIONS, Belady, Frequencies, eviction, least_missed
from haversack.run._reader import LIKELY, NEEDED, WAITED_FOR
from haversack.run._shelf import Shelf, replay
from haversack.run.residency.edgemoe import Intent, Printed, layers_ahead, layers_as_printed

LAYERS, EXPERTS = 4, 5


class Fixed:
    """Frequencies that are what the specification's example says."""

    def __init__(self, shares: dict) -> None:
        self.shares, self.layers, self.first = shares, 4, 0

    def __getitem__(self, key: tuple) -> float:
        return self.shares[key]

    def used(self, key: tuple) -> None: ...


SHARES = {(2, 0): 0.2, (1, 0): 0.9, (0, 0): 0.5, (3, 0): 0.4}


def test_the_specification_s_distances() -> None:
    """Four layers, layer 1 running: layers 2, 1 (just used), 0, 3."""
    assert [layers_ahead(layer, 1, 4) for layer in (2, 1, 0, 3)] == [1, 4, 3, 2]
    assert [layers_as_printed(layer, 1, 4) for layer in (2, 1, 0, 3)] == [3, 4, 1, 2]


def test_an_encoder_s_layers_do_not_come_again() -> None:
    """Two layers of an encoder before four of a decoder: while layer 3 (the decoder's second) runs, the
    decoder's own are as far as in the specification's example, the encoder's farthest."""
    assert [layers_ahead(layer, 3, 6, 2) for layer in (4, 3, 2, 5)] == [1, 4, 3, 2]
    assert [layers_ahead(layer, 3, 6, 2) for layer in (0, 1)] == [6, 6]
    assert [layers_ahead(layer, 0, 6, 2) for layer in (1, 2, 5)] == [1, 2, 5]
    assert [layers_as_printed(layer, 3, 6, 2) for layer in (4, 3, 2, 5)] == [3, 4, 1, 2]
    shares = Frequencies(6, 2, np.full((6, 2), 0.5), 2)
    assert [shares[layer, 0] for layer in range(6)] == [0, 0, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("kind", "keeps", "leaves"),
    [(Intent, [0.2, 0.225, 0.5 / 3, 0.2], (0, 0)), (Printed, [0.2 / 3, 0.225, 0.5, 0.2], (2, 0))],
)
def test_the_specification_s_eviction(kind: type, keeps: list, leaves: tuple) -> None:
    """As intended the experts of layer 0 leave; as printed those of layer 2, which runs next."""
    recipe = kind(Fixed(SHARES))
    assert [recipe.keep(key, 1) for key in SHARES] == pytest.approx(keeps, rel=1e-4)
    shelf = Shelf(4, recipe)
    for key in SHARES:
        assert shelf.admit(key, 1) == []
        shelf.arrived(key, None)
    shelf.layer = 1
    (left,) = shelf.admit((2, 4), 1) or ()
    assert left.key == leaves


def full(shelf: Shelf, *keys: tuple) -> None:
    for key in keys:
        assert shelf.admit(key, 1) is not None
        shelf.arrived(key, f"value of {key}")


def test_a_guess_takes_no_place_of_what_is_needed_or_expected() -> None:
    shelf = Shelf(3, eviction("lru", LAYERS, EXPERTS))
    full(shelf, (0, 0), (0, 1))
    shelf.ask((0, 0))  # needed now
    assert shelf.admit((1, 0), 1, LIKELY) == []
    shelf.arrived((1, 0), None)
    (left,) = shelf.admit((1, 1), 1, LIKELY) or ()
    assert left.key == (0, 1)
    shelf.arrived((1, 1), None)
    assert shelf.admit((1, 2), 1, LIKELY) is None  # one is needed, two are expected
    (left,) = shelf.admit((0, 2), 1, NEEDED) or ()
    assert left.key == (1, 0)  # what is needed goes before what was guessed
    shelf.arrived((0, 2), None)
    shelf.pin((0, 2))
    assert shelf.admit((0, 3), 2, NEEDED) is None
    left_all = shelf.admit((0, 3), 2, WAITED_FOR) or ()
    assert [item.key for item in left_all] == [(1, 1), (0, 0)]  # what someone waits for goes before all


def test_what_is_in_use_or_on_its_way_stays() -> None:
    shelf = Shelf(2, eviction("fifo", LAYERS, EXPERTS))
    full(shelf, (0, 0))
    shelf.pin((0, 0))
    assert shelf.admit((0, 1), 1) == []  # and does not arrive
    assert shelf.admit((0, 2), 1, WAITED_FOR) is None
    shelf.drop((0, 1))
    assert shelf.admit((0, 2), 1, WAITED_FOR) == []
    assert shelf.statistics.evictions == 0


def test_every_use_is_counted_once() -> None:
    shelf = Shelf(2, eviction("lru", LAYERS, EXPERTS))
    shelf.ask((0, 0))
    full(shelf, (0, 0))
    shelf.pin((0, 0))
    shelf.unpin((0, 0))
    assert shelf.admit((1, 0), 1, LIKELY) == []
    shelf.ask((1, 0))  # guessed, and still on its way
    shelf.arrived((1, 0), None)
    shelf.pin((1, 0))
    shelf.unpin((1, 0))
    assert [item.key for item in shelf.admit((2, 0), 1, LIKELY) or ()] == [(0, 0)]
    shelf.arrived((2, 0), None)
    shelf.settle(2)  # the guess was wrong
    shelf.ask((2, 1))
    assert [item.key for item in shelf.admit((2, 1), 1) or ()] == [(1, 0)]
    shelf.arrived((2, 1), None)
    shelf.pin((2, 1))
    shelf.unpin((2, 1))
    assert [item.key for item in shelf.admit((3, 1), 1) or ()] == [(2, 0)]
    counts = shelf.statistics
    assert (counts.asked, counts.hits, counts.late, counts.demands) == (3, 0, 1, 2)
    assert (counts.preloads, counts.useful, counts.wasted) == (2, 1, 1)
    assert counts.peak_nbytes == 2 and counts.nbytes == 4  # the last has not arrived
    assert counts.record()["hit_ratio"] == 0.0


def test_a_buffer_that_keeps_nothing_lets_go_after_use() -> None:
    shelf = Shelf(9, eviction("lru", LAYERS, EXPERTS), keeps=False)
    for _ in range(3):
        assert shelf.ask((0, 0)) is None
        full(shelf, (0, 0))
        shelf.pin((0, 0))
        shelf.unpin((0, 0))
        assert shelf.taken == 0
    assert shelf.statistics.demands == 3


TRACES = st.lists(st.tuples(st.integers(0, LAYERS - 1), st.integers(0, EXPERTS - 1)), max_size=120)


@settings(max_examples=150, deadline=None)
@given(trace=TRACES, budget=st.integers(1, 12), name=st.sampled_from(EVICTIONS))
def test_no_recipe_reads_less_than_belady_and_none_takes_more_than_the_budget(trace, budget, name) -> None:
    ours = replay(trace, lambda key: 1, budget, eviction(name, LAYERS, EXPERTS))
    best = replay(trace, lambda key: 1, budget, Belady(trace))
    assert best.nbytes <= ours.nbytes
    assert best.nbytes == least_missed(trace, lambda key: 1, budget)
    assert ours.peak_nbytes <= budget and best.peak_nbytes <= budget
    assert ours.hits + ours.demands == ours.asked == len(trace)
    again = replay(trace, lambda key: 1, budget, eviction(name, LAYERS, EXPERTS))
    assert again == ours


@settings(max_examples=80, deadline=None)
@given(trace=TRACES, budget=st.integers(4, 30), name=st.sampled_from(EVICTIONS))
def test_sizes_may_differ(trace, budget, name) -> None:
    def nbytes(key: tuple) -> int:
        return 1 + key[1] % 4

    found = replay(trace, nbytes, budget, eviction(name, LAYERS, EXPERTS))
    assert found.peak_nbytes <= budget
    assert found.asked == len(trace)


def test_what_fits_in_no_buffer_is_said_with_its_bytes() -> None:
    with pytest.raises(UserError, match="need 7 bytes of memory and the budget leaves 5; allow 2 bytes more"):
        replay([(0, 0)], lambda key: 7, 5, eviction("lru", 1, 1))


def test_frequencies_come_from_the_profile_or_are_counted() -> None:
    profile = np.array([[0.1, 0.9]])
    told, counted = eviction("frequency", 1, 2, profile), eviction("frequency", 1, 2)
    for recipe in (told, counted):
        for key in ((0, 0), (0, 0), (0, 1)):
            recipe.used(key)
    assert told.keep((0, 1), 0) == pytest.approx(0.9)
    assert counted.keep((0, 0), 0) == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="eviction=random is not supported"):
        eviction("random", 1, 2)
