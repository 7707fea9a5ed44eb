"""Schedules of subgraphs on two processors: the specification's figures, and what every schedule keeps."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.run.prefill._schedule import FLOATS, INTEGERS, POLICIES, Progress, worth
from haversack.simulate.npu_prefill import (
    Decoder,
    Phone,
    layer_sequence,
    phone_times,
    preparation_s,
    simulate,
)


def specified(layers, chunks):
    return [[1, 4, 3 + chunk, 8] * layers for chunk in range(chunks)]


@pytest.mark.parametrize(
    ("layers", "chunks", "serial", "by_chunk", "out_of_order"),
    [(2, 2, 66, 49, 49), (2, 4, 140, 99, 101), (4, 4, 280, 197, 197)],
)
def test_the_specified_schedules(layers, chunks, serial, by_chunk, out_of_order):
    spans = [simulate(layer_sequence(layers), specified(layers, chunks), policy).span for policy in POLICIES]
    assert spans == [serial, by_chunk, out_of_order]
    found = simulate(layer_sequence(layers), specified(layers, chunks), "chunk")
    assert found.busy(INTEGERS) == 12 * layers * chunks


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**20), st.sampled_from(POLICIES))
def test_every_schedule_runs_each_subgraph_once_and_after_what_it_needs(layers, chunks, seed, policy):
    import random

    rng = random.Random(seed)
    sequence = layer_sequence(layers)
    times = [[rng.randint(1, 9) for _ in sequence] for _ in range(chunks)]
    found = simulate(sequence, times, policy)
    by_place = {(event.chunk, event.index): event for event in found.events}
    assert len(by_place) == len(found.events) == chunks * len(sequence)
    for (chunk, index), event in by_place.items():
        assert event.processor == sequence[index].processor
        assert event.end - event.start == times[chunk][index]
        needed = [chunk] if index else []
        needed += range(chunk) if sequence[index].attention else ()
        assert all(by_place[other, index - 1].end <= event.start for other in needed)
    for processor in (INTEGERS, FLOATS):
        own = sorted((one.start, one.end) for one in found.events if one.processor == processor)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(own))
    total = sum(map(sum, times))
    assert found.span == total if policy == "serial" else found.span <= total
    assert found.span >= max(found.busy(INTEGERS), found.busy(FLOATS))


def test_the_rule_prefers_what_feeds_the_accelerator():
    sequence, times = layer_sequence(1), specified(1, 2)
    progress = Progress(sequence, 2)
    for place in ((0, 0), (1, 0), (0, 1)):
        progress.start(place)
        progress.finish(place)
    # Both are ready to run in floats or integers: attention of chunk 0 releases 8, the products of chunk 1
    # release attention of 4, which the accelerator would wait for.
    assert progress.ready(FLOATS) == [(0, 2)] and progress.ready(INTEGERS) == [(1, 1)]
    assert worth(progress, (0, 2), times) == 8 and worth(progress, (1, 1), times) == -4


def test_a_phone_leaves_floats_to_its_processor():
    phone = Phone()
    assert phone.place(1.0, floats=False) == INTEGERS and phone.place(1.0, floats=True) == FLOATS
    assert phone.ms(1.0, FLOATS, floats=False) == pytest.approx(4.6 * phone.ms(1.0, INTEGERS, floats=False))
    assert phone.ms(1.0, INTEGERS, floats=True) == pytest.approx(193 * phone.ms(1.0, INTEGERS, floats=False))
    times = phone_times(Decoder(), 4, 256)
    sequence = layer_sequence(Decoder().layers)
    serial, by_chunk, free = (simulate(sequence, times, policy) for policy in POLICIES)
    assert 1e3 * 1024 / free.span == pytest.approx(1000, rel=0.1)  # tokens a second
    assert 1 - free.span / serial.span >= 0.18
    assert free.span <= 1.03 * by_chunk.span
    assert free.idle(INTEGERS) < serial.idle(INTEGERS)
    assert preparation_s(20) == pytest.approx(238.0)
