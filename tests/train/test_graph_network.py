"""An int8 graph as a network: what the slots rely on, and the whole way from a file to a delta and back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.formats.litert_files import made
from tests.formats.test_mcu_pickle import small, write
from tests.models.graph.nets import data, other_net, residual_net

from haversack.core.errors import UserError
from haversack.models.graph.training import HEAD
from haversack.train._network import Batch, Features, Network, Pictures, Slice, identity
from haversack.train.networks._graph import GraphNetwork
from haversack.train.networks._open import open_network


def batch(rows: int = 5, size: int = 8, classes: int = 3) -> Batch:
    random = np.random.default_rng(0)
    return Batch(
        random.integers(0, 256, (rows, size, size, 3)).astype(np.uint8), random.integers(0, classes, rows)
    )


@pytest.fixture(params=[residual_net, other_net])
def net(request) -> GraphNetwork:
    found = GraphNetwork(request.param(), "made")
    found.new_head(("a", "b", "c"), 0)
    return found


def test_it_is_a_network(net: GraphNetwork) -> None:
    assert isinstance(net, Network)
    assert net.form == Pictures(8, 8, 3)
    names = [name for group in net.blocks.values() for name in group]
    assert names == list(net.tensors()) and list(net.blocks)[-1] == "head"
    assert set(net.roles().values()) == {"weight", "bias"}
    assert net.classes == ("a", "b", "c")


def test_no_residual_crosses_blocks() -> None:
    net = GraphNetwork(residual_net(), "made")
    assert [len(group) for group in net.blocks.values()] == [2, 6, 2, 2, 2]


def test_who_writes_into_the_tensors_changes_the_network(net: GraphNetwork) -> None:
    rows = batch()
    before, first = net.logits(rows.inputs), identity(net)
    name = next(iter(net.tensors()))
    net.tensors()[name][...] = 0
    assert (net.logits(rows.inputs) != before).any() and identity(net) != first


def test_passes_change_nothing_and_agree(net: GraphNetwork) -> None:
    rows = batch(70)
    mark = identity(net)
    loss = net.loss(rows)
    again, gradients = net.gradients(rows, dict.fromkeys(net.tensors()))
    assert loss == pytest.approx(again, rel=1e-5)
    assert identity(net) == mark
    for name, values in net.tensors().items():
        assert gradients[name].shape == values.shape and gradients[name].dtype == np.float32
    # rows in pieces are the rows together
    halves = [net.gradients(Batch(rows.inputs[part], rows.labels[part]), {HEAD[0]: None})[1][HEAD[0]]
              for part in (slice(0, 35), slice(35, 70))]  # fmt: skip
    assert np.allclose(sum(halves) / 2, gradients[HEAD[0]], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_the_plan_says_what_is_saved_to_the_byte(net: GraphNetwork, count: int) -> None:
    names = list(net.tensors())
    weight = names[2]
    for wanted in (
        dict.fromkeys(HEAD),
        dict.fromkeys(names),
        {weight: Slice(net.tensors()[weight].ndim - 1, (0, 2)), **dict.fromkeys(HEAD)},
        {names[1]: None},
    ):
        net.gradients(batch(count), wanted)
        planned = dict(net.plan(wanted, count))
        assert planned.get("saved for the way back", 0) == net.saved_nbytes
        assert planned["working set"] > 0


def test_a_part_s_gradient_is_the_part_of_the_gradient(net: GraphNetwork) -> None:
    rows = batch()
    names = [name for name in net.tensors() if name.endswith("weight")]
    whole = net.gradients(rows, dict.fromkeys(names))[1]
    for name in names:
        for axis in range(net.tensors()[name].ndim):
            part = Slice(axis, (0,))
            found = net.gradients(rows, {name: part})[1][name]
            size = np.abs(whole[name]).max()
            assert np.allclose(found, part.of(whole[name]), rtol=1e-3, atol=1e-5 * size), (name, axis)


def test_a_new_head_is_the_same_for_the_same_seed_and_leaves_the_rest(net: GraphNetwork) -> None:
    kept = {name: values.copy() for name, values in net.tensors().items() if name not in HEAD}
    net.new_head(("x", "y"), 5)
    first = net.tensors()[HEAD[0]].copy()
    net.new_head(("x", "y", "z"), 6)
    net.new_head(("x", "y"), 5)
    assert (net.tensors()[HEAD[0]] == first).all()
    assert all((net.tensors()[name] == values).all() for name, values in kept.items())


def test_labels_and_inputs_that_do_not_fit_are_refused(net: GraphNetwork) -> None:
    rows = batch()
    for labels in (rows.labels + 3, rows.labels - 3):
        with pytest.raises(UserError, match=r"beyond the head of made, which has 3 outputs"):
            net.gradients(Batch(rows.inputs, labels), dict.fromkeys(HEAD))
    with pytest.raises(UserError, match="takes inputs of 8 x 8 x 3, and these are 9 x 8 x 3"):
        net.logits(np.zeros((1, 9, 8, 3), np.uint8))
    with pytest.raises(UserError, match="8 x 8 x 3, and these are 8 x 8 x 1"):
        net.loss(Batch(np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, np.int64)))


def test_files_are_opened_by_their_kind(tmp_path: Path) -> None:
    pickled = open_network(write(tmp_path / "small.pkl", small()))
    assert isinstance(pickled, GraphNetwork) and pickled.form == Pictures(8, 8, 3)
    dense = tmp_path / "dense.tflite"
    dense.write_bytes(made())
    network = open_network(dense)
    assert network.form == Features((6,))
    network.new_head(("a", "b"), 0)
    assert network.logits(np.ones((3, 6), np.float32)).shape == (3, 2)
    odd = tmp_path / "odd.pkl"
    odd.write_bytes(b"\x80\x02N.")
    with pytest.raises(UserError, match="is no network that learns"):
        open_network(odd)


def test_a_float_file_is_refused_with_what_to_give() -> None:
    with pytest.raises(UserError, match="computes in floats, and learning here needs 8-bit integers"):
        open_network(data("models", "mlperf-tiny", "pretrainedResnet.tflite"))


@pytest.mark.parametrize("name", ["kws_ref_model", "pretrainedResnet_quant", "vww_96_int8"])
def test_real_litert_networks_learn(name: str) -> None:
    from haversack.train._slots import Settings
    from haversack.train.gradient.backprop import Backprop
    from haversack.train.parameters.sparse import Sparse
    from haversack.train.precision.int8_qas import Int8Qas

    network = open_network(data("models", "mlperf-tiny", f"{name}.tflite"))
    network.new_head(("a", "b"), 0)
    learned = Sparse(kib=60).prepare(network, 0)
    assert len(learned.wanted) > 3
    numbers = Int8Qas(latent="float").begin(network, learned)
    stepper = Backprop().begin(network, learned, Settings(9, 6, 0, numbers))
    shape = network.graph.tensors["input"].shape  # type: ignore[attr-defined]
    inputs = np.random.default_rng(0).integers(-128, 128, (6, *shape)).astype(np.int8)
    rows = Batch(inputs, np.array([0, 1] * 3))
    first = network.loss(rows)
    for _ in range(8):
        stepper.step(rows, 0.01)
    numbers.finish()
    assert network.loss(rows) < first


def test_from_a_file_to_a_delta_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fit, apply: the delta of slices in int8, laid over its base, is the network that was trained."""
    image = pytest.importorskip("PIL.Image")
    from haversack.cli import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for label, shade in (("dark", 40), ("light", 200)):
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for i in range(8):
            pixels = np.clip(random.normal(shade, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
            image.fromarray(pixels).save(folder / f"{i}.png")
    base = write(tmp_path / "small.pkl", small())
    original = base.read_bytes()
    goal = tmp_path / "delta"
    line = ["train", "fit", str(base), "--data", str(tmp_path / "data"), "-o", str(goal)]
    choice = ["--parameters", "sparse:biases=3,layers=3-5,ratios=0.5-1", "--precision", "int8-qas"]
    assert (
        main(
            [*line, *choice, "--gradient", "backprop", "--epochs", "4", "--rate", "0.05", "--ram-mib", "4000"]
        )
        == 0
    )
    from haversack.train._delta import apply_delta, read_delta

    delta = read_delta(goal)
    kinds = {name: values.dtype for name, values in delta.values.items()}
    assert kinds["block1.pointwise1.weight"] == np.int8 and kinds["block1.pointwise2.bias"] == np.int32
    assert delta.values["block1.pointwise1.weight"].shape[-1] == 3
    network = open_network(base)
    apply_delta(network, delta)
    assert base.read_bytes() == original
    untouched = open_network(base)
    for name, values in network.tensors().items():
        if name not in delta.values and name not in HEAD:
            assert (values == untouched.tensors()[name]).all()
    other = write(tmp_path / "other.pkl", small(1))
    with pytest.raises(UserError, match="another network"):
        apply_delta(open_network(other), delta)
    shutil.rmtree(goal)
    assert main([*line, "--parameters", "sparse:biases=9"]) == 2
    assert not goal.exists()
