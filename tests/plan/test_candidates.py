"""The choice among plans: budget, objective, front, refusal."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.budget import Budget
from haversack.plan._candidates import (
    OBJECTIVES,
    SAME_QUALITY,
    Candidate,
    Plan,
    choose,
    dominates,
    feasible,
    front,
    ranked,
    refusal,
    with_fitted_loss,
)


def candidate(name, *, loss=0.0, ram=50.0, storage=10.0, speed=10.0, source="measured"):
    return Candidate(Plan(name), 4.5, loss, storage, ram, speed, 100.0, 20.0, source=source)


amounts = st.floats(0.1, 1000, allow_nan=False)
many = st.lists(
    st.builds(
        lambda at, loss, ram, storage, speed: candidate(
            f"p{at}", loss=loss, ram=ram, storage=storage, speed=speed
        ),
        st.integers(0, 10**6),
        st.floats(0, 0.3),
        amounts,
        amounts,
        amounts,
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda one: one.plan,
)


@settings(max_examples=80, deadline=None)
@given(many)
def test_the_front_is_what_nothing_beats(candidates):
    kept = front(candidates)
    assert kept
    for one in candidates:
        beaten = any(dominates(other, one) for other in candidates)
        assert (one in kept) == (not beaten)


@settings(max_examples=80, deadline=None)
@given(many, st.floats(0.5, 900), st.floats(0.5, 900), st.sampled_from(OBJECTIVES))
def test_what_is_chosen_fits_and_a_refusal_names_a_budget_that_works(candidates, ram, storage, objective):
    budget = Budget(ram_mib=ram, storage_mib=storage)
    found = choose(candidates, budget, objective)
    if found is not None:
        assert budget.fits(found.demand())
        return
    assert not feasible(candidates, budget)
    error = refusal(candidates, budget, "nothing")
    assert error.exit_code == 2 and error.failures
    wider = replace(budget, **{failure.field: failure.needed for failure in error.failures})
    # Either the named fields suffice, or each can be met alone and the rest is named on the next try.
    assert all(any(one.demand()[f.field] <= f.needed for one in candidates) for f in error.failures)
    if len(candidates) == 1:
        assert feasible(candidates, wider)


def test_a_refusal_names_every_field_with_its_smallest_feasible_value():
    candidates = [
        candidate("small", loss=0.2, ram=40, storage=5),
        candidate("fine", loss=0.01, ram=60, storage=9),
    ]
    error = refusal(candidates, Budget(ram_mib=1, storage_mib=2, max_quality_loss=0.5), "code")
    assert {failure.field: failure.needed for failure in error.failures} == {"ram_mib": 40, "storage_mib": 5}
    # Alone each field can be met: the small plan has the memory, the fine plan the quality.
    error = refusal(candidates, Budget(ram_mib=50, max_quality_loss=0.1), "code")
    assert [failure.field for failure in error.failures] == ["ram_mib"]
    assert error.failures[0].needed == 60


def test_quality_comes_first_until_the_difference_is_too_small_to_see():
    exact = candidate("f16", loss=0.0, speed=5)
    near = candidate("int8", loss=0.9 * SAME_QUALITY, speed=9)
    coarse = candidate("int4", loss=0.03, speed=20)
    wide = Budget(ram_mib=100)
    assert choose([exact, near, coarse], wide, "quality") is near
    worse = replace(near, loss=1.1 * SAME_QUALITY)
    assert choose([exact, worse, coarse], wide, "quality") is exact
    assert choose([exact, near, coarse], wide, "speed") is coarse
    assert choose([exact, replace(near, storage_mib=3), coarse], wide, "size").plan.precision == "int8"


def test_predicted_candidates_are_never_chosen():
    assert choose([candidate("guess", source="predicted")], Budget(), "quality") is None


def test_the_order_does_not_depend_on_the_order_of_arrival():
    candidates = [candidate(f"p{at}") for at in range(5)]
    for objective in OBJECTIVES:
        assert ranked(candidates, objective) == ranked(reversed(candidates), objective)


def test_predictions_follow_what_was_measured():
    measured = candidate("a", loss=0.04)
    guess = candidate("b", loss=0.5, source="predicted")
    fitted = with_fitted_loss([measured, guess], {measured.plan: 0.01, guess.plan: 0.02})
    assert fitted[0] is measured
    assert math.isclose(fitted[1].loss, 0.08)
    assert with_fitted_loss([guess], {guess.plan: 0.02}) == [guess]


def test_the_record_has_the_documented_fields():
    record = candidate("keep").record(Budget(ram_mib=1))
    assert set(record) >= {"plan", "source", "quality", "storage_mib", "ram_mib", "tokens_per_s", "fits"}
    assert set(record["tokens_per_s"]) == {"here", "device_predicted"}
    assert record["fits"] is False
    assert pytest.approx(50) == record["ram_mib"]
