"""Bits for each expert: the paper's numbers, and a search that keeps its budget."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.shrink._expert_bits import WIDTHS, bounds, importances, most_lowered, plan_bits
from haversack.shrink.precision.edgemoe import channel_scales, round_channels

EXPERTS = [(layer, expert) for layer in range(3) for expert in range(4)]
NOISE = {2: 1.0, 4: 0.05, 8: 0.001, 16: 0.0, 32: 0.0}


def model(weights: dict, reference: float = 2.0, noise: dict = NOISE):
    """A loss that grows by the weight of every expert times the noise of its width."""
    return lambda plan: reference + math.fsum(weights[e] * noise[bits] for e, bits in plan.items())


def test_the_specification_s_channel() -> None:
    weight = np.array([[1, -2, 3.5, -7]], np.float32)
    codes, scales = round_channels(weight, 4)
    assert scales.tolist() == [1.0] and codes.tolist() == [[1, -2, 4, -7]]
    assert (codes * scales[:, None] - weight).tolist() == [[0, 0, 0.5, 0]]


@settings(max_examples=40, deadline=None)
@given(bits=st.sampled_from([2, 4, 8]), seed=st.integers(0, 999), spread=st.floats(1e-3, 1e2))
def test_codes_keep_their_range_and_errors_half_a_step(bits: int, seed: int, spread: float) -> None:
    weight = (np.random.default_rng(seed).standard_normal((9, 50)) * spread).astype(np.float32)
    weight[4] = 0
    codes, scales = round_channels(weight, bits)
    largest = 2 ** (bits - 1) - 1
    assert np.abs(codes).max() <= largest and not codes[4].any()
    assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))
    steps = channel_scales(weight, bits)[:, None]
    rounding = np.abs(weight).max(axis=1, keepdims=True) * 2**-10 + 1e-7 * largest  # of the scale to f16
    assert (np.abs(codes * steps - weight) <= steps * 0.5001 + rounding).all()


def test_importance_is_what_one_expert_alone_costs() -> None:
    weights = {e: 1.0 + i for i, e in enumerate(EXPERTS)}
    found = importances(model(weights), EXPERTS)
    assert found == pytest.approx({e: w * 0.95 for e, w in weights.items()})


def test_bounds_are_the_widths_around_the_budget() -> None:
    measure = model(dict.fromkeys(EXPERTS, 1.0))  # all at 2: +12, at 4: +0.6, at 8: +0.012
    assert bounds(measure, EXPERTS, WIDTHS, 2.0 + 20) == (2, 2)
    assert bounds(measure, EXPERTS, WIDTHS, 2.0 + 1) == (2, 4)
    assert bounds(measure, EXPERTS, WIDTHS, 2.0 + 0.1) == (4, 8)
    assert bounds(measure, EXPERTS, WIDTHS, 2.0 + 0.001) == (8, 16)
    assert bounds(measure, EXPERTS, (2, 4), 2.0) == (2, 4)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(0, 1), min_size=len(EXPERTS), max_size=len(EXPERTS)),
    max_loss=st.floats(0, 3),
)
def test_a_plan_keeps_its_budget_and_one_expert_more_would_not(weights: list, max_loss: float) -> None:
    measure = model(dict(zip(EXPERTS, weights, strict=True)))
    plan = plan_bits(measure, EXPERTS, 2.0, max_loss)
    assert plan.loss == measure(plan.bits) <= 2.0 * (1 + max_loss) + 1e-12
    assert sorted(set(plan.bits.values())) in ([plan.lower], [plan.upper], [plan.lower, plan.upper])
    assert sum(bits == plan.lower for bits in plan.bits.values()) in (plan.lowered, len(EXPERTS))
    lowered = {e for e, bits in plan.bits.items() if bits == plan.lower}
    if plan.lower < plan.upper and plan.lowered < len(EXPERTS):
        following = plan.order[plan.lowered]
        assert following not in lowered
        assert measure({**plan.bits, following: plan.lower}) > 2.0 * (1 + max_loss)
        assert max((plan.importance[e] for e in lowered), default=-1) <= plan.importance[following]


def test_the_steps_after_the_halves_find_what_a_bump_hid() -> None:
    """The loss is too high at 6 alone, where the halves turn back, and fine at 7 to 9 of 12."""
    allowed = {0, 1, 2, 3, 4, 5, 7, 8, 9}

    def measure(plan: dict) -> float:
        count = sum(bits == 2 for bits in plan.values())
        return 0.0 if count in allowed else 1.0

    assert most_lowered(measure, EXPERTS, 2, 4, 0.5) == 5
    allowed.add(6)
    assert most_lowered(measure, EXPERTS, 2, 4, 0.5) == 9


def test_each_plan_is_measured_once() -> None:
    seen: list[tuple] = []
    inner = model(dict.fromkeys(EXPERTS, 1.0))

    def measure(plan: dict) -> float:
        seen.append(tuple(sorted(plan.items())))
        return inner(plan)

    plan = plan_bits(measure, EXPERTS, 2.0, 2.0)
    assert len(seen) == len(set(seen)) == plan.measured
    assert 2 < plan.mean_bits < 4 and plan.record()["experts"] == 12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_loss": -0.1}, "max_loss=-0.1 is no loss"),
        ({"max_loss": float("nan")}, "max_loss=nan is no loss"),
        ({"widths": (2, 3)}, "bits=3 is not supported"),
        ({"experts": []}, "no experts"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments: dict, said: str) -> None:
    given_ = {"experts": EXPERTS, "max_loss": 0.02, **arguments}
    measure = model(dict.fromkeys(EXPERTS, 1.0))
    with pytest.raises(UserError, match=said):
        plan_bits(measure, given_.pop("experts"), 2.0, given_.pop("max_loss"), **given_)
