"""Networks as C: the outputs of the Python graph, on this machine and on emulated cores; nothing outside the
arena."""

from __future__ import annotations

import ctypes
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs h5py (pip install haversack[embed])")
if shutil.which("gcc") is None:
    pytest.skip("gcc is not installed", allow_module_level=True)

from tests.embed.keras_files import conv1d_entry, dense_entry, drawn, gru_entry, lstm_entry, write_keras

from haversack.core.errors import HaversackError, UserError
from haversack.embed._host import run
from haversack.embed.build import build, build_graph, load_graph
from haversack.embed.targets import TARGETS
from haversack.embed.verify import golden_outputs, run_host, verify
from haversack.models.graph import Graph, Machine, Quantization, Tensor
from haversack.models.graph._ir import (
    Add,
    AveragePool,
    Clamp,
    Conv2d,
    DepthwiseConv2d,
    FullyConnected,
    Mean,
    Pad,
    Reshape,
    Softmax,
)
from haversack.models.graph.series import Runner
from haversack.models.graph.training import with_head


def keras_networks(folder: Path) -> dict[str, Path]:
    kernel, bias = drawn((3, 3, 2, 4), (4,))
    depthwise, other = drawn((3, 3, 4, 1), (4,))
    conv = (
        "Conv2D",
        {"strides": [2, 2], "padding": "same", "activation": "relu"},
        {"kernel": kernel, "bias": bias},
    )
    each = (
        "DepthwiseConv2D",
        {"strides": [1, 1], "padding": "same", "activation": "elu"},
        {"depthwise_kernel": depthwise, "bias": other},
    )
    pool = ("AveragePooling2D", {"pool_size": [2, 2], "strides": None, "padding": "same"}, {})
    rnn_kernel, rnn_u, rnn_b = drawn((4, 3), (3, 3), (3,))
    simple = (
        "SimpleRNN",
        {"activation": "softsign"},
        {"kernel": rnn_kernel, "recurrent_kernel": rnn_u, "bias": rnn_b},
    )
    series = [
        conv1d_entry(3, 4, 2, padding="causal"),
        ("MaxPooling1D", {"pool_size": [2], "padding": "same"}, {}),
    ]
    return {
        "gru": write_keras(folder / "gru.h5", (1, 6), [gru_entry(6, 5), dense_entry(5, 3, "relu")]),
        "before": write_keras(
            folder / "before.h5",
            (1, 6),
            [gru_entry(6, 5, after=False, recurrent_activation="hard_sigmoid"), dense_entry(5, 3, "selu")],
        ),
        "series": write_keras(
            folder / "series.h5",
            (9, 3),
            [*series, gru_entry(4, 4, return_sequences=True), lstm_entry(4, 3), dense_entry(3, 6, "softmax")],
        ),
        "simple": write_keras(folder / "simple.h5", (3, 4), [simple, dense_entry(3, 2, "softplus")]),
        "picture": write_keras(
            folder / "picture.h5",
            (9, 8, 2),
            [conv, each, pool, ("GlobalAveragePooling2D", {}, {}), dense_entry(4, 3, "tanh")],
        ),
    }


def int8_graph(rounding: str, seed: int = 0) -> Graph:
    """Every operation of codes once: convolution, depthwise, sum, pad, pool, mean, dense, bounds, softmax."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Tensor] = {}
    constants: dict[str, np.ndarray] = {}

    def tensor(name: str, shape: tuple[int, ...], scale: float = 0.05, zero: int = -3) -> str:
        tensors[name] = Tensor(name, shape, "int8", Quantization((scale,), zero))
        return name

    def weight(name: str, shape: tuple[int, ...], channels: int, axis: int) -> tuple[str, str]:
        scales = tuple(float(each) for each in rng.uniform(0.002, 0.02, channels))
        constants[name] = rng.integers(-127, 128, shape).astype(np.int8)
        tensors[name] = Tensor(name, shape, "int8", Quantization(scales, 0, axis))
        constants[f"{name}.bias"] = rng.integers(-3000, 3000, channels).astype(np.int32)
        tensors[f"{name}.bias"] = Tensor(f"{name}.bias", (channels,), "int32", Quantization(scales, 0, 0))
        return name, f"{name}.bias"

    x = tensor("x", (7, 6, 3), 0.04, 5)
    conv = Conv2d(
        x,
        *weight("w1", (4, 3, 3, 3), 4, 0),
        tensor("a", (4, 3, 4), 0.2, 7),
        stride=(2, 2),
        pads=((1, 1), (1, 0)),
    )
    depthwise = DepthwiseConv2d(
        "a", *weight("w2", (3, 3, 4), 4, 2), tensor("b", (4, 3, 4), 0.15), -128, 127, pads=((1, 1), (1, 1))
    )
    ops = (
        conv,
        depthwise,
        Add("a", "b", tensor("c", (4, 3, 4), 0.25, 11), -100, 90),
        Pad("c", tensor("d", (6, 5, 4), 0.25, 11), ((1, 1), (1, 1), (0, 0))),
        AveragePool(
            "d",
            tensor("e", (3, 2, 4), 0.25, 11),
            (2, 2),
            (2, 2),
            rounding="even" if rounding == "float" else "away",
        ),
        Clamp("e", tensor("f", (3, 2, 4), 0.2, 0), -50, 60),
        Mean("f", tensor("g", (4,), 0.1, -9)),
        Reshape("g", tensor("h", (1, 4), 0.1, -9)),
        Reshape("h", tensor("i", (4,), 0.1, -9)),
        FullyConnected("i", *weight("w3", (5, 4), 5, 0), tensor("j", (5,), 0.1, 4)),
        Softmax("j", tensor("y", (5,), 1 / 256, -128)),
    )
    return Graph("every", tensors, ops, ("x",), ("y",), constants, rounding=rounding)


def library(folder: Path) -> Any:
    """The network as a library of this process."""
    goal = folder / "network.so"
    run(
        [
            "gcc",
            "-std=c99",
            "-O2",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
            folder / "network.c",
            "-o",
            goal,
            "-lm",
        ]
    )
    return ctypes.CDLL(str(goal))


def passes(folder: Path, x: np.ndarray, outputs: int, dtype: Any) -> np.ndarray:
    lib = library(folder)
    found = np.zeros((len(x), outputs), dtype)
    for row, out in zip(np.ascontiguousarray(x), found, strict=True):
        lib.nn_forward(row.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p))
    return found


@pytest.mark.parametrize("name", ["gru", "before", "series", "simple", "picture"])
def test_floats_agree_with_64_bit_arithmetic_over_sequences(name: str, tmp_path: Path) -> None:
    graph = load_graph(keras_networks(tmp_path)[name])
    folder = tmp_path / "c"
    build_graph(graph, folder)
    shape = graph.tensors["input"].shape
    x = np.random.default_rng(1).normal(size=(20, *shape)).astype(np.float32)
    outputs = graph.tensors[graph.outputs[0]].size
    runner = Runner(graph)
    wanted = np.concatenate([runner.run(row[None].astype(float)).reshape(1, -1) for row in x])
    np.testing.assert_allclose(passes(folder, x, outputs, np.float32), wanted, atol=1e-5)


def test_a_probe_leaves_the_hidden_state_and_reset_clears_it(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    build(keras_networks(tmp_path)["before"], folder)
    lib = library(folder)
    x = np.ones(6, np.float32)

    def forward() -> list[float]:
        y = np.zeros(3, np.float32)
        lib.nn_forward(x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p))
        return y.tolist()

    first = forward()
    lib.nn_store_state(0)
    probes = [forward(), forward()]
    lib.nn_store_state(1)
    assert probes[0] == probes[1] == forward() != first
    lib.nn_reset()
    assert forward() == first


@pytest.mark.parametrize("kernels", ["direct", "fast"])
@pytest.mark.parametrize("rounding", ["fixed", "float"])
def test_codes_are_those_of_the_python_graph_to_the_bit(rounding: str, kernels: str, tmp_path: Path) -> None:
    for seed in range(4):
        graph = int8_graph(rounding, seed)
        x = np.random.default_rng(seed).integers(-128, 128, (50, 7, 6, 3)).astype(np.int8)
        goal = tmp_path / str(seed)
        build_graph(graph, goal, kernels=kernels)
        np.testing.assert_array_equal(passes(goal, x, 5, np.int8), Machine(graph).run({"x": x})["y"])


@pytest.mark.parametrize("goal", ["host", "cortex-m4f", "cortex-m7", "riscv32"])
def test_a_build_is_verified_where_it_is_meant_to_run(goal: str, tmp_path: Path) -> None:
    """Strict warnings, sanitizers, with SIMD and without, guards around the arena, the emulated board;
    floats and codes."""
    if (reason := TARGETS[goal].missing()) is not None:
        pytest.skip(reason)
    build(keras_networks(tmp_path)["series"], tmp_path / "f", target_name=goal)
    build_graph(int8_graph("float"), tmp_path / "i", TARGETS[goal])
    for folder in (tmp_path / "f", tmp_path / "i"):
        found = verify(folder)
        assert found.holds, found.runs
        assert [run.skipped for run in found.runs] == [None] * (4 if goal == "host" else 5)
        arena = found.report["arena_bytes"]
        assert all(0.9 * arena - 8 <= run.arena_used <= arena for run in found.runs)
        assert all(0 < run.stack_used < 1 << 13 for run in found.runs if run.stack_used is not None)


def test_a_classifier_of_floats_behind_codes_is_compiled(tmp_path: Path) -> None:
    """What a training on the device leaves: codes up to the features, then a learned layer of floats."""
    graph = with_head(replace(int8_graph("float"), outputs=("j",), ops=int8_graph("float").ops[:-1]), 3, 1)
    made = build_graph(graph, tmp_path, count=8).made
    assert "nn_dense_f32" in (tmp_path / "network.c").read_text(encoding="utf-8") and made.integer
    assert verify(tmp_path).holds


def test_an_output_that_differs_is_found(tmp_path: Path) -> None:
    build_graph(int8_graph("fixed"), tmp_path, kernels="direct")
    text = (tmp_path / "network.c").read_text(encoding="utf-8")
    (tmp_path / "network.c").write_text(
        text.replace("sum += (seen[c] - s->zero_x)", "sum += (seen[c] + s->zero_x)")
    )
    found = verify(tmp_path)
    assert not found.holds and all(run.differing for run in found.runs)


def test_what_lies_outside_the_arena_is_found(tmp_path: Path) -> None:
    build_graph(int8_graph("fixed"), tmp_path)
    text = (tmp_path / "network.c").read_text(encoding="utf-8")
    changed = text.replace("    memcpy(output,", "    nn_arena[NN_ARENA + 3] = 1;\n    memcpy(output,")
    (tmp_path / "network.c").write_text(changed)
    with pytest.raises(Exception, match="bytes beside the arena were written"):
        verify(tmp_path)


@pytest.mark.parametrize("place", ["nn_arena[-1]", "nn_arena[NN_ARENA]"])
def test_a_byte_beside_the_arena_ends_the_harness_at_a_guard_page(place: str, tmp_path: Path) -> None:
    graph = int8_graph("fixed")
    build_graph(graph, tmp_path)
    text = (tmp_path / "network.c").read_text(encoding="utf-8")
    read = f"    (void)*(volatile unsigned char *)&{place};\n    memcpy(output,"
    (tmp_path / "network.c").write_text(text.replace("    memcpy(output,", read))
    wanted = golden_outputs(tmp_path)
    assert run_host(tmp_path, wanted, "here", "-O2").differing == 0  # a read leaves no trace in guard bytes
    with pytest.raises(HaversackError, match="the harness broke"):
        run_host(tmp_path, wanted, "here", "-O2", "-DNN_GUARD_PAGES")


def test_emitted_c_allocates_nothing_and_holds_only_kernels_that_are_called(tmp_path: Path) -> None:
    build(keras_networks(tmp_path)["gru"], tmp_path / "c")
    text = (tmp_path / "c" / "network.c").read_text(encoding="utf-8")
    assert not re.search(r"\b(malloc|calloc|realloc|free)\s*\(", text)
    assert "nn_lstm" not in text and "nn_conv2d" not in text and "nn_gru_tanh_sigmoid_after" in text
    assert golden_outputs(tmp_path / "c").shape == (4, 3)


def test_a_network_that_does_not_fit_is_refused_with_what_would(tmp_path: Path) -> None:
    path = keras_networks(tmp_path)["picture"]
    need = build(path, tmp_path / "c").made
    with pytest.raises(
        UserError, match=r"KiB of RAM \(--ram-kib 0.5\); at the peak, operation 0, live input"
    ) as caught:
        build(path, tmp_path / "no", ram_kib=0.5)
    assert caught.value.nearest == -(-need.plan.nbytes // 1024) and not (tmp_path / "no").exists()
    with pytest.raises(UserError, match="KiB of storage for constants alone") as caught:
        build(path, tmp_path / "no", storage_kib=0.1)
    assert caught.value.field == "storage_kib"
    assert build(path, tmp_path / "yes", ram_kib=64, storage_kib=64).cycles > 0


def test_files_of_no_kind_and_folders_without_a_network_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(UserError, match="of no kind that is read"):
        load_graph(tmp_path / "x.txt")
    with pytest.raises(UserError, match="is not a file"):
        load_graph(tmp_path / "none.h5")
    with pytest.raises(UserError, match="holds no network that embed build wrote"):
        verify(tmp_path)
    with pytest.raises(UserError, match="cortex-m4f"):
        build(keras_networks(tmp_path)["gru"], tmp_path / "c", target_name="cortex-m4")


def test_kernels_are_fast_where_memory_allows_and_threads_share_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` gives up patches for the smallest arena when RAM is short; threads change no number."""
    graph = int8_graph("float")
    plain = build_graph(graph, tmp_path / "direct", kernels="direct").made
    fast = build_graph(graph, tmp_path / "fast", kernels="fast").made
    assert not plain.choices and set(fast.choices) == {"a", "b", "j"}
    tight = build_graph(graph, tmp_path / "tight", ram_kib=plain.plan.nbytes / 1024).made
    assert tight.plan.nbytes == plain.plan.nbytes <= fast.plan.nbytes
    monkeypatch.setattr("haversack.embed._fast_rules.SPLIT_MACS", 0)
    picture = load_graph(keras_networks(tmp_path)["picture"])
    team = build_graph(picture, tmp_path / "team", kernels="fast", threads=2)
    assert "nn_split(nn_conv2d" in (tmp_path / "team" / "network.c").read_text(encoding="utf-8")
    assert team.made.threads == 2 and verify(tmp_path / "team").holds
    with pytest.raises(UserError, match="allowed auto, direct, fast, tune"):
        build_graph(graph, tmp_path / "no", kernels="quick")
    with pytest.raises(UserError, match="allowed 1 to 8"):
        build_graph(graph, tmp_path / "no", threads=9)
    with pytest.raises(UserError, match="has one core"):
        build_graph(graph, tmp_path / "no", TARGETS["cortex-m7"], threads=2)


def test_tuning_measures_every_kernel_and_keeps_the_fastest(tmp_path: Path) -> None:
    graph = int8_graph("fixed")
    done = build_graph(graph, tmp_path, kernels="tune")
    times = done.record()["tuned_us"]
    assert set(times) == {"a", "b", "j"} and all(len(each) == 2 for each in times.values())
    for layer, each in times.items():
        assert done.made.choices.get(layer, "direct") == min(each, key=lambda kernel: each[kernel])
    assert verify(tmp_path).holds
