import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.core.budget import UNITS, Budget, BudgetError
from haversack.core.errors import UserError


def test_every_failed_field_is_listed_with_its_nearest_feasible_value():
    budget = Budget(ram_mib=80, storage_mib=10, latency_ms=1000, privacy="device")
    demand = {"ram_mib": 83.1234, "storage_mib": 20, "latency_ms": 900, "privacy": "any", "energy_mj": 1e9}
    with pytest.raises(BudgetError) as caught:
        budget.require(demand, "gptq at 4 bits")
    error = caught.value
    assert [failure.field for failure in error.failures] == ["ram_mib", "storage_mib", "privacy"]
    assert error.nearest_budget == {"ram_mib": 83.2, "storage_mib": 20, "privacy": "any"}
    assert str(error) == (
        "gptq at 4 bits does not fit the budget: ram_mib is 80 MiB and needs at least 83.2 MiB; "
        "storage_mib is 10 MiB and needs at least 20 MiB; privacy is device and needs at least any."
    )
    assert error.record()["field"] == "ram_mib" and error.record()["nearest"] == 83.2
    assert [failure["field"] for failure in error.record()["failures"]] == [
        "ram_mib",
        "storage_mib",
        "privacy",
    ]
    assert error.exit_code == 2


@given(
    st.floats(1e-3, 1e9), st.floats(1e-3, 1e9), st.sampled_from([name for name in UNITS if name != "privacy"])
)
def test_the_nearest_value_is_feasible_and_tight(limit, needed, name):
    failed = Budget(**{name: limit}).failures({name: needed})
    assert bool(failed) == (needed > limit)
    if failed:
        nearest = failed[0].needed
        assert Budget(**{name: nearest}).fits({name: needed})
        assert nearest <= needed * 1.0101
        typed = float(str(failed[0]).rsplit("at least ", 1)[1].split()[0])
        assert typed > limit or math.isclose(typed, limit, rel_tol=1e-5)


def test_an_unlimited_budget_takes_everything_and_an_absent_demand_nothing():
    assert Budget().fits({name: 1e30 for name in UNITS if name != "privacy"} | {"privacy": "any"})
    assert Budget(ram_mib=1).fits({})
    assert str(Budget()) == "no limits" and str(Budget(ram_mib=80)) == "ram_mib=80"


def test_a_demand_that_is_not_a_number_never_fits():
    assert not Budget(ram_mib=80).fits({"ram_mib": math.nan})
    assert not Budget(ram_mib=80).fits({"ram_mib": math.inf})


@pytest.mark.parametrize(
    "wrong",
    [{"ram_mib": 0}, {"ram_mib": -1}, {"ram_mib": "80"}, {"latency_ms": math.nan}, {"privacy": "none"}],
)
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError) as caught:
        Budget(**wrong)
    assert caught.value.field == next(iter(wrong))


def test_a_demand_no_budget_knows_names_the_nearest():
    with pytest.raises(UserError) as caught:
        Budget(ram_mib=1).failures({"ram_mb": 3})
    assert caught.value.nearest == "ram_mib"
