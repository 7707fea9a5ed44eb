"""The bench of ElasticZO: its data is what it says, its arms are alike, its buffers are those of the plan."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest

from haversack.bench import Outcome, Run, Unavailable, find_bench
from haversack.bench.elasticzo import _data, accuracy, adapting, integers, memory
from haversack.bench.elasticzo._arms import ROWS, Result, compared, floats, learned_by, network, train, whole
from haversack.bench.elasticzo._arms import accuracy as right
from haversack.core import index
from haversack.train._network import numbers_of

pytest.importorskip("sklearn", reason="needs scikit-learn (pip install haversack[workshop])")


def run(quick: bool = True) -> Run:
    return Run(quick, 1, time.monotonic() + 600)


def test_digits_are_28_by_28_and_split_once() -> None:
    data = _data.digits()
    assert [len(part[1]) for part in (data.learn, data.choose, data.judge)] == [1024, 173, 600]
    assert data.learn[0].shape[1:] == (28, 28, 1) and data.learn[0].dtype == np.uint8
    every = np.concatenate([part[0].reshape(-1, 784) for part in (data.learn, data.choose, data.judge)])
    assert every.max() == 255 and np.all(every.reshape(-1, 28, 28)[:, :2] == 0)
    assert {tuple(row) for row in data.learn[0].reshape(-1, 784)[:50]}.isdisjoint(
        tuple(row) for row in data.judge[0].reshape(-1, 784)
    )


def test_bodies_are_clouds_of_ten_kinds() -> None:
    data = _data.bodies()
    x = np.concatenate([part[0] for part in (data.learn, data.choose, data.judge)])
    y = np.concatenate([part[1] for part in (data.learn, data.choose, data.judge)])
    assert x.shape == (2000, 256, 3) and np.bincount(y).tolist() == [200] * 10
    assert np.linalg.norm(x, axis=2).max() <= 1 + 1e-6
    for kind, thin in (("plate", True), ("ball", False)):
        spread = np.linalg.svd(x[y == _data.BODIES.index(kind)][0], compute_uv=False)
        assert (spread[2] < 0.35 * spread[1]) == thin


def test_turned_pictures() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (2, 28, 28, 1), np.uint8)
    assert np.array_equal(_data.turned(picture, 0), picture)
    assert np.array_equal(_data.turned(picture, 90)[..., 0], np.rot90(picture[..., 0], -1, (1, 2))) or (
        np.array_equal(_data.turned(picture, 90)[..., 0], np.rot90(picture[..., 0], 1, (1, 2)))
    )
    y, x = np.mgrid[:28, :28]
    ramp = (4 * y + 3 * x).astype(np.uint8)[None, ..., None]
    there = _data.turned(_data.turned(ramp, 45), -45)
    assert np.abs(there.astype(int) - ramp)[:, 9:19, 9:19].max() <= 2
    assert _data.turned(ramp, 45)[0, 0, 0, 0] == 0


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_mnist_is_read_from_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVERSACK_DATA", str(tmp_path))
    with pytest.raises(Unavailable, match="images/mnist"):
        accuracy.mnist(run(False))
    folder = tmp_path / "images" / "mnist"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 44), ("t10k", 9)):
        pictures = rng.integers(0, 256, (count, 28, 28), np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(pictures))
        if part == "train":
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(
                idx(rng.integers(0, 10, count).astype(np.uint8))
            )
    with pytest.raises(Unavailable, match="t10k-labels"):
        _data.mnist("mnist")
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(rng.integers(0, 10, 9).astype(np.uint8)))
    data = _data.mnist("mnist")
    assert [len(part[1]) for part in (data.learn, data.choose, data.judge)] == [40, 4, 9]


def test_modelnet40_is_read_from_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVERSACK_DATA", str(tmp_path))
    with pytest.raises(Unavailable, match="ModelNet40"):
        accuracy.modelnet40(run(False))
    for name in ("chair", "table"):
        for part, count in (("train", 6), ("test", 2)):
            folder = tmp_path / "shapes" / "ModelNet40" / name / part
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{name}_{number}.off").write_text(
                    f"OFF3 1 0\n0 0 {number}\n1 0 0\n0 1 0\n3 0 1 2\n"
                )
    data = _data.modelnet()
    assert [part[0].shape for part in (data.learn, data.choose, data.judge)] == [
        (11, 256, 3),
        (1, 256, 3),
        (4, 256, 3),
    ]


def test_arms_are_tried_with_equal_care() -> None:
    arms = (*floats((1, 2, 3, 4), (5, 6, 7, 8)), *whole((1, 2)))
    assert [len(arm.grid) for arm in arms] == [4, 4, 6, 6, 6, 6]
    for arm in arms:
        for method, _ in arm.grid:
            index.create("train", "gradient", method)
    data = _data.digits()
    assert numbers_of(network(data, 0), learned_by(network(data, 0)).wanted) == 107_786
    assert numbers_of(network(data, 0, True), learned_by(network(data, 0, True)).wanted) == 107_550


def test_the_best_on_choosing_rows_is_taken_and_judged_elsewhere() -> None:
    data, arms = _data.digits(), floats((1e-6, 1e-5, 0.1, 0.05), (1e-5, 1e-4, 1e-3, 1e-2))
    short = [type(arm)(arm.name, arm.grid[1:3]) for arm in arms[:1]]
    found = compared(data, short, 40, (0, 1), lambda text: None)["backpropagation"]
    assert (
        found.taken == "backprop at 0.1" and len(found.final) == 2 and list(found.curve) == [10, 20, 30, 40]
    )
    again = network(data, 1)
    train(again, data.learn, "backprop", 0.1, 40, 1)
    assert right(again, data.judge) == found.final[1] > 20
    assert ROWS == 32


def test_verdicts() -> None:
    def result(*values: float) -> Result:
        return Result({}, "", list(values), {1: list(values)})

    found = accuracy.verdicts(
        "digits",
        {
            "full zeroth order": result(50, 60),
            "backpropagation": result(90, 100),
            "ElasticZO, last 1": result(70, 60),
            "ElasticZO, last 2": result(80, 100),
            "ElasticZO-INT8, last 2": result(79, 97),
        },
    )
    assert found["over-zeroth-digits-2"].ours.values == (30, 40)
    assert found["gap-digits-1"].ours.values == (0.5, 0.0)
    assert found["int8-digits"].ours.values == (-1, -3)


def test_buffers_are_those_of_the_paper_s_model() -> None:
    found = memory.buffers(run())
    assert all(isinstance(outcome, Outcome) for outcome in found.values())
    assert 1 < found["buffers-last-1"].ratio < found["buffers-last-2"].ratio < 1.02
    assert 1.8 < found["buffers-backprop"].ratio < 2
    assert 1.4 < found["buffers-int8"].ratio < 1.7


def test_signs_agree_along_a_short_training() -> None:
    share, every, ties = integers.agreement(3, 30, None)
    assert share >= 0.9 and every > 0.8 and ties < 10


def test_the_bench_has_its_rows() -> None:
    bench = find_bench("elasticzo")
    assert bench.number == 31 and find_bench("31") is bench
    ids = {row.id for row in bench.rows}
    assert {"over-zeroth-digits-2", "gap-bodies-1", "int8-digits", "rotated-45", "speed-c"} <= ids
    assert {"over-zeroth-mnist-2", "int8-fashion", "gap-modelnet40-2"} <= ids
    with pytest.raises(Unavailable, match="emitted as C"):
        integers.speed(run())
    assert adapting.SAMPLES == 1024
