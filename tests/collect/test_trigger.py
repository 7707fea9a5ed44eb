"""The trigger: the specification's numbers, the vectors that apps replay, and its promises on any stream."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.collect._tables import Hand
from haversack.collect.trigger import SECOND, Thresholds, Trigger, evidence, follow_weight, replay
from haversack.core.errors import UserError
from haversack.core.index import source_root

FIFTH = SECOND // 5
VECTORS = json.loads(Path(__file__).with_name("trigger_vectors.json").read_text(encoding="utf-8"))


def test_the_specification_s_numbers():
    """e = 1 from sample 1: START at sample 6; then zeros: below 0.30 at the fourth, STOP 3 s later."""
    trigger = Trigger()
    seen = []
    for at in range(1, 7):
        trigger.step(at * FIFTH, 1.0)
        seen.append(round(trigger.a, 3))
        assert trigger.running == (at == 6)
    assert seen == [0.300, 0.510, 0.657, 0.760, 0.832, 0.882]
    after = []
    for at in range(7, 7 + 25):
        trigger.step(at * FIFTH, 0.0)
        after.append(round(trigger.a, 3))
        assert trigger.running == (at < 6 + 4 + 15)
    assert after[2] == 0.303 and after[3] == 0.212


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["name"])
def test_vectors(vector):
    found = replay([(t, e) for t, e in vector["samples"]], Thresholds(**VECTORS["thresholds"]))
    assert found["a"] == pytest.approx(vector["a"], abs=VECTORS["tolerance"])
    assert found["clips"] == vector["clips"]


def test_vectors_are_those_that_the_tool_writes():
    root = source_root()
    assert root is not None
    done = subprocess.run(
        [sys.executable, str(root / "tools" / "trigger_vectors.py"), "--check"], check=False
    )
    assert done.returncode == 0


def test_what_the_vectors_show():
    clips = {vector["name"]: vector["clips"] for vector in VECTORS["vectors"]}
    # START at 1.2 s, so from the stream's begin on; below 0.30 at 2.0 s
    assert clips["specification"] == [[1_200_000_000 - 2 * SECOND, 3 * SECOND]]
    assert clips["too short to start"] == []
    assert len(clips["two that become one"]) == 1 and len(clips["two that stay two"]) == 2
    split = clips["split after two minutes"]
    assert split[0][1] == split[1][0] and abs(split[0][1] - 103 * SECOND) <= FIFTH  # where evidence dipped


streams = st.lists(
    st.tuples(
        st.integers(40_000_000, 900_000_000), st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]), st.integers(1, 40)
    ),
    max_size=40,
)


@given(streams)
def test_clips_are_in_order_apart_and_of_allowed_length(parts):
    limits = Thresholds(max_s=30.0, split_s=5.0)
    samples, t = [], 0
    for step, e, count in parts:
        for _ in range(count):
            t += step
            samples.append((t, e))
    clips = replay(samples, limits)["clips"]
    assert clips == replay(samples, limits)["clips"]
    for begin, end in clips:
        assert limits.min_s * SECOND <= end - begin <= (limits.max_s + 1) * SECOND
    for (_, end), (begin, _) in itertools.pairwise(clips):
        assert begin >= end


@given(streams, st.integers(0, 60))
def test_what_is_needed_from_the_ring_is_never_gone(parts, _):
    """A clip never begins before what the trigger said to keep when it was opened."""
    trigger, t, kept = Trigger(), 0, []
    for step, e, count in parts:
        for _ in range(count):
            t += step
            needed = trigger.needs_from_ns
            for span in trigger.step(t, e):
                kept.append((span, needed))
    for span, needed in kept:
        assert needed is not None and span.begin_ns >= needed - 900_000_000


def test_evidence():
    hand = Hand(0, 0, 1, 1, 0.9, 0.5, 1)
    assert evidence([], 5.0) == 0.0
    assert evidence([hand], 0.0) == 0.0
    assert evidence([hand], 0.3) == pytest.approx(0.9 * 0.75 * 0.5)
    assert evidence([hand, Hand(0, 0, 1, 1, 1.0, 1.0, 0)], 9.0) == 1.0


def test_rates_have_the_same_half_life():
    limits = Thresholds()
    assert follow_weight(limits, FIFTH) == 0.3
    assert 1 - follow_weight(limits, 2 * FIFTH) == pytest.approx(0.49)


@pytest.mark.parametrize(
    "wrong", [{"start": 0.2}, {"follow": 1.0}, {"min_s": -1}, {"max_s": 1.0}, {"m0_px": float("nan")}]
)
def test_thresholds_that_are_none(wrong):
    with pytest.raises(UserError):
        Thresholds(**wrong)
    with pytest.raises(ValueError, match="rise"):
        trigger = Trigger()
        trigger.step(5, 0.0)
        trigger.step(5, 0.0)


def test_a_clip_is_open_until_it_is_given():
    """Whoever turns the camera off while one is open loses what was seen of it."""
    trigger, seen = Trigger(), []
    for at in range(1, 61):
        spans = trigger.step(at * FIFTH, 1.0 if at <= 15 else 0.0)
        seen.append((trigger.running, trigger.open, bool(spans)))
    begun, stopped = seen.index((True, True, False)), max(i for i, one in enumerate(seen) if one[0])
    given = next(i for i, one in enumerate(seen) if one[2])
    assert begun < stopped < given - 5
    assert all(one[1] for one in seen[begun:given]) and not any(one[1] for one in seen[given:])
