"""Networks that learn as C: every number after every step is the Python graph's, here and on emulated cores.

The memory is the plan's; gradients are those of automatic differentiation.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.models.graph.nets import data, other_net, residual_net

from haversack.core.errors import UserError
from haversack.embed._host import run
from haversack.embed._train_graph import prepared, step_graph
from haversack.embed.build import load_graph
from haversack.embed.targets import TARGETS
from haversack.embed.train import Kernels, Recipe, Training, build_training, build_training_graph, planned
from haversack.embed.verify import verify
from haversack.models.graph import Graph, Machine, Quantization, Tensor, compiled, in_floats, plan
from haversack.models.graph._gradients import LABEL, LOSS
from haversack.models.graph._ir import Add, Conv2d, DepthwiseConv2d, FullyConnected, Mean, Softmax
from haversack.models.graph.autodiff import backward, gradients_of, with_loss
from haversack.models.graph.series import Recurrent

if shutil.which("gcc") is None:
    pytest.skip("gcc is not installed", allow_module_level=True)

SPARSE = "sparse:biases=5,layers=1-2-3,ratios=0.5-0.5-0.5"
PUBLISHED = "sparse:biases=22,layers=21-24-27-30-36-39,ratios=1-1-1-1-0.125-0.25"

TRAININGS = {
    "qas": (residual_net, False, Training("all")),
    "plain-codes": (other_net, False, Training("all", precision="int8", rate=30.0)),
    "sparse": (residual_net, False, Training(SPARSE, classes=3)),
    "bias": (other_net, False, Training("bias")),
    "head": (residual_net, False, Training("head", classes=4)),
    "momentum": (residual_net, False, Training(SPARSE, recipe=Recipe(momentum=0.9))),
    "fp32": (residual_net, True, Training("all")),
    "pad": (other_net, True, Training("all")),
    "matrix": (residual_net, True, Training("all", kernels=Kernels(4, 2, 4, 16))),
    "square": (residual_net, True, Training("all", loss="mean-square")),
    "fp16": (residual_net, True, Training("all", precision="fp16")),
    "fp16-matrix": (residual_net, True, Training("all", precision="fp16", kernels=Kernels(2, 4, 16, 4))),
    "fp16-wide-sums": (
        residual_net,
        True,
        Training("all", precision="fp16", sums="f32", kernels=Kernels(8, 4, 8, 8)),
    ),
    "bf16": (residual_net, True, Training("all", precision="bf16")),
    "bf16-wide-sums": (residual_net, True, Training("all", precision="bf16", sums="f32")),
    "mixed": (
        residual_net,
        True,
        Training(
            "all",
            precision="fp16",
            wide=("head",),
            recipe=Recipe(momentum=0.5, decay=1e-3, loss_scale=64.0, master=True),
        ),
    ),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_every_number_that_learns_is_the_python_graphs(name: str, tmp_path: Path) -> None:
    make, floats, training = TRAININGS[name]
    graph = in_floats(make()) if floats else make()
    done = build_training_graph(graph, tmp_path / "c", training, count=3)
    found = verify(tmp_path / "c")
    assert found.holds, [run for run in found.runs if not run.holds]
    record = done.record()
    assert {run.arena_used for run in found.runs} == {record["arena_bytes"]}
    assert found.runs[0].outputs == 3 * (record["training"]["learned_numbers"] + done.plan.pass_graph.tensors[
        done.plan.pass_graph.outputs[0]].size)  # fmt: skip
    block = (tmp_path / "c" / "golden.bin").read_bytes()
    size = record["training"]["learned_bytes"]
    assert block[:size] != block[size : 2 * size], "nothing learned"


@pytest.mark.parametrize(
    "core, name",
    [
        ("cortex-m4f", "sparse"),
        ("cortex-m7", "bf16"),
        ("riscv32", "qas"),
        ("riscv32-zfh", "fp16"),
        ("riscv32-zvfh", "mixed"),
        ("riscv32-zvfh", "fp16-wide-sums"),
    ],
)
def test_emulated_cores_learn_the_same_bits(core: str, name: str, tmp_path: Path) -> None:
    if reason := TARGETS[core].missing():
        pytest.skip(reason)
    make, floats, training = TRAININGS[name]
    build_training_graph(in_floats(make()) if floats else make(), tmp_path / "c", training, TARGETS[core])
    found = verify(tmp_path / "c")
    assert found.holds and len(found.runs) == 3 and found.runs[2].outputs == found.runs[0].outputs


def test_vectors_of_halves_take_fewer_instructions(tmp_path: Path) -> None:
    """Than halves one at a time, and these than halves made of 32-bit floats; the bits are the same."""
    spent = []
    for core in ("riscv32", "riscv32-zfh", "riscv32-zvfh"):
        if reason := TARGETS[core].missing():
            pytest.skip(reason)
        graph = in_floats(residual_net())
        training = Training("all", precision="fp16", kernels=Kernels(16, 4, 16, 16))
        build_training_graph(graph, tmp_path / core, training, TARGETS[core], count=1)
        found = verify(tmp_path / core)
        assert found.holds and found.runs[2].instructions is not None
        spent.append(found.runs[2].instructions)
    assert spent[2] < 0.8 * spent[1] < 0.5 * spent[0]


def symbols(folder: Path) -> dict[str, int]:
    """Bytes of static memory of `network.c`, by name."""
    run(["gcc", "-std=c99", "-O1", "-fno-pie", "-c", folder / "network.c", "-o", folder / "network.o"])
    text = run(["nm", "-S", folder / "network.o"])
    return {
        found[3]: int(found[1], 16)
        for line in text.splitlines()
        if (found := line.split()) and len(found) == 4 and found[2] in "bBdDcC"
    }


@pytest.mark.parametrize("name", ["sparse", "momentum", "mixed"])
def test_the_memory_of_the_c_is_the_plans(name: str, tmp_path: Path) -> None:
    make, floats, training = TRAININGS[name]
    graph = in_floats(make()) if floats else make()
    made = build_training_graph(graph, tmp_path / "c", training).plan
    held = symbols(tmp_path / "c")
    assert held.pop("nn_skipped") == 4
    assert held.pop("memory") == made.arena_nbytes + -made.arena_nbytes % 8
    assert held.pop("nn_learned") == made.learned_nbytes + -made.learned_nbytes % 4
    assert sum(held.values()) == made.carried_nbytes
    assert not plan.faults(made.graph, made.arena)
    text = (tmp_path / "c" / "network.c").read_text()
    assert not re.search(r"\b(malloc|calloc|alloca|free)\b", text)


def test_the_plan_is_that_of_the_training_room() -> None:
    graph = prepared(residual_net(), "cross-entropy", 3, 23)
    made = planned(residual_net(), Training(SPARSE, classes=3))
    wanted = {name: place.channels for name, place in made.learned.items()}
    same = compiled(graph, {name: wanted[name] for name in graph.parameters if name in wanted})
    assert made.arena.nbytes == same.arena.nbytes
    assert made.learned_nbytes == plan.parameter_nbytes(same.graph)


def test_the_published_scheme_of_mcunet_learns_within_256_kib(tmp_path: Path) -> None:
    path = data("models", "mcu", "mcunet-5fps.pkl")
    done = build_training(
        path, tmp_path / "c", Training(PUBLISHED, classes=10), count=1, target_name="cortex-m7"
    )
    assert done.plan.arena_nbytes < done.plan.ram_nbytes < 256 * 1024
    found = verify(tmp_path / "c")
    ran = [run for run in found.runs if run.skipped is None]
    assert found.holds and {run.arena_used for run in ran} == {done.plan.arena_nbytes}


def gradients(graph: Graph, x: np.ndarray, label: int) -> dict[str, np.ndarray]:
    """By automatic differentiation in 64-bit floats."""
    wide = replace(
        graph, constants={name: values.astype(np.float64) for name, values in graph.constants.items()}
    )
    whole, names = gradients_of(backward(with_loss(wide)), dict.fromkeys(graph.parameters))
    machine = Machine(whole, "none", dict(wide.constants))
    found = machine.run({graph.inputs[0]: x[None].astype(np.float64), LABEL: np.array([label])})
    return {name: found[names[name]] for name in names}


@pytest.mark.parametrize(
    "precision, sums, bound",
    [("fp32", "same", 1e-5), ("fp16", "same", 0.01), ("fp16", "f32", 0.01), ("bf16", "same", 0.06)],
)
def test_a_step_goes_along_the_gradient(precision: str, sums: str, bound: float) -> None:
    graph = prepared(in_floats(residual_net(3)), "cross-entropy", None, 0)
    x = np.random.default_rng(1).normal(size=graph.tensors[graph.inputs[0]].shape).astype(np.float32)
    x, scale = (x / 4).astype(np.float16).astype(np.float32), 2.0**10
    recipe = Recipe(master=precision != "fp32")
    made = planned(in_floats(residual_net(3)), Training("all", precision=precision, sums=sums, recipe=recipe))
    twin = made.twin()
    before = {name: values.copy() for name, values in twin.parameters.items()}
    exact = gradients(replace(graph, constants={**graph.constants, **before}), x, 1)
    twin.run({graph.inputs[0]: x, LABEL: 1}, scale)
    after = twin.finer if recipe.master else twin.parameters
    ours = np.concatenate([((before[name] - after[name]) / scale).ravel() for name in exact])
    theirs = np.concatenate([exact[name].ravel() for name in exact])
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < bound


def test_integer_steps_are_those_of_the_simulator() -> None:
    graph = residual_net(5)
    made = planned(graph, Training("all"))
    ready = prepared(graph, "cross-entropy", None, 23)
    twin, machine = made.twin(), {name: values.copy() for name, values in made.parameters.items()}
    rng = np.random.default_rng(2)
    x = rng.integers(-128, 128, (4, *graph.tensors["x"].shape)).astype(np.int8)
    steps = Machine(made.graph, parameters=machine)
    for row in x[:1]:
        ours = twin.run({"x": row, LABEL: 2}, 0.01)[LOSS]
        theirs = steps.run({"x": row[None], LABEL: np.array([2]), "rate": 0.01})[LOSS]
        assert abs(ours - theirs) < 1e-5
    assert ready.parameters and any((machine[name] != made.parameters[name]).any() for name in machine)
    for name, values in machine.items():
        gap = np.abs(values.astype(float) - twin.parameters[name].astype(float))
        if values.dtype == np.int8:
            assert gap.max() <= 1 and (gap > 0).mean() < 0.01, "sums in another order may round otherwise"
        else:
            assert (gap <= 1e-5 * np.abs(values).max() + 1).all()


def test_a_bounded_sum_passes_gradients_inside_its_bounds_only() -> None:
    shapes = {
        "x": (1, 1, 2),
        "w": (2, 1, 1, 2),
        "a": (1, 1, 2),
        "s": (1, 1, 2),
        "m": (2,),
        "v": (2, 2),
        "y": (2,),
    }
    tensors = {name: Tensor(name, shape, "f32") for name, shape in shapes.items()}
    weight = np.array([[[[1.0, 0.0]]], [[[0.0, 1.0]]]], np.float32)
    graph = Graph(
        "relu-sum",
        tensors,
        (
            Conv2d("x", "w", None, "a"),
            Add("x", "a", "s", 0.0, np.inf),
            Mean("s", "m"),
            FullyConnected("m", "v", None, "y"),
        ),
        ("x",),
        ("y",),
        {"w": weight, "v": np.eye(2, dtype=np.float32)},
        ("w", "v"),
    )
    made = planned(graph, Training("only:w", loss="mean-square"))
    twin = made.twin()
    twin.run({"x": np.array([[[1.0, -1.0]]], np.float32), LABEL: np.zeros(2, np.float32)}, 0.5)
    change = weight - twin.parameters["w"]
    assert change[0].ravel().tolist() == [1.0, -1.0], "s = 2: the gradient 2 * 2 / 2, halved by the rate"
    assert not change[1].any(), "s = -2 is out of bounds"


def test_a_gradient_that_is_not_finite_is_left_out_and_counted() -> None:
    made = planned(
        in_floats(residual_net()), Training("all", precision="fp16", recipe=Recipe(loss_scale=2.0**30))
    )
    twin = made.twin()
    x = np.ones(made.graph.tensors["x"].shape, np.float32)
    before = {name: values.copy() for name, values in twin.parameters.items()}
    assert np.isfinite(twin.run({"x": x, LABEL: 1}, 0.1)[LOSS])
    assert twin.skipped > 0
    assert all(np.isfinite(values).all() for values in twin.parameters.values())
    assert (twin.parameters["head.bias"] == before["head.bias"]).any()


def test_layers_below_what_learns_need_no_way_back() -> None:
    tensors = {
        "x": Tensor("x", (3, 4), "f32"),
        "h": Tensor("h", (5,), "f32"),
        "y": Tensor("y", (2,), "f32"),
        **{
            name: Tensor(name, shape, "f32")
            for name, shape in {"k": (4, 15), "u": (5, 15), "b": (2, 15)}.items()
        },
        "w": Tensor("w", (2, 5), "f32"),
    }
    constants = {name: np.ones(tensors[name].shape, np.float32) for name in "kubw"}
    ops = (Recurrent("x", "k", "u", "b", "h", "gru"), FullyConnected("h", "w", None, "y"))
    graph = Graph("gru", tensors, ops, ("x",), ("y",), constants, tuple(constants))
    steps = step_graph(graph, {"w": None}, {}, "mean-square")
    assert [type(op).__name__ for op in steps.ops] == ["Recurrent", "FullyConnected", "MeanSquare", "Step"]
    with pytest.raises(UserError, match=r"operation 0 of gru is a Recurrent .* no C kernel"):
        build_training_graph(graph, Path("/nowhere"), Training("only:w", loss="mean-square"))


def bounded(graph: Graph) -> Graph:
    """`graph` with a softmax in its middle, which has no way back."""
    at = next(i for i, op in enumerate(graph.ops) if isinstance(op, DepthwiseConv2d))
    op = graph.ops[at]
    tensors = {**graph.tensors, "soft": replace(graph.tensors[op.x], name="soft")}
    ops = (*graph.ops[:at], Softmax(op.x, "soft"), replace(op, x="soft"), *graph.ops[at + 1 :])
    return replace(graph, tensors=tensors, ops=ops)


@pytest.mark.parametrize(
    "graph, training, said",
    [
        (
            residual_net(),
            Training("only:layer0.wait"),
            r"layer0.wait is no tensor of made; did you mean layer0.wei",
        ),
        (residual_net(), Training("only:y0"), r"y0 of made cannot learn \(it is no weight and no bias"),
        (residual_net(), Training("bais"), "bias"),
        (residual_net(), Training("lora"), "--train lora changes the network itself"),
        (
            residual_net(),
            Training("all", precision="fp16"),
            "precision=fp16 does not fit made, a network of codes",
        ),
        (in_floats(residual_net()), Training("all", precision="int8"), "a network of floats"),
        (residual_net(), Training("sparse:biases=9"), "9"),
        (residual_net(), Training("all", recipe=Recipe(master=True)), "master copies are for 16-bit floats"),
        (residual_net(), Training("all", recipe=Recipe(decay=0.1)), "learns in codes"),
        (in_floats(residual_net()), Training("all", wide=("head",)), "wide layers are for 16-bit floats"),
        (
            residual_net(),
            Training("all", loss="mean-square"),
            "mean-square needs a network that ends in floats",
        ),
        (
            bounded(in_floats(residual_net())),
            Training("all"),
            r"Softmax \(it writes soft\) of made has no way back",
        ),
        (
            in_floats(residual_net()),
            Training("all", precision="bf16", wide=("nose",)),
            "nose is no layer of made",
        ),
    ],
)
def test_what_does_not_go_is_refused_in_words(graph: Graph, training: Training, said: str) -> None:
    with pytest.raises(UserError, match=said):
        planned(graph, training)


def test_parameters_out_of_range_are_refused() -> None:
    for bad in (
        {"loss": "hinge"},
        {"precision": "fp8"},
        {"sums": "f64"},
        {"classes": 1},
        {"recipe": Recipe(momentum=1.0)},
        {"recipe": Recipe(loss_scale=3.0)},
    ):
        with pytest.raises(UserError):
            Training(**bad)


def test_schemes_come_from_json_too(tmp_path: Path) -> None:
    path = tmp_path / "scheme.json"
    path.write_text(json.dumps({"layer1.weight": [0, 2, 5], "layer1.bias": None}))
    made = planned(residual_net(), Training(str(path)))
    assert made.learned["layer1.weight"].channels == (0, 2, 5)
    for bad, said in (
        ({"layer1.weight": [5, 2]}, "are to rise"),
        ({"layer1.weight": [6]}, "from 0 to 5"),
        ({"layer1.bias": [0]}, "no kernel of a convolution"),
        ([1], "holds no scheme"),
        ({}, "names no tensor"),
    ):
        path.write_text(json.dumps(bad))
        with pytest.raises(UserError, match=said):
            planned(residual_net(), Training(str(path)))


def test_a_step_that_does_not_fit_says_what_would_and_what_is_at_the_peak(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"takes 3\.80 KiB of RAM .* at the peak.* live .*head alone takes"
    ) as found:
        build_training_graph(residual_net(), tmp_path / "c", Training("all"), ram_kib=2)
    assert found.value.nearest == 4
    assert not (tmp_path / "c").exists()
    build_training_graph(residual_net(), tmp_path / "c", Training("all"), ram_kib=4)
    with pytest.raises(UserError, match="of storage for constants alone"):
        build_training_graph(residual_net(), tmp_path / "d", Training("all"), storage_kib=1)


def test_weights_beyond_16_bits_are_refused() -> None:
    graph = in_floats(residual_net())
    graph.constants["layer0.weight"].flat[0] = 70000.0
    with pytest.raises(UserError, match=r"holds 70000, beyond 65504, the largest number of f16"):
        planned(graph, Training("all", precision="fp16"))
    assert planned(graph, Training("all", precision="bf16"))


def test_a_class_that_does_not_exist_changes_nothing(tmp_path: Path) -> None:
    import ctypes

    build_training_graph(residual_net(), tmp_path, Training("all"))
    library = tmp_path / "network.so"
    run(["gcc", "-std=c99", "-shared", "-fPIC", tmp_path / "network.c", "-o", library, "-lm"])
    lib = ctypes.CDLL(str(library))
    lib.nn_train_step.restype = ctypes.c_float
    lib.nn_train_step.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float]
    lib.nn_learned_bytes.restype = ctypes.c_void_p
    lib.nn_train_reset()
    made = json.loads((tmp_path / "report.json").read_text())
    size = made["training"]["learned_bytes"]
    before = ctypes.string_at(lib.nn_learned_bytes(), size)
    x = np.zeros((8, 8, 3), np.int8)
    for label in (-1, 5, 2**31 - 1):
        assert np.isnan(lib.nn_train_step(x.ctypes.data, ctypes.byref(ctypes.c_int32(label)), 0.1))
    assert ctypes.string_at(lib.nn_learned_bytes(), size) == before
    assert np.isfinite(lib.nn_train_step(x.ctypes.data, ctypes.byref(ctypes.c_int32(4)), 0.1))


def test_networks_with_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = data("models", "mlperf-tiny", "ad01_fp32.tflite")
    graph = load_graph(path)
    values = next(values for values in graph.constants.values() if values.ndim == 2)
    held = path.read_bytes()
    at = held.find(values.astype("<f4").tobytes()[:64])
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(held[:at] + np.array([np.nan], "<f4").tobytes() + held[at + 4 :])
    with pytest.raises(UserError, match="not finite"):
        build_training(broken, tmp_path / "c", Training("all", loss="mean-square"))


def test_codes_have_scales(tmp_path: Path) -> None:
    graph = residual_net()
    assert isinstance(graph.tensors["x"].quantization, Quantization)
    with pytest.raises(UserError, match="ends in int8"):
        planned(graph, Training("head", loss="mean-square"))
