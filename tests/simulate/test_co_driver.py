"""The co-driver: whatever the other world does, no secure job runs in the open, and every wait ends."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from haversack.simulate.co_driver import (
    NORMAL,
    SECURE,
    AccessError,
    Device,
    Interleaving,
    Range,
    Tee,
    interleave,
)


@settings(max_examples=150, deadline=None)
@given(some.integers(0, 2**63), some.integers(1, 6), some.integers(0, 6))
def test_a_lying_world_gets_nothing(seed: int, jobs: int, own: int) -> None:
    ended = interleave(seed, jobs=jobs, own=own)
    check(ended, jobs)


def check(ended: Interleaving, jobs: int) -> None:
    assert ended.violations == ()
    assert not ended.stuck
    assert set(ended.outcomes) == set(range(jobs))
    assert all(said == "done" or said.startswith("refused: ") for said in ended.outcomes.values())
    assert len(set(ended.executed)) == len(ended.executed)  # no job twice
    assert {job for job, said in ended.outcomes.items() if said == "done"} <= set(ended.executed)
    assert list(ended.executed) == sorted(ended.executed)  # in order


def test_lies_of_every_kind_are_met() -> None:
    """Over many interleavings jobs are done and refused for both reasons, and accesses are refused."""
    said: set[str] = set()
    refused = 0
    for seed in range(600):
        ended = interleave(seed)
        check(ended, 4)
        said |= set(ended.outcomes.values())
        refused += ended.refused
    assert {
        "done",
        "refused: the other world never announced it",
        "refused: the accelerator was not idle",
    } <= said
    assert refused > 600


@settings(max_examples=60, deadline=None)
@given(some.integers(0, 2**63))
def test_an_honest_world_serves_both(seed: int) -> None:
    ended = interleave(seed, honest=True, jobs=5, own=5)
    check(ended, 5)
    assert set(ended.outcomes.values()) == {"done"} and ended.refused == 0
    assert len(ended.switch_us) == 5 and all(20 < cost < 60 for cost in ended.switch_us)


class DoesNotLook(Tee):
    """Takes the other world's word that the accelerator is idle."""

    def idle(self) -> bool:
        return True


def test_not_looking_whether_it_is_idle_is_found() -> None:
    """The check that the paper's artifact leaves out is needed, and this simulation would see it missing."""
    found = [
        violation
        for seed in range(200)
        for violation in interleave(seed, secure_world=DoesNotLook).violations
    ]
    assert any("as a secure master" in violation for violation in found)


class OpensFirst(Tee):
    """Gives the registers back before its job has ended."""

    def _execute(self, job):  # type: ignore[no-untyped-def]
        self.device.start(SECURE, job)
        self.device.give_registers(SECURE, NORMAL)
        yield
        yield
        self.device.take_interrupt(SECURE)
        self.outcomes[job] = "done"
        self.device.give_registers(SECURE, SECURE)


def test_opening_too_early_is_found() -> None:
    found = [
        violation for seed in range(200) for violation in interleave(seed, secure_world=OpensFirst).violations
    ]
    assert any("outside of a protected window" in violation for violation in found)


def test_the_same_seed_is_the_same_interleaving() -> None:
    assert interleave(11) == interleave(11) != interleave(12)


@pytest.mark.parametrize(
    "access",
    [
        lambda device: device.give_registers(NORMAL, NORMAL),
        lambda device: device.make_master(NORMAL, SECURE),
        lambda device: device.route_interrupt(NORMAL, NORMAL),
    ],
)
def test_the_firewall_is_the_secure_world_s(access: object) -> None:
    with pytest.raises(AccessError):
        access(Device())  # type: ignore[operator]


@given(some.integers(0, 2**32), some.integers(1, 60))
def test_a_range_takes_only_pages_that_follow(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    taken, whole = Range(100, 64), 0
    for _ in range(steps):
        offered, count = rng.randrange(90, 180), rng.randrange(0, 9)
        if rng.random() < 0.5:
            offered = 100 + whole
        allowed = offered == 100 + whole and count >= 1 and whole + count <= 64
        if allowed:
            taken.grow(offered, count)
            whole += count
        else:
            with pytest.raises(AccessError):
                taken.grow(offered, count)
        assert taken.pages == whole
    taken.shrink(5)
    assert taken.pages == max(0, whole - 5)
