"""Several examples a step: the mean of their gradients, in C to the bit what the Python graph takes."""

from __future__ import annotations

import ctypes
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.embed.test_train import SPARSE, gradients, symbols
from tests.models.graph.nets import residual_net

from haversack.core.errors import UserError
from haversack.embed._host import run
from haversack.embed.train import Kernels, Recipe, Training, build_training_graph, planned
from haversack.embed.verify import verify
from haversack.models.graph import in_floats
from haversack.models.graph._gradients import LABEL

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")

TRAININGS = {
    "fp32": (True, Training("all", kernels=Kernels(4, 2, 4, 16), recipe=Recipe(examples=3))),
    "square": (True, Training("bias", loss="mean-square", recipe=Recipe(momentum=0.9, examples=2))),
    "codes": (False, Training(SPARSE, classes=3, recipe=Recipe(momentum=0.5, examples=5))),
    "qas": (False, Training("all", recipe=Recipe(examples=2))),
    "fp16": (
        True,
        Training("all", precision="fp16", recipe=Recipe(0.5, 1e-3, loss_scale=64.0, master=True, examples=3)),
    ),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_the_c_learns_what_the_python_graph_does(name: str, tmp_path: Path) -> None:
    floats, training = TRAININGS[name]
    graph = in_floats(residual_net()) if floats else residual_net()
    done = build_training_graph(graph, tmp_path, training, count=2)
    found = verify(tmp_path)
    assert found.holds, [each for each in found.runs if not each.holds]
    record, one = (
        done.record(),
        planned(graph, replace(training, recipe=replace(training.recipe, examples=1))),
    )
    assert record["training"]["examples"] == training.recipe.examples
    assert record["arena_bytes"] == one.arena_nbytes
    numbers = record["training"]["learned_numbers"]
    assert record["training"]["carried_bytes"] == one.carried_nbytes + 4 * numbers
    assert symbols(tmp_path)["nn_sums"] == 4 * numbers


def test_a_step_goes_along_the_mean_gradient() -> None:
    """Of automatic differentiation in 64 bits, on the same examples."""
    graph = in_floats(residual_net())
    made = planned(graph, Training("all", recipe=Recipe(examples=4)))
    twin = made.twin()
    before = {name: values.copy() for name, values in twin.parameters.items()}
    rng = np.random.default_rng(6)
    x = rng.uniform(-1, 1, (4, *graph.tensors[graph.inputs[0]].shape)).astype(np.float32)
    labels = np.array([0, 2, 1, 2], np.int32)
    twin.step({graph.inputs[0]: x, LABEL: labels}, 1.0)
    ready = replace(made.pass_graph, constants={**made.pass_graph.constants, **before})
    each = [gradients(ready, row, int(label)) for row, label in zip(x, labels, strict=True)]
    for name, values in twin.parameters.items():
        wanted = np.mean([gradient[name] for gradient in each], axis=0)
        np.testing.assert_allclose(
            before[name] - values,
            wanted.reshape(values.shape),
            rtol=1e-3,
            atol=2e-5 * np.abs(wanted).max() + 1e-6,
        )


def test_the_mean_of_equal_examples_is_one_of_them() -> None:
    """To the bit where dividing by their number is exact."""
    graph = in_floats(residual_net())
    x = np.random.default_rng(2).uniform(-1, 1, graph.tensors[graph.inputs[0]].shape).astype(np.float32)
    found = []
    for count in (1, 2):
        twin = planned(graph, Training("all", recipe=Recipe(examples=count))).twin()
        twin.step({graph.inputs[0]: np.stack([x] * count), LABEL: np.full(count, 1, np.int32)}, 0.1)
        found.append(twin.parameters)
    for name, values in found[0].items():
        np.testing.assert_array_equal(values, found[1][name])


def test_a_class_that_does_not_exist_changes_nothing_and_leaves_no_sum(tmp_path: Path) -> None:
    """Though it is the last one of the step; the next step is that of a fresh network."""
    graph = in_floats(residual_net())
    made = build_training_graph(
        graph, tmp_path, Training("all", recipe=Recipe(0.9, examples=2)), count=1
    ).plan
    library = tmp_path / "network.so"
    run(["gcc", "-std=c99", "-O1", "-shared", "-fPIC", tmp_path / "network.c", "-o", library, "-lm"])
    lib = ctypes.CDLL(str(library))
    lib.nn_train_step.restype = ctypes.c_float
    lib.nn_train_step.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float]
    lib.nn_learned_bytes.restype = ctypes.POINTER(ctypes.c_ubyte)
    shape = graph.tensors[graph.inputs[0]].shape
    x = np.random.default_rng(3).uniform(-1, 1, (2, *shape)).astype(np.float32)

    def step(*labels: int) -> tuple[float, bytes]:
        goal = np.array(labels, np.int32)
        loss = lib.nn_train_step(x.ctypes.data, goal.ctypes.data, 0.1)
        return loss, bytes(lib.nn_learned_bytes()[: made.learned_nbytes])

    lib.nn_train_reset()
    before = bytes(lib.nn_learned_bytes()[: made.learned_nbytes])
    loss, after = step(1, 99)
    assert np.isnan(loss) and after == before
    loss, after = step(1, 0)
    twin = made.twin()
    wanted = twin.step({graph.inputs[0]: x, LABEL: np.array([1, 0], np.int32)}, 0.1)
    assert loss == pytest.approx(wanted, rel=1e-5) and after == made.block(twin.parameters) != before


@pytest.mark.parametrize("count", [0, -3, 1025])
def test_counts_out_of_range_are_refused(count: int) -> None:
    with pytest.raises(UserError, match="allowed 1 to 1024") as caught:
        Training("all", recipe=Recipe(examples=count))
    assert caught.value.field == "examples" and caught.value.nearest in (1, 1024)
