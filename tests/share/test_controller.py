"""The controller: the specification's numbers, the budget, and what it learns from rounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.share._controller import (
    Controller,
    State,
    best_length,
    expected_tokens,
    joules_a_token,
    round_joules,
    round_seconds,
    shannon_bps,
    tokens_per_s,
)


@pytest.mark.parametrize(
    ("acceptance", "expected"),
    [
        (0.6, (1.6, 1.96, 2.306, 2.475)),
        (0.8, (1.8, 2.44, 3.362, 4.329)),
        (0.9, (1.9, 2.71, 4.095, 6.126)),
    ],
)
def test_expected_tokens_of_a_round(acceptance: float, expected: tuple[float, ...]) -> None:
    found = [expected_tokens(acceptance, drafts) for drafts in (1, 2, 4, 8)]
    assert found == pytest.approx(expected, abs=5e-4)
    assert expected_tokens(1.0, 5) == 6 and expected_tokens(0.0, 5) == 1


# (RTT, rate): {acceptance: (K*, tokens/s, tokens/s with K=5)}
TABLE = {
    (0.02, 50e6): {0.6: (2, 18.85, 17.02), 0.8: (5, 26.35, 26.35), 0.9: (8, 34.81, 33.47)},
    (0.06, 10e6): {0.6: (3, 13.95, 13.24), 0.8: (6, 20.58, 20.50), 0.9: (10, 28.59, 26.03)},
    (0.2, 0.2e6): {0.6: (4, 7.48, 7.44), 0.8: (8, 12.14, 11.51), 0.9: (14, 18.51, 14.62)},
}


@pytest.mark.parametrize(
    ("channel", "acceptance"), [(channel, rate) for channel, rates in TABLE.items() for rate in rates]
)
def test_the_table_of_the_specification(channel: tuple[float, float], acceptance: float) -> None:
    rtt_s, bps = channel
    state = State(
        draft_s=0.012,
        rtt_s=rtt_s,
        verify_first_s=0.06,
        up_bps=bps,
        token_bits=16,
        header_bits=0,
        acceptance=acceptance,
    )
    best, speed, fixed = TABLE[channel][acceptance]
    assert best_length(state) == best
    assert tokens_per_s(state, best) == pytest.approx(speed, abs=0.006)
    assert tokens_per_s(state, 5) == pytest.approx(fixed, abs=0.006)


@given(
    acceptance=st.floats(0.05, 0.98),
    rtt_s=st.floats(0, 2),
    bps=st.floats(1e3, 1e9),
    draft_s=st.floats(1e-4, 0.1),
    more_s=st.floats(0, 0.01),
    budget=st.floats(1e-4, 1),
)
def test_what_is_chosen_keeps_the_budget_and_is_the_fastest_that_does(
    acceptance: float, rtt_s: float, bps: float, draft_s: float, more_s: float, budget: float
) -> None:
    state = State(
        draft_s=draft_s,
        rtt_s=rtt_s,
        verify_first_s=0.03,
        verify_more_s=more_s,
        up_bps=bps,
        down_bps=bps,
        acceptance=acceptance,
        draft_w=3.0,
        transmit_w=1.2,
        idle_w=0.3,
        joule_budget=budget,
    )
    chosen = best_length(state)
    fitting = [k for k in range(1, 17) if joules_a_token(state, k) <= budget]
    if fitting:
        assert chosen in fitting
        assert tokens_per_s(state, chosen) == max(tokens_per_s(state, k) for k in fitting)
    else:
        assert joules_a_token(state, chosen) == min(joules_a_token(state, k) for k in range(1, 17))


def test_joules_and_seconds_of_a_round() -> None:
    state = State(0.01, 0.1, 0.05, 0.002, 1e4, 1e4, 16, 0.7, 128, draft_w=2, transmit_w=1, idle_w=0.5)
    bits = (128 + 3 * 16) / 1e4
    assert round_seconds(state, 3) == pytest.approx(0.03 + 0.1 + bits + 160 / 1e4 + 0.056)
    assert round_joules(state, 3) == pytest.approx(3 * 0.01 * 2 + bits + 0.5 * (0.1 + 0.056))


def test_a_channel_s_capacity() -> None:
    assert shannon_bps(1e6, 1) == 1e6
    assert shannon_bps(1e6, 10 ** (20 / 10)) == pytest.approx(6.658e6, rel=1e-3)


def test_a_round_of_no_drafts_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1"):
        best_length(State(0.01, 0.1, 0.05), most=0)


def test_a_length_is_kept_while_another_gains_little() -> None:
    controller = Controller(draft_s=0.012, rtt_s=0.06, verify_first_s=0.06)
    controller._judged[""] = (80.0, 100.0)
    assert controller.choose() == 6
    controller.length = 5  # 20.50 beside 20.58: less than 2 %
    assert controller.choose() == 5
    controller.length = 3
    assert controller.choose() == 6


def test_a_length_that_breaks_the_budget_is_not_kept() -> None:
    controller = Controller(draft_s=0.012, rtt_s=0.06, verify_first_s=0.06, draft_w=3.0, idle_w=0.3)
    controller._judged[""] = (80.0, 100.0)
    held = controller.choose()
    controller.joule_budget = 0.99 * joules_a_token(controller.state, held)
    assert joules_a_token(controller.state, controller.choose()) <= controller.joule_budget


@given(rate=st.floats(0.1, 0.95), drafts=st.integers(1, 16), seed=st.integers(0, 100))
def test_the_acceptance_is_that_of_drafts_whose_predecessors_hold(
    rate: float, drafts: int, seed: int
) -> None:
    """Whatever the length of rounds: what follows a wrong draft is not counted against it."""
    import random

    numbers, controller, found = random.Random(seed), Controller(), []
    for _ in range(400):
        accepted = 0
        while accepted < drafts and numbers.random() < rate:
            accepted += 1
        controller.accepted(accepted, drafts)
        found.append(controller.acceptance)
    assert sum(found[100:]) / 300 == pytest.approx(rate, abs=0.12)


def test_a_new_version_of_the_model_begins_anew() -> None:
    controller = Controller(target="one")
    for _ in range(50):
        controller.accepted(0, 4)
    assert controller.acceptance < 0.1
    controller.target = "two"
    assert controller.acceptance == pytest.approx(0.7)
    controller.target = "one"
    assert controller.acceptance < 0.1


def test_long_messages_tell_the_rate_and_short_ones_the_round_trip() -> None:
    controller, bps, rtt_s = Controller(header_bits=256), 1e5, 0.2
    for _ in range(20):
        controller.travelled(rtt_s + 400 / bps, 320, 80)
    for _ in range(5):
        controller.travelled(rtt_s + 40_000 / bps, 40_000, 80)
    assert controller.state.up_bps == pytest.approx(bps, rel=0.05)
    for _ in range(20):
        controller.travelled(rtt_s + 400 / bps, 320, 80)
    assert controller.rtt_s == pytest.approx(rtt_s, rel=0.02)


def test_a_channel_that_is_known_is_not_measured() -> None:
    controller = Controller(up_bps=1e6)
    controller.travelled(0.1, 8000, 80)
    controller.travelled(9.0, 80_000, 80)
    assert controller.state.up_bps == 1e6
    assert math.isinf(Controller().state.up_bps)
