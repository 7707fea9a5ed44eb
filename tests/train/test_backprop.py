"""Steps by backpropagation equal PyTorch's optimizers, resume to the same bits and stay finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from haversack.core import index
from haversack.core.errors import UserError
from haversack.train._network import Slice
from haversack.train._slots import Gradient, Learned, Settings

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")


def stepper(network: Any, choice: str, learned: Learned | None = None) -> Any:
    method: Any = index.create("train", "gradient", choice)
    assert isinstance(method, Gradient)
    learned = learned or Learned(dict.fromkeys(name for name in network.tensors() if "mean" not in name))
    return method.begin(network, learned, Settings(steps=10, rows=8))


@pytest.mark.parametrize(
    ("choice", "optimizer"),
    [
        ("backprop", lambda p: torch.optim.SGD(p, lr=0.1)),
        ("backprop:momentum=0.9", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ("backprop:rule=adam", lambda p: torch.optim.Adam(p, lr=0.1)),
    ],
)
def test_steps_are_those_of_the_reference(small: Any, choice: str, optimizer: Any) -> None:
    network, theirs = small.SmallCnn(), small.SmallCnn()
    ours = stepper(network, choice)
    parameters = [tensor.requires_grad_() for name, tensor in theirs._held.items() if "mean" not in name]
    reference = optimizer(parameters)
    for step in range(5):
        batch = small.shades(8, step)
        loss = ours.step(batch, 0.1)
        reference.zero_grad()
        wanted = torch.nn.functional.cross_entropy(
            theirs._forward(batch.inputs), torch.from_numpy(batch.labels)
        )
        wanted.backward()
        reference.step()
        assert loss == pytest.approx(float(wanted.detach()), rel=1e-4)
    for name, array in network.tensors().items():
        np.testing.assert_allclose(array, theirs.tensors()[name], rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("choice", ["backprop", "backprop:momentum=0.9", "backprop:rule=adam"])
def test_a_restored_state_goes_on_to_the_same_bits(small: Any, choice: str) -> None:
    whole, broken = small.SmallCnn(), small.SmallCnn()
    one, first = stepper(whole, choice), stepper(broken, choice)
    for step in range(6):
        one.step(small.shades(8, step), 0.05)
        if step < 3:
            first.step(small.shades(8, step), 0.05)
    again = small.SmallCnn()
    for name, array in again.tensors().items():
        array[...] = broken.tensors()[name]
    second = stepper(again, choice)
    second.restore({key: value.copy() for key, value in first.state().items()})
    for step in range(3, 6):
        second.step(small.shades(8, step), 0.05)
    for name, array in again.tensors().items():
        assert array.tobytes() == whole.tensors()[name].tobytes(), name


def test_a_part_alone_changes(small: Any) -> None:
    network = small.SmallCnn()
    before = {name: array.copy() for name, array in network.tensors().items()}
    part = Slice(1, (0, 4))
    stepper(network, "backprop:momentum=0.5", Learned({"two.weight": part})).step(small.shades(8), 0.1)
    changed = network.tensors()["two.weight"] != before["two.weight"]
    assert changed[:, [0, 4]].any() and not changed[:, [1, 2, 3, 5]].any()
    assert all(
        (array == before[name]).all() for name, array in network.tensors().items() if name != "two.weight"
    )


def test_nothing_changes_where_the_loss_is_not_finite(small: Any) -> None:
    network = small.SmallCnn()
    network.tensors()["two.bias"][0] = np.nan
    before = {name: array.tobytes() for name, array in network.tensors().items()}
    steps = stepper(network, "backprop:rule=adam")
    assert np.isnan(steps.step(small.shades(8), 0.1))
    assert {name: array.tobytes() for name, array in network.tensors().items()} == before
    assert int(steps.state()["done"]) == 0


def test_the_head_has_a_rate_of_its_own(small: Any) -> None:
    slow, fast = small.SmallCnn(), small.SmallCnn()
    stepper(slow, "backprop:head=0.001").step(small.shades(8), 0.1)
    stepper(fast, "backprop").step(small.shades(8), 0.1)
    assert (slow.tensors()["two.weight"] == fast.tensors()["two.weight"]).all()
    plain = small.SmallCnn().tensors()["head.weight"]
    moved = [np.abs(one.tensors()["head.weight"] - plain).max() for one in (slow, fast)]
    assert moved[0] < 0.01 * moved[1]


@pytest.mark.parametrize(
    "choice", ["backprop:momentum=1", "backprop:rule=adam,momentum=0.9", "backprop:head=0"]
)
def test_bad_parameters_are_refused(choice: str) -> None:
    with pytest.raises(UserError):
        index.create("train", "gradient", choice)
