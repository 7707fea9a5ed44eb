"""LeNet-5 and PointNet in numpy: their sizes, parity with PyTorch, the truncated way back, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.train.layered_cases import CLASSES, batch, bits

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.safetensors import write_safetensors
from haversack.train._network import Batch, Network, Slice
from haversack.train.networks._open import open_network
from haversack.train.networks.integers import IntegerNetwork
from haversack.train.networks.layered import LayeredNetwork, softmax_error, write_network

both = pytest.mark.parametrize("name", ["lenet5", "pointnet"])


def test_lenet5_has_the_numbers_of_the_paper():
    network = LayeredNetwork("lenet5", CLASSES)
    counts = {
        block: sum(network.tensors()[name].size for name in names) for block, names in network.blocks.items()
    }
    assert counts == {"conv1": 156, "conv2": 2416, "fc1": 94200, "fc2": 10164, "fc3": 850}
    assert sum(counts.values()) == 107_786
    assert isinstance(network, Network) and isinstance(IntegerNetwork("lenet5", CLASSES), Network)


@both
def test_loss_and_gradients_are_those_of_pytorch(name):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    network, rows = LayeredNetwork(name, CLASSES, seed=3), batch(name)
    given = {key: torch.tensor(array, requires_grad=True) for key, array in network.tensors().items()}
    if name == "lenet5":
        x = torch.tensor(rows.inputs).permute(0, 3, 1, 2).float() / 255
        for layer in ("conv1", "conv2"):
            weight = given[f"{layer}.weight"]
            kernel = weight.view(len(weight), -1, 5, 5)
            x = f.max_pool2d(f.relu(f.conv2d(x, kernel, given[f"{layer}.bias"], padding=2)), 2)
        x = x.flatten(1)
    else:
        x = torch.tensor(rows.inputs)
        for layer in ("point1", "point2", "point3"):
            x = f.relu(f.linear(x, given[f"{layer}.weight"], given[f"{layer}.bias"]))
        x = x.max(1).values
    for layer in ("fc1", "fc2"):
        x = f.relu(f.linear(x, given[f"{layer}.weight"], given[f"{layer}.bias"]))
    x = f.linear(x, given["fc3.weight"], given["fc3.bias"])
    loss = f.cross_entropy(x, torch.tensor(rows.labels))
    loss.backward()
    found, gradients = network.gradients(rows, dict.fromkeys(given))
    assert found == pytest.approx(loss.item(), rel=1e-5) and network.loss(rows) == found
    assert np.allclose(network.logits(rows.inputs), x.detach().numpy(), atol=1e-4)
    for key, tensor in given.items():
        want = tensor.grad.numpy()
        assert np.allclose(gradients[key], want, atol=1e-5 * np.abs(want).max()), key


@both
def test_the_way_back_stops_at_the_lowest_that_learns(name):
    whole, short = LayeredNetwork(name, CLASSES), LayeredNetwork(name, CLASSES)
    rows = batch(name)
    _, all_ = whole.gradients(rows, dict.fromkeys(whole.tensors()))
    wanted = {"fc2.weight": None, "fc3.bias": None, "fc3.weight": Slice(0, (1, 7))}
    _, few = short.gradients(rows, wanted)
    assert list(few) == list(wanted)
    assert np.array_equal(few["fc2.weight"], all_["fc2.weight"])
    assert np.array_equal(few["fc3.weight"], all_["fc3.weight"][[1, 7]])
    errors = [key for key in short.buffers.held if key.startswith("error")]
    assert len(errors) == 2 and len([key for key in whole.buffers.held if key.startswith("error")]) == len(
        whole.layers
    )
    assert short.saved_nbytes < 0.1 * whole.saved_nbytes
    for network, names in ((whole, dict.fromkeys(whole.tensors())), (short, wanted)):
        plan = dict(network.plan(names, len(rows)))
        assert plan["saved for the way back"] == network.saved_nbytes
        gradients = sum(array.nbytes for key, array in network.buffers.held.items() if "gradient" in key)
        held = network.buffer_nbytes() - gradients + network.layers[0].before[0] * 0
        inputs = 4 * rows.inputs.size
        assert plan["working set"] == held + inputs - network.saved_nbytes


@both
def test_a_pass_changes_nothing_and_rows_do_not_know_each_other(name):
    network, rows = LayeredNetwork(name, CLASSES), batch(name, 9)
    before = bits(network)
    logits = network.logits(rows.inputs)
    one = network.logits(rows.inputs[4:5])
    assert np.allclose(one[0], logits[4], atol=1e-5)
    network.gradients(rows, dict.fromkeys(network.tensors()))
    assert bits(network) == before
    assert np.array_equal(network.logits(rows.inputs), logits)


def test_softmax_error_is_the_gradient_of_the_loss():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((3, 5)), np.array([1, 4, 0])
    error = np.empty_like(logits)
    softmax_error(logits, labels, error)
    for place in np.ndindex(logits.shape):
        sides = []
        for side in (1e-5, -1e-5):
            moved = logits.copy()
            moved[place] += side
            sides.append(softmax_error(moved, labels, np.empty_like(moved)))
        assert error[place] == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-8)


@pytest.mark.parametrize("kind", [LayeredNetwork, IntegerNetwork])
def test_written_and_opened_again(kind, tmp_path):
    network = kind("lenet5", ("cat", "dog", "owl"), seed=4)
    network.write(tmp_path / "net")
    found = open_network(tmp_path / "net")
    assert type(found) is kind and found.classes == ("cat", "dog", "owl") and found.name == "net"
    assert bits(found) == bits(network)
    found.new_head(CLASSES, seed=5)
    assert found.logits(batch("lenet5").inputs).shape == (6, 10)
    again = open_network(tmp_path / "net")
    again.new_head(CLASSES, seed=5)
    assert bits(again) == bits(found)


def test_without_weights_it_begins_fresh(tmp_path):
    (tmp_path / "network.json").write_text(json.dumps({"network": "lenet5", "classes": list("ab")}))
    first, second = open_network(tmp_path, seed=1), open_network(tmp_path, seed=2)
    assert bits(first) == bits(LayeredNetwork("lenet5", ("a", "b"), seed=1)) != bits(second)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        '{"network": "lenet5"}',
        '{"network": "lenet5", "classes": []}',
        '{"network": "lenet5", "classes": [1]}',
        '{"network": "lenet9", "classes": ["a"]}',
        '{"network": "lenet5", "classes": ["a"], "numbers": "f16"}',
    ],
)
def test_broken_descriptions_are_refused(config, tmp_path):
    (tmp_path / "network.json").write_text(config)
    with pytest.raises(UserError):
        open_network(tmp_path)


def test_weights_of_another_network_are_refused(tmp_path):
    write_network(tmp_path, "lenet5", CLASSES, "f32", LayeredNetwork("pointnet", CLASSES).tensors())
    with pytest.raises(DamagedFileError):
        open_network(tmp_path)
    tensors = dict(LayeredNetwork("lenet5", CLASSES).tensors())
    tensors["fc3.weight"] = tensors["fc3.weight"][:9]
    write_network(tmp_path, "lenet5", CLASSES, "f32", tensors)
    with pytest.raises(DamagedFileError, match=r"fc3\.weight"):
        open_network(tmp_path)
    integers = dict(IntegerNetwork("lenet5", CLASSES).tensors())
    integers["fc3.weight"] = np.full((10, 84), -128, np.int8)
    write_network(tmp_path, "lenet5", CLASSES, "int8", integers)
    with pytest.raises(DamagedFileError, match="-128"):
        open_network(tmp_path)
    write_safetensors(tmp_path / "weights.safetensors", [])
    with pytest.raises(DamagedFileError):
        open_network(tmp_path)


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        (Batch(np.zeros((2, 28, 28, 1), np.uint8), np.array([0, 10])), "labels"),
        (Batch(np.zeros((2, 28, 28, 1), np.uint8), np.array([-1, 0])), "labels"),
        (Batch(np.zeros((2, 27, 28, 1), np.uint8), np.array([1, 0])), "inputs"),
        (Batch(np.zeros((0, 28, 28, 1), np.uint8), np.zeros(0, np.int64)), "inputs"),
    ],
)
@pytest.mark.parametrize("kind", [LayeredNetwork, IntegerNetwork])
def test_rows_that_do_not_fit_are_refused(kind, rows, field):
    with pytest.raises(UserError) as error:
        kind("lenet5", CLASSES).loss(rows)
    assert error.value.field == field
