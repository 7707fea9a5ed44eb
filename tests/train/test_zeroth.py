"""ElasticZO and its baseline, full zeroth order: where they meet backpropagation, what they refuse, kills."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.train.layered_cases import CLASSES, batch, bits, everything

from haversack.core import index
from haversack.core.errors import UserError
from haversack.train._network import Batch, Slice
from haversack.train._slots import Gradient, Learned, Plain, Settings
from haversack.train.gradient._spsa import Spsa
from haversack.train.gradient.backprop import Backprop
from haversack.train.gradient.elasticzo import ElasticZO, split
from haversack.train.gradient.zeroth import Zeroth
from haversack.train.networks.layered import LayeredNetwork

SETTINGS = Settings(steps=10, rows=6, seed=3)


def begun(method: Any, network: LayeredNetwork, learned: Learned | None = None) -> Any:
    return method.begin(network, learned or everything(network), SETTINGS)


def run(stepper: Any, steps: int, rate: float = 0.01, start: int = 0) -> list[float]:
    return [stepper.step(batch(stepper.network.network, seed=i), rate) for i in range(start, start + steps)]


@pytest.mark.parametrize("name", ["lenet5", "pointnet"])
def test_without_zeroth_order_it_is_plain_sgd_to_the_bit(name):
    ours, plain = LayeredNetwork(name, CLASSES), LayeredNetwork(name, CLASSES)
    losses = run(begun(ElasticZO(backprop_layers="all"), ours), 4)
    assert losses == run(begun(Backprop(), plain), 4)
    assert bits(ours) == bits(plain)


def test_without_a_way_back_it_is_full_zeroth_order():
    ours, plain = LayeredNetwork("lenet5", CLASSES), LayeredNetwork("lenet5", CLASSES)
    losses = run(begun(ElasticZO(backprop_layers="0", share=0.5), ours), 3, rate=2e-4)
    assert losses == run(begun(Zeroth(), plain), 3, rate=1e-4)
    assert bits(ours) == bits(plain)


class Watch(Plain):
    """Keeps the gradients that it is shown."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def scaled(self, gradients: Mapping[str, Any]) -> dict[str, Any]:
        self.seen = {name: array.copy() for name, array in gradients.items()}
        return dict(gradients)


@pytest.mark.parametrize("backward", ["minus", "plus", "clean"])
def test_the_last_layers_gradient_is_that_of_backpropagation_as_eps_goes_to_0(backward):
    network, rows = LayeredNetwork("lenet5", CLASSES, dtype=np.float64), batch("lenet5", 8)
    _, found = network.gradients(rows, dict.fromkeys(network.tensors()))
    want, misses = {name: array.copy() for name, array in found.items()}, {}
    for eps in (1e-3, 1e-9):
        stepper = begun(ElasticZO(backprop_layers="2", backward=backward, eps=eps, restore="copy"), network)
        stepper.numbers = Watch()
        stepper.step(rows, rate=0.0)
        seen = stepper.numbers.seen
        assert set(seen) == {"fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias"}
        misses[eps] = max(float(np.abs(seen[name] - want[name]).max()) for name in seen)
    assert misses[1e-9] < (1e-15 if backward == "clean" else 1e-6)
    assert backward == "clean" or misses[1e-3] > 1e-2  # the paper's gradient is taken eps u away


@pytest.mark.parametrize("name", ["lenet5", "pointnet"])
def test_gradients_are_those_of_finite_differences(name):
    network, rows = LayeredNetwork(name, CLASSES, dtype=np.float64), batch(name, 3)
    _, gradients = network.gradients(rows, dict.fromkeys(network.tensors()))
    rng = np.random.default_rng(0)
    for key, array in network.tensors().items():
        gradient = gradients[key].copy()
        for place in rng.integers(0, array.size, 4):
            old, sides = array.flat[place], []
            for side in (1e-6, -1e-6):
                array.flat[place] = old + side
                sides.append(network.loss(rows))
            array.flat[place] = old
            assert gradient.flat[place] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-6), key


def test_restored_and_updated_as_said():
    network, rows = LayeredNetwork("lenet5", CLASSES), batch("lenet5", 16)
    method = ElasticZO(backprop_layers="1", share=0.1, eps=1e-2, restore="copy")
    before = {name: array.copy() for name, array in network.tensors().items()}
    stepper = begun(method, network)
    directions = {name: stepper.spsa.direction(name) for name in stepper.spsa.tensors}
    loss = stepper.step(rows, 0.05)
    g = float(stepper.spsa.log["g"][0])
    losses = []
    for side in (1, -1):
        moved = {name: array + side * 1e-2 * directions.get(name, 0) for name, array in before.items()}
        losses.append(LayeredNetwork("lenet5", CLASSES, moved).loss(rows))
    assert loss == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert g == pytest.approx((losses[0] - losses[1]) / 2e-2, rel=1e-3)
    for name, direction in directions.items():
        assert np.allclose(network.tensors()[name], before[name] - 0.005 * g * direction, atol=1e-6)


@pytest.mark.parametrize("method", [Zeroth(), ElasticZO(), ElasticZO(restore="copy", backward="clean")])
def test_a_killed_training_goes_on_with_the_same_bits(method):
    whole, broken = LayeredNetwork("lenet5", CLASSES), LayeredNetwork("lenet5", CLASSES)
    run(begun(method, whole), 6)
    first = begun(method, broken)
    run(first, 3)
    state = {name: array.copy() for name, array in first.state().items()}
    assert sum(array.nbytes for array in state.values()) < 500
    again = LayeredNetwork("lenet5", CLASSES, broken.tensors())
    second = begun(method, again)
    second.restore(state)
    run(second, 3, start=3)
    assert bits(again) == bits(whole)


def test_the_log_replays_what_learned_by_zeroth_order():
    network = LayeredNetwork("lenet5", CLASSES)
    stepper = begun(ElasticZO(backprop_layers="1"), network)
    run(stepper, 5, rate=0.05)
    other = LayeredNetwork("lenet5", CLASSES)
    low = {name: other.tensors()[name] for name in stepper.spsa.tensors}
    Spsa(low, eps=1e-3, seed=SETTINGS.seed).replay(stepper.spsa.log)
    for name, array in low.items():
        assert np.array_equal(array, network.tensors()[name]), name


class Broken(LayeredNetwork):
    """Its losses are not finite from the third pass on."""

    calls = 0

    def loss(self, batch: Batch) -> float:
        self.calls += 1
        return super().loss(batch) if self.calls < 3 else math.inf


@pytest.mark.parametrize("method", [Zeroth(), ElasticZO()])
def test_a_loss_that_is_not_finite_changes_nothing(method):
    network = Broken("lenet5", CLASSES)
    stepper = begun(method, network)
    before = bits(network)
    assert math.isnan(run(stepper, 1)[0])
    assert bits(network) == before and stepper.spsa.skipped == 1


class Dropout(LayeredNetwork):
    """Drops inputs at random, anew in each pass."""

    generator = np.random.default_rng(0)

    def loss(self, batch: Batch) -> float:
        keep = self.generator.random(batch.inputs.shape) > 0.1
        return super().loss(Batch((batch.inputs * keep).astype(np.uint8), batch.labels))


@pytest.mark.parametrize("method", [Zeroth(), ElasticZO()])
def test_dropout_without_a_shared_mask_is_refused(method):
    with pytest.raises(UserError, match="dropout"):
        run(begun(method, Dropout("lenet5", CLASSES)), 1)


@pytest.mark.parametrize("method", [Zeroth(), ElasticZO()])
def test_norms_in_training_mode_are_refused(method):
    network = LayeredNetwork("lenet5", CLASSES)
    with pytest.raises(UserError, match="same statistics"):
        begun(method, network, replace(everything(network), moved=("norm.mean",)))


class Other(Plain):
    """Another precision."""


@pytest.mark.parametrize("method", [Zeroth(), ElasticZO()])
def test_other_numbers_are_refused(method):
    network = LayeredNetwork("lenet5", CLASSES)
    with pytest.raises(UserError, match="precision f32"):
        method.begin(network, everything(network), replace(SETTINGS, numbers=Other()))


class Residual(LayeredNetwork):
    """Its two convolutions are one block, as those of a residual block are."""

    @property
    def blocks(self) -> Mapping[str, tuple[str, ...]]:
        found = dict(super().blocks)
        return {"residual": found.pop("conv1") + found.pop("conv2"), **found}


def test_the_split_is_between_blocks():
    network = Residual("lenet5", CLASSES)
    wanted = everything(network).wanted
    low, last = split(network, wanted, "3", None)
    assert next(iter(last)) == "fc1.weight" and set(low) | set(last) == set(wanted)
    assert split(network, wanted, "2", "residual") == ({}, wanted)
    for inside in ("conv2.weight", "fc1.bias"):
        with pytest.raises(UserError, match="not taken apart"):
            split(network, wanted, "2", inside)
    with pytest.raises(UserError, match="not known"):
        split(network, wanted, "2", "conv3")
    with pytest.raises(UserError, match="more than the 4 blocks"):
        split(network, wanted, "5", None)


def test_only_what_learns_is_moved():
    network = LayeredNetwork("lenet5", CLASSES)
    learned = Learned(
        {"conv2.bias": None, "fc1.weight": Slice(0, (3, 4)), "fc3.weight": None, "fc3.bias": None}
    )
    before = {name: array.copy() for name, array in network.tensors().items()}
    stepper = begun(ElasticZO(backprop_layers="1", restore="copy"), network, learned)
    run(stepper, 2, rate=0.1)
    changed = {name for name, array in network.tensors().items() if not np.array_equal(array, before[name])}
    assert changed == set(learned.wanted)
    rows = np.flatnonzero((network.tensors()["fc1.weight"] != before["fc1.weight"]).any(axis=1))
    assert rows.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("elasticzo:eps=0", "eps"),
        ("elasticzo:eps=-1", "eps"),
        ("zeroth:eps=0", "eps"),
        ("zeroth:clip=-1", "clip"),
        ("elasticzo:share=0", "share"),
        ("elasticzo:backprop_layers=two", "backprop_layers"),
        ("elasticzo:backward=both", "backward"),
        ("zeroth:restore=none", "restore"),
    ],
)
def test_bad_parameters_are_refused(given, field):
    with pytest.raises(UserError) as error:
        index.create("train", "gradient", given)
    assert error.value.field == field


def test_plans_hold_what_is_held():
    network, rows = LayeredNetwork("lenet5", CLASSES), batch("lenet5", 8)
    learned = everything(network)
    plans = {}
    for choice in ("zeroth", "elasticzo", "elasticzo:backprop_layers=all", "zeroth:restore=copy"):
        method = index.create("train", "gradient", choice)
        assert isinstance(method, Gradient)
        fresh = LayeredNetwork("lenet5", CLASSES)
        stepper = begun(method, fresh)
        stepper.step(rows, 0.01)
        plan = dict(method.plan(fresh, learned, 8))
        plans[choice] = sum(plan.values())
        numbers = plan.pop("random numbers", 0)
        assert numbers >= stepper.spsa.scratch_nbytes
        held = fresh.buffer_nbytes() + stepper.spsa.nbytes + 4 * rows.inputs.size
        assert sum(plan.values()) == held
    assert plans["elasticzo"] < plans["elasticzo:backprop_layers=all"]
    assert plans["zeroth:restore=copy"] - plans["zeroth"] == 4 * 107_786
    offers = ElasticZO().offers(network)
    assert offers == ("elasticzo:backprop_layers=2", "elasticzo:backprop_layers=1")
