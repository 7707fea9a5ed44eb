"""ElasticZO in integers: exact restore under clipping, exact passes, replay, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from tests.train.layered_cases import CLASSES, batch, bits, everything

from haversack.core import index
from haversack.core.errors import UserError
from haversack.train._network import Batch, Slice
from haversack.train._niti import logit_error, pseudo_rounded
from haversack.train._slots import Gradient, Learned, Settings
from haversack.train.gradient._spsa import words
from haversack.train.gradient.elasticzo_int8 import ElasticZOInt8, IntegerSpsa, draws, step_table
from haversack.train.networks.integers import IntegerNetwork
from haversack.train.networks.layered import LayeredNetwork

SETTINGS = Settings(steps=9, rows=6, seed=3)


def rows(name: str, count: int = 6, seed: int = 0) -> Batch:
    found = batch(name, count, seed)
    if name == "lenet5":
        return found
    return Batch(np.clip(found.inputs * 40, -127, 127).astype(np.int8), found.labels)


def begun(method: ElasticZOInt8, network: IntegerNetwork):
    return method.begin(network, everything(network), SETTINGS)


def run(stepper, steps: int, start: int = 0) -> list[float]:
    return [stepper.step(rows("lenet5", seed=i), 1.0) for i in range(start, start + steps)]


def test_draws_are_those_of_the_documented_words():
    found, word = draws(5, 2, 1, 3, 6, 15, 20000), words(5, 2, 1, 0, 5)
    for i, value in enumerate(found, 3):
        half = int(word[i // 2]) >> 32 * (i % 2) & 0xFFFFFFFF
        want = ((half & 0xFFFF) * 31 >> 16) - 15 if half >> 16 >= 20000 else 0
        assert value == want
    z = draws(0, 0, 0, 0, 200_000, 7, round(0.33 * 65536))
    assert (z == 0).mean() == pytest.approx(0.33 + 0.67 / 15, abs=0.005)
    assert [(z == v).mean() for v in range(-7, 8) if v] == pytest.approx([0.67 / 15] * 14, abs=0.002)


def test_steps_have_their_bits():
    assert step_table(15, 1).tolist() == [-1] * 10 + [0] * 11 + [1] * 10 or set(step_table(15, 1)) == {
        -1,
        0,
        1,
    }
    for r_max in (1, 3, 7, 15, 31):
        for bits_ in (1, 2, 3, 4):
            table = step_table(r_max, bits_)
            assert np.abs(table).max() == min(r_max, 2**bits_ - 1)
            assert np.array_equal(table, -table[::-1])
            assert table[r_max] == 0


@pytest.mark.parametrize("p_zero", [0, 30000])
def test_restored_to_the_bit_at_both_ends(p_zero):
    every = np.arange(-127, 128, dtype=np.int8)
    tensors = {"a": np.tile(every, 300).reshape(150, -1), "b": np.full(13, 127, np.int8)}
    start = {name: array.copy() for name, array in tensors.items()}
    spsa = IntegerSpsa(tensors, seed=1)
    assert spsa.nbytes == -(-tensors["a"].size // 8) + 2
    for path in ((1, -1, 0), (-1, 1, 0), (1, 0)):
        spsa.r_max, spsa.p_zero = 15, p_zero
        seen = {}
        for side in path:
            spsa.move(side)
            seen[side] = tensors["a"].astype(int)
        assert all(np.array_equal(array, start[name]) for name, array in tensors.items())
        z = draws(1, spsa.step, 0, 0, tensors["a"].size, 15, p_zero).reshape(150, -1).astype(int)
        inside = np.abs(start["a"].astype(int)) + np.abs(z) <= 127
        for side in (1, -1):
            if side in seen:
                assert np.array_equal(seen[side], start["a"] + side * z * inside)
        spsa.update(0, 1)
    assert spsa.clipped > 0


def test_clipping_as_in_the_paper_does_not_come_back():
    tensors = {"a": np.full(1000, 126, np.int8)}
    spsa = IntegerSpsa(tensors, seed=1, restore="clip")
    for side in (1, -1, 0):
        spsa.move(side)
        assert np.abs(tensors["a"].astype(int)).max() <= 127
    assert spsa.nbytes == 0 and not np.all(tensors["a"] == 126)
    with pytest.raises(UserError, match="cannot be played again"):
        spsa.replay(spsa.log)


def plain_pass(network: IntegerNetwork, inputs: np.ndarray):
    """The pass in int64, written by the definition."""
    x = (np.moveaxis(inputs, 3, 1) >> 1).astype(np.int64)
    exponent, values = -7, []
    values.append(x)
    for layer in network.layers:
        if layer.kind == "pool":
            n, c, h, w = x.shape
            x = x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))
        else:
            weight = network.tensors()[f"{layer.name}.weight"].astype(np.int64)
            if layer.kind == "convolution":
                framed = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
                seen = np.stack(
                    [
                        framed[:, :, i : i + x.shape[2], j : j + x.shape[3]]
                        for i in range(5)
                        for j in range(5)
                    ],
                    2,
                )
                sums = np.einsum("oct,nctyx->noyx", weight.reshape(len(weight), -1, 25), seen)
            else:
                sums = x.reshape(len(x), -1) @ weight.T
            dropped = max(0, int(np.abs(sums).max()).bit_length() - 7)
            x = np.clip(pseudo_rounded(sums.astype(np.int32), dropped), -127, 127).astype(np.int64)
            exponent += dropped + int(network.tensors()[f"{layer.name}.exponent"])
            if layer.relu:
                x = np.maximum(x, 0)
        values.append(x)
    return values, exponent


def test_a_pass_is_exact():
    network, given = IntegerNetwork("lenet5", CLASSES, seed=2), rows("lenet5")
    found = network.integer_pass(given.inputs)
    want, exponent = plain_pass(network, given.inputs)
    for ours, theirs in zip(found, want, strict=True):
        assert np.array_equal(ours.mantissas.reshape(theirs.shape), theirs)
    assert found[-1].exponent == exponent
    assert np.array_equal(network.logits(given.inputs), np.ldexp(want[-1].astype(np.float32), exponent))


def test_the_way_back_is_exact_at_the_last_layers():
    network, given = IntegerNetwork("lenet5", CLASSES, seed=2), rows("lenet5", 40)
    _, found = network.integer_gradients(given, ["fc2.weight", "fc3.weight"], 5)
    values = [each.mantissas.astype(np.int64) for each in network.integer_pass(given.inputs)]
    error = np.empty((40, 10), np.int8)
    logit_error(network.integer_pass(given.inputs)[-1], given.labels, error)

    def rounded(sums, bits_):
        dropped = max(0, int(np.abs(sums).max()).bit_length() - bits_)
        return np.clip(pseudo_rounded(sums.astype(np.int32), dropped), 1 - 2**bits_, 2**bits_ - 1)

    assert np.array_equal(found["fc3.weight"], rounded(error.astype(np.int64).T @ values[-2], 5))
    lower = rounded(error.astype(np.int64) @ network.tensors()["fc3.weight"].astype(np.int64), 7)
    lower = lower * (values[-2] > 0)
    assert np.array_equal(found["fc2.weight"], rounded(lower.T @ values[-3], 5))
    assert np.abs(found["fc3.weight"]).max() > 15


@pytest.mark.parametrize("name", ["lenet5", "pointnet"])
def test_integer_gradients_point_where_float_ones_do(name):
    network, given = IntegerNetwork(name, CLASSES, seed=1), rows(name, 32)
    floats = {
        f"{layer}.weight": np.ldexp(
            network.tensors()[f"{layer}.weight"].astype(np.float32),
            int(network.tensors()[f"{layer}.exponent"]),
        )
        for layer in network.blocks
    }
    twin = LayeredNetwork(name, CLASSES, floats)
    seen = given if name == "lenet5" else Batch(given.inputs.astype(np.float32) / 128, given.labels)
    assert twin.loss(seen) == pytest.approx(network.loss(given), rel=0.15)
    _, want = twin.gradients(seen, dict.fromkeys(floats))
    _, found = network.integer_gradients(given, list(floats), 7)
    for key, gradient in want.items():
        ours = found[key].astype(np.float64)
        cosine = (ours * gradient).sum() / np.linalg.norm(ours) / np.linalg.norm(gradient)
        assert cosine > (0.9 if key.startswith("fc") else 0.6), (key, cosine)


@pytest.mark.parametrize("layers", ["0", "1", "2", "all"])
def test_steps_are_whole_mantissas(layers):
    network = IntegerNetwork("lenet5", CLASSES)
    before = {name: array.copy() for name, array in network.tensors().items()}
    stepper = begun(ElasticZOInt8(backprop_layers=layers, b_bp=3), network)
    run(stepper, 1)
    for name, array in network.tensors().items():
        moved = np.abs(array.astype(int) - before[name]).max()
        low = name in stepper.spsa.tensors
        if name.endswith("exponent"):
            assert moved == 0
        else:
            assert moved <= (1 if low else 7)
    changed = any(not np.array_equal(a, before[name]) for name, a in network.tensors().items())
    assert changed


def test_the_log_replays_and_a_killed_training_goes_on():
    whole, broken = IntegerNetwork("lenet5", CLASSES), IntegerNetwork("lenet5", CLASSES)
    stepper = begun(ElasticZOInt8(), whole)
    run(stepper, 9)
    assert len(set(stepper.spsa.log["p_zero"])) == 3  # the schedule
    other = IntegerNetwork("lenet5", CLASSES)
    low = {name: other.tensors()[name] for name in stepper.spsa.tensors}
    IntegerSpsa(low, seed=SETTINGS.seed).replay(stepper.spsa.log)
    assert all(np.array_equal(array, whole.tensors()[name]) for name, array in low.items())
    with pytest.raises(UserError):
        IntegerSpsa(low, seed=SETTINGS.seed).replay(stepper.spsa.log[1:])
    first = begun(ElasticZOInt8(), broken)
    run(first, 4)
    second = begun(ElasticZOInt8(), broken)
    second.restore({name: array.copy() for name, array in first.state().items()})
    run(second, 5, start=4)
    assert bits(broken) == bits(whole)
    assert stepper.spsa.log.nbytes <= 14 * 9


def test_it_learns():
    network, given = IntegerNetwork("lenet5", CLASSES), rows("lenet5", 32)
    stepper = ElasticZOInt8(p_zero=0.9).begin(network, everything(network), Settings(30, 32, 0))
    losses = [stepper.step(given, 0.0) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_what_is_not_integers_is_refused():
    method, network = ElasticZOInt8(), IntegerNetwork("lenet5", CLASSES)
    assert isinstance(method, Gradient) and method.offers(network) == ("elasticzo-int8",)
    floats = LayeredNetwork("lenet5", CLASSES)
    assert method.offers(floats) == ()
    with pytest.raises(UserError, match="use gradient elasticzo"):
        method.begin(floats, everything(floats), SETTINGS)
    with pytest.raises(UserError, match="float gradients"):
        network.gradients(rows("lenet5"), {})
    with pytest.raises(UserError, match="takes int8"):
        IntegerSpsa({"a": np.zeros(3, np.float32)}, seed=0)
    with pytest.raises(UserError, match="takes u8"):
        network.integer_loss(Batch(np.zeros((2, 28, 28, 1), np.float32), np.zeros(2, np.int64)))
    with pytest.raises(UserError, match="takes int8"):
        IntegerNetwork("pointnet", CLASSES).integer_loss(batch("pointnet"))
    with pytest.raises(UserError, match="whole tensors"):
        method.begin(network, Learned({"fc3.weight": Slice(0, (1,))}), SETTINGS)
    with pytest.raises(UserError, match="no biases"):
        IntegerNetwork("lenet5", CLASSES, {"fc3.bias": np.ones(10, np.float32)})


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("r_max=5", "r_max"),
        ("p_zero=1", "p_zero"),
        ("p_zero=-0.1", "p_zero"),
        ("b_zo=0", "b_zo"),
        ("b_bp=8", "b_bp"),
        ("restore=none", "restore"),
        ("backprop_layers=-1", "backprop_layers"),
    ],
)
def test_bad_parameters_are_refused(given, field):
    with pytest.raises(UserError) as error:
        index.create("train", "gradient", f"elasticzo-int8:{given}")
    assert error.value.field == field


def test_the_plan_holds_what_is_held():
    learned = everything(IntegerNetwork("lenet5", CLASSES))
    for layers in ("0", "2", "all"):
        fresh = IntegerNetwork("lenet5", CLASSES)
        method = ElasticZOInt8(backprop_layers=layers)
        stepper = begun(method, fresh)
        stepper.step(rows("lenet5", 8), 0.0)
        plan = dict(method.plan(fresh, learned, 8))
        assert plan["working set"] == fresh.buffer_nbytes()
        assert plan.get("which numbers move", 0) == stepper.spsa.nbytes
