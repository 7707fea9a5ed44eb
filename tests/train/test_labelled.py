"""A training on labelled rows: it learns, goes on to the same bits, keeps its last good state, is planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core import index
from haversack.core.budget import Budget, BudgetError
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.memory import MIB, MemoryPlan
from haversack.train._choice import choose, schemes
from haversack.train._examples import Examples, split
from haversack.train._labelled import Lessons, Training, judge, rate_at
from haversack.train._meter import AGAIN, SAVED, memory_plan, settled
from haversack.train._network import Network, identity, numbers_of
from haversack.train._slots import Parameters, Precision
from haversack.train._training import training_folder


@pytest.fixture
def examples(small: Any) -> Examples:
    rows = small.shades(60, 3)
    learned, held_out = split(rows.labels, [str(row) for row in range(60)], 0)
    keys = tuple(map(str, range(60)))
    return Examples(("dark", "light"), rows.labels, learned, held_out, lambda at: rows.inputs[at], keys)


def training(
    network: Any,
    examples: Examples,
    parameters: str = "all",
    gradient: str = "backprop:momentum=0.9",
    **lessons: Any,
) -> Training:
    methods: list[Any] = [
        index.create("train", slot, text)
        for slot, text in (("parameters", parameters), ("gradient", gradient), ("precision", "f32"))
    ]
    return Training(
        network, *methods, Lessons(**{"rate": 0.05, "epochs": 4, "batch": 8, **lessons}), examples
    )


def test_the_baselines_are_methods_of_their_slots(small: Any) -> None:
    network = small.SmallCnn()
    assert isinstance(network, Network)
    for name in ("all", "head", "bias"):
        assert isinstance(index.create("train", "parameters", name), Parameters)
    assert isinstance(index.create("train", "precision", "f32"), Precision)


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        (
            "all",
            {"one.weight", "one.bias", "one.scale", "two.weight", "two.bias", "head.weight", "head.bias"},
        ),
        ("all:blocks=2", {"two.weight", "two.bias", "head.weight", "head.bias"}),
        ("head", {"head.weight", "head.bias"}),
        ("bias", {"one.bias", "two.bias", "head.weight", "head.bias"}),
        ("bias:blocks=2", {"two.bias", "head.weight", "head.bias"}),
    ],
)
def test_only_what_a_method_names_changes(
    small: Any, examples: Examples, tmp_path: Path, parameters: str, names: set[str]
) -> None:
    network = small.SmallCnn()
    before = {name: array.copy() for name, array in network.tensors().items()}
    made = training(network, examples, parameters, epochs=1)
    assert set(made.learned.wanted) == names
    made.run(tmp_path)
    assert {name for name, array in network.tensors().items() if (array != before[name]).any()} == names


@pytest.mark.parametrize("parameters", ["all:blocks=4", "all:blocks=0", "bias:blocks=1", "bias:blocks=9"])
def test_blocks_that_are_not_there_are_refused(small: Any, examples: Examples, parameters: str) -> None:
    with pytest.raises(UserError, match="is not possible"):
        training(small.SmallCnn(), examples, parameters)


def test_it_learns_and_judging_changes_nothing(small: Any, examples: Examples, tmp_path: Path) -> None:
    network = small.SmallCnn()
    before = identity(network)
    first = judge(network, examples, 8)
    assert identity(network) == before
    course = training(network, examples, epochs=10).run(tmp_path)
    after = judge(network, examples, 8)
    assert course.before == first and after.accuracy >= 0.9 > first.accuracy
    assert course.edges[1] < course.edges[0]


def test_it_goes_on_from_any_step_to_the_same_bits(small: Any, examples: Examples, tmp_path: Path) -> None:
    whole = small.SmallCnn()
    (tmp_path / "whole").mkdir()
    course = training(whole, examples).run(tmp_path / "whole")
    for stop in (1, 7, course.done - 1):
        folder = tmp_path / str(stop)
        folder.mkdir()
        assert training(small.SmallCnn(), examples).run(folder, stop_after=stop).done == stop
        again = small.SmallCnn()
        resumed = training(again, examples).run(folder)
        assert identity(again) == identity(whole)
        assert resumed.losses == course.losses and resumed.before == course.before


def test_a_state_that_was_altered_is_refused(small: Any, examples: Examples, tmp_path: Path) -> None:
    training(small.SmallCnn(), examples).run(tmp_path, stop_after=2)
    path = tmp_path / "state.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    for damaged in (bytes(data), data[: len(data) // 2], b"", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match="to start anew"):
            training(small.SmallCnn(), examples).run(tmp_path)


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(
    small: Any, examples: Examples, tmp_path: Path
) -> None:
    goal, network = tmp_path / "goal", small.SmallCnn()
    facts = {"job": "x", "rate": 1e30}
    with training_folder(goal, facts) as folder, pytest.raises(UserError, match="loss of step 2") as refusal:
        training(network, examples, gradient="backprop", rate=1e30).run(folder)
    assert refusal.value.field == "rate" and "state after step 0 is kept" in str(refusal.value)
    kept = np.load(goal.with_name("goal.training") / "state.npz")
    assert json.loads(bytes(kept["facts"]))["done"] == 0
    assert all(np.isfinite(kept[name]).all() for name in kept.files if name.startswith("tensor:"))
    with pytest.raises(UserError, match="another training"), training_folder(goal, {"job": "y", "rate": 0.1}):
        pass
    with training_folder(goal, {"job": "x", "rate": 0.1}) as folder:
        assert json.loads((folder / "job.json").read_text())["rate"] == 0.1
    with pytest.raises(UserError, match="another training"), training_folder(goal, {"job": "x", "rate": 0.2}):
        pass


def test_the_rate_rises_and_falls() -> None:
    course = [rate_at(step, 100, 2.0) for step in range(100)]
    assert course[0] == pytest.approx(0.4) and max(course) == pytest.approx(2.0) and course[5] == max(course)
    assert 0 < course[-1] < 0.01 and course[5:] == sorted(course[5:], reverse=True)
    assert rate_at(0, 1, 1.0) == 1.0


def test_what_is_saved_is_measured_without_parameters_and_views_once(small: Any) -> None:
    torch = pytest.importorskip("torch")
    from haversack.train._meter_torch import SavedTensors

    weight, x = torch.randn(7, 5, requires_grad=True), torch.randn(3, 5)
    with SavedTensors(beside=[weight]) as saved:
        y = x @ weight.T
        z = y * y.view(7, 3).reshape(3, 7)
    assert saved.nbytes == 4 * (x.numel() + y.numel()) and saved.count == 2
    with SavedTensors(beside=[weight, x]) as saved:
        (x @ weight.T).sum().backward()
    assert saved.nbytes == 0
    assert z.shape == (3, 7)


def test_less_is_saved_where_less_learns(small: Any) -> None:
    network, batch = small.SmallCnn(), small.shades(8)
    found = {}
    for name in ("all", "bias", "head"):
        learned = index.create("train", "parameters", name).prepare(network, 0)  # type: ignore[attr-defined]
        network.gradients(batch, learned.wanted)
        found[name] = network.saved_nbytes
    assert found["head"] < found["bias"] < found["all"]


def offered(small: Any, given: dict[str, str | None] | None = None) -> Any:
    return schemes(small.SmallCnn, 100 << 20, 8, 0, given or {})


def test_the_planner_takes_the_most_that_fits_and_says_why(small: Any) -> None:
    found = offered(small)
    assert {"all", "all:blocks=2", "head", "bias"} <= {scheme.parameters for scheme in found}
    everything = choose(found, Budget(), "small")
    assert everything.scheme.parameters == "all" and "no budget is set" in everything.why
    assert everything.scheme.numbers == max(scheme.numbers for scheme in found)
    limit = everything.scheme.memory.total_mib - 0.001
    less = choose(found, Budget(ram_mib=limit), "small")
    assert less.scheme.memory.total_mib <= limit and everything.scheme.label in less.why
    assert less.scheme.numbers == max(
        scheme.numbers for scheme in found if scheme.memory.total_mib <= limit and scheme.rank[0] == 0
    )


def test_a_budget_below_the_smallest_scheme_is_refused_with_its_bytes(small: Any) -> None:
    found = offered(small)
    least = min(scheme.memory.total_bytes for scheme in found)
    with pytest.raises(BudgetError, match=rf"the smallest scheme, .*{least:,} bytes") as refusal:
        choose(found, Budget(ram_mib=1), "small")
    assert choose(found, Budget(ram_mib=float(refusal.value.nearest)), "small")


def test_a_plan_after_choosing_is_what_the_process_will_hold() -> None:
    plan = MemoryPlan((("process", 100 * MIB), ("saved", 30 * MIB), ("gradients", 10 * MIB)))
    now, tensors = 60 * MIB, 20 * MIB
    assert settled(plan, now, tensors, 110 * MIB).total_bytes == 120 * MIB + AGAIN
    assert settled(plan, now, tensors, 500 * MIB).total_bytes == 500 * MIB
    assert settled(plan, now, tensors, 500 * MIB).lines[1:] == plan.lines[1:]


def test_named_slots_stay(small: Any) -> None:
    found = offered(small, {"parameters": "bias", "gradient": "backprop:rule=adam"})
    assert {(one.parameters, one.gradient) for one in found} == {("bias", "backprop:rule=adam")}
    with pytest.raises(UserError, match="is not possible"):
        offered(small, {"parameters": "all:blocks=7"})
    with pytest.raises(UserError, match="no language model"):
        offered(small, {"parameters": "lora"})


def test_a_plan_counts_gradients_and_moments(small: Any) -> None:
    network = small.SmallCnn()
    method: Any = index.create("train", "parameters", "all")
    learned = method.prepare(network, 0)
    numbers = numbers_of(network, learned.wanted)
    for choice, moments in (("backprop", 0), ("backprop:momentum=0.9", 1), ("backprop:rule=adam", 2)):
        gradient: Any = index.create("train", "gradient", choice)
        lines = dict(memory_plan(0, network, learned, gradient, 8).lines)
        assert lines["gradients"] == 4 * numbers and lines.get("moments", 0) == 4 * numbers * moments
        assert lines[SAVED] == dict(network.plan(learned.wanted, 8))[SAVED]


def test_what_is_refused_before_a_step_leaves_no_folder(tmp_path: Path) -> None:
    goal = tmp_path / "goal"
    with pytest.raises(UserError, match="no such split"), training_folder(goal, {"job": "x"}):
        raise UserError("no such split.")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), training_folder(goal, {"job": "x"}) as folder:
        (folder / "state.npz").write_bytes(b"a state")
        raise KeyboardInterrupt
    assert (goal.with_name("goal.training") / "state.npz").is_file()
