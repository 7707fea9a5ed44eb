"""The search: what is measured in which order, when it ends, and what it refuses before any work."""

import dataclasses

import pytest

from haversack.core.budget import Budget, BudgetError
from haversack.plan._candidates import Candidate, Plan
from haversack.plan._measure import RunFigures
from haversack.plan._search import Clock, order_of_measuring, screened, search, variants

FAMILIES = {"keep:kind=f32": 32, "keep:kind=f16": 16, "round-to-nearest:bits=8": 8.1}
FAMILIES |= {
    f"{name}:bits=4,group={group}": 4 + 16 / group
    for name in ("gptq", "round-to-nearest")
    for group in (32, 64)
}
LOSSES = {32: 0.0, 16: 0.0, 8.1: 0.001, 4.5: 0.02, 4.25: 0.03}


def space():
    found = []
    for precision, bits in FAMILIES.items():
        for activations in ("f32", "int8-dynamic") if bits < 16 else ("f32",):
            for residency in ("mapped", "copied"):
                for cache in ("f32", "f16"):
                    plan = Plan(precision, activations=activations, residency=residency, cache_type=cache)
                    loss = LOSSES[bits] * (0.6 if "gptq" in precision else 1.0)
                    ram = 30 + 1.2 * bits + (8 if cache == "f32" else 4) + (2 if residency == "copied" else 0)
                    speed = (
                        100
                        / bits
                        * (1.5 if activations != "f32" else 1)
                        * (1.1 if residency == "copied" else 1)
                    )
                    found.append(Candidate(plan, bits, loss, bits, ram, speed, 100.0, 10.0))
    return found


class Formula:
    """Measures by formula: what the candidate predicts, times a factor; counts and takes `seconds` for
    each.
    """

    def __init__(self, candidates, clock, *, seconds=10.0, ram=1.0, loss=1.0):
        self.known = {one.plan: one for one in candidates}
        self.clock, self.seconds, self.ram, self.loss = clock, seconds, ram, loss
        self.measured, self.packed = [], set()

    def quality(self, plan):
        self.measured.append(plan)
        self.packed.add(plan.precision)
        self.clock.ticks += self.seconds
        return 1.25 * (1 + self.loss * self.known[plan].loss)

    def figures(self, plan):
        return RunFigures(55.0, 100.0, self.ram * self.known[plan].ram_mib)

    def storage_mib(self, plan):
        return self.known[plan].storage_mib


class Ticks:
    ticks = 0.0

    def __call__(self):
        return self.ticks


def run(budget, *, objective="quality", effort=60.0, **options):
    candidates, now = space(), Ticks()
    workshop = Formula(candidates, now, **options)
    noises = {one.plan: one.loss for one in candidates}
    clock = Clock(effort, now)
    found, best = search(
        candidates, noises, budget, objective, 1.25, workshop, clock, "the model", lambda text: None
    )
    return found, best, workshop, now.ticks


def test_the_chosen_plan_was_measured_and_fits():
    for objective in ("quality", "speed", "size"):
        budget = Budget(ram_mib=55)
        found, best, workshop, _ = run(budget, objective=objective)
        assert best.source == "measured" and best.plan in workshop.measured
        assert budget.fits(best.demand())
        assert {one.plan for one in found} == {one.plan for one in space()}
        assert all(one.quality is not None and one.here == 55.0 for one in found if one.source == "measured")


def test_the_objectives_differ():
    plans = {
        objective: run(Budget(ram_mib=70), objective=objective, effort=1e6)[1].plan
        for objective in ("quality", "speed", "size")
    }
    assert plans["quality"].precision == "round-to-nearest:bits=8"
    assert plans["speed"].precision.endswith("group=64") and plans["speed"].activations == "int8-dynamic"
    assert plans["size"].precision.endswith("group=64")


def test_a_budget_that_nothing_meets_is_refused_before_anything_is_packed():
    now = Ticks()
    workshop = Formula(space(), now)
    with pytest.raises(BudgetError, match="the model does not fit the budget: ram_mib is 1") as caught:
        search(space(), {}, Budget(ram_mib=1), "quality", 1.25, workshop, Clock(60, now), "the model", print)
    assert workshop.measured == []
    assert caught.value.nearest == pytest.approx(min(one.ram_mib for one in space()), rel=0.01)


def test_a_doubtful_loss_is_measured_before_it_is_refused():
    small = Budget(ram_mib=40.5, max_quality_loss=0.008)  # predicted 0.012 and more
    assert screened(space(), small, "the model")
    _, best, *_ = run(small, loss=0.5)
    assert best.loss <= 0.008
    with pytest.raises(BudgetError):
        screened(space(), Budget(ram_mib=40.5, max_quality_loss=0.001), "the model")


def test_the_effort_bounds_the_measuring():
    *_, workshop, seconds = run(Budget(ram_mib=100), effort=60.0)
    assert len(workshop.measured) >= 2 and seconds <= 60.0 + 3 * 10.0
    *_, workshop, seconds = run(Budget(ram_mib=100), effort=0.0)
    assert len(workshop.measured) == 1


def test_the_search_goes_on_past_the_effort_until_something_fits():
    _, best, workshop, seconds = run(Budget(ram_mib=52), effort=0.0, ram=1.2)
    assert best.ram_mib <= 52 and seconds > 0 and len(workshop.measured) > 1


def test_memory_that_measures_above_its_prediction_ends_the_search_early():
    now = Ticks()
    workshop = Formula(space(), now, ram=1.5)
    with pytest.raises(BudgetError) as caught:
        search(space(), {}, Budget(ram_mib=41), "quality", 1.25, workshop, Clock(0, now), "the model", print)
    assert len(workshop.packed) < 3
    assert caught.value.field == "ram_mib" and caught.value.nearest > 41


def test_every_method_and_width_has_its_turn_before_any_has_its_second():
    order = order_of_measuring(space(), "quality")
    assert sorted(one.plan for one in order) == sorted(one.plan for one in space())
    packs = [one.plan.precision for one in order[: len(FAMILIES)]]
    assert sorted(packs) == sorted(FAMILIES)
    families = [(name.partition(":")[0], round(FAMILIES[name] / 2)) for name in packs]
    first = families[: len(set(families))]
    assert len(set(first)) == len(first)


def test_variants_differ_from_the_best_in_one_thing_each():
    ways = [one for one in space() if one.plan.precision == "gptq:bits=4,group=64"]
    chosen = variants(sorted(ways, key=lambda one: -one.device))
    assert len(chosen) == 3 and len({one.plan for one in chosen}) == 3
    best = chosen[0].plan
    for other in chosen[1:]:
        fields = dataclasses.asdict(best).items() - dataclasses.asdict(other.plan).items()
        assert len(fields) == 1
