"""The bench of system 11: a row for every bar, counts that are exact, small runs of its helpers."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from haversack.bench import Run, Unavailable, find_bench
from haversack.bench.reduced_precision_odl import accuracy, elsewhere, layers, numerics, speed
from haversack.bench.reduced_precision_odl._bench import KERNELS, Compiled, small_cnn
from haversack.embed.train import Training
from haversack.embed.train_kernels import STEPS, Layer, autotune, cycles

GCC = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


def test_every_bar_of_the_specification_has_a_row_and_the_bench_fits_its_time() -> None:
    bench = find_bench("11")
    bars = {row.id: row.bar.value for row in bench.rows if row.bar is not None}
    assert bars["gradient-resnet8-fp16"] == 0.01 and bars["gradient-resnet8-bf16"] == 0.06
    assert bars["steps-resnet8-fp16"] == 0.01 and bars["steps-resnet8-bf16"] == 0.06
    assert bars["accuracy-digits-fp16"] == bars["accuracy-resnet8-fp16"] == -1
    assert bars["accuracy-digits-bf16"] == bars["accuracy-resnet8-bf16"] == -3
    assert (bars["matrix"], bars["unrolled"], bars["threads"]) == (1 / 2, 1 / 1.3, 1 / 1.7)
    assert bars["scalar-loops"] == 1 / 100 and bars["autotuner-gain"] == 3 and bars["autotuner-choices"] == 2
    assert bars["macs-resnet8"] == 12_501_632 and bars["macs-forward"] == 36_864
    assert {row.kind for row in bench.rows if row.quick} == {row.kind for row in bench.rows}
    assert sum(measure.seconds for measure in bench.measures) <= 40 * 60
    assert sum(measure.quick_seconds for measure in bench.measures if measure.quick) <= 60


def test_the_papers_cores_are_a_reason_for_every_row() -> None:
    found = elsewhere.elsewhere(Run(False, 1, time.monotonic() + 60))
    assert all(isinstance(each, Unavailable) for each in found.values()) and len(found) == 4


def test_a_gradient_in_32_bits_is_exact_but_for_rounding() -> None:
    x = np.random.default_rng(0).uniform(size=(8, 8, 1)).astype(np.float32)
    assert numerics.error_of(small_cnn(), x, 3, "fp32", "same") < 1e-4
    assert numerics.error_of(small_cnn(), x, 3, "bf16", "same") > 1e-3


@pytest.mark.parametrize(("precision", "sums"), [("fp16", "same"), ("bf16", "same"), ("fp16", "f32")])
def test_each_step_of_a_layer_is_within_its_bar(precision: str, sums: str) -> None:
    """Of four layers: all have forward and weights, the first has no gradient of its input."""
    x = np.random.default_rng(1).uniform(size=(8, 8, 1)).astype(np.float32)
    errors = layers.step_errors(small_cnn(), x, 3, precision, sums)
    assert len(errors) == 4 + 4 + 3
    assert 0 < max(errors.values()) < numerics.BOUNDS[precision]


def test_a_gradient_through_the_devices_own_masks_is_closer() -> None:
    graph = small_cnn(12)
    x = np.random.default_rng(2).uniform(size=(12, 12, 1)).astype(np.float32)
    made = numerics.whole_step(graph, x, 3, "bf16", "f32")
    plain, inside = numerics.exact_pass(made.graph, x, 3)
    opened, _ = numerics.exact_pass(made.graph, x, 3, made.inside)
    assert set(inside) == set(made.inside)
    assert made.error(opened) <= made.error(plain)
    assert made.error(numerics.exact_pass(made.graph, x, 3, inside)[0]) == made.error(plain)


@GCC
def test_a_network_learns_in_the_emitted_c(tmp_path: Path) -> None:
    network = Compiled(small_cnn(4, 2, (4, 4, 4)), Training("all", kernels=KERNELS), tmp_path)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    inputs = (rng.normal(size=(200, 4, 4, 1)) * 0.3 + (2 * labels - 1)[:, None, None, None]).astype(
        np.float32
    )
    before = accuracy.right(network, (inputs, labels))
    accuracy.trained(network, (inputs, labels), 0.05, 600, 0)
    assert accuracy.right(network, (inputs, labels)) > max(95.0, before - 1)


@GCC
def test_every_kernel_of_a_step_is_timed_and_the_model_halves() -> None:
    layer = Layer(6, 5, 4, 6)
    for step in STEPS:
        found = autotune(layer, step, working_nbytes=4 * 36 * 4)
        assert list(found.values()) == sorted(found.values())
        assert step != "forward" or all(rows <= 4 for rows, _ in found)
    assert 1.4 < cycles(speed.TEST, "f32") / cycles(speed.TEST, "f16") <= 2


@GCC
def test_blocks_of_rows_on_threads_give_the_whole(tmp_path: Path) -> None:
    from haversack.embed.train_kernels import compiled

    for layer in (Layer(7, 5, 3, 4), Layer(8, 6, 3, 4, 3, 2)):
        for step in ("forward", "inputs"):
            call, arrays = compiled(layer, step, (2, 4) if step == "forward" else 4, "f32", "same", tmp_path)
            call()
            whole = arrays[4].copy()
            assert np.abs(whole).min() >= 0 and whole.any()
            arrays[4][...] = 0
            for core in range(2):
                choice = (2, 4) if step == "forward" else 4
                compiled(layer, step, choice, "f32", "same", tmp_path, core, 2, arrays)[0]()
            assert np.array_equal(arrays[4], whole)
