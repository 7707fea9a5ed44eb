"""Keras files become the graph that Keras defines: known networks, layouts of both versions, refusals by
name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("h5py", reason="needs h5py (pip install haversack[embed])")

import contextlib

from tests.embed.keras_files import conv1d_entry, dense_entry, drawn, gru_entry, lstm_entry, write_keras

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.keras_h5 import read_keras
from haversack.models.graph.keras import load_keras
from haversack.models.graph.series import Recurrent, Runner
from haversack.models.series.activations import activate
from haversack.models.series.recurrent import Gru, gru_step


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("cells", [False, True])
def test_a_gru_network_of_either_layout(version: int, functional: bool, cells: bool, tmp_path: Path) -> None:
    layers = [gru_entry(5, 4), dense_entry(4, 3, "relu")]
    path = write_keras(tmp_path / "n.h5", (1, 5), layers, version=version, functional=functional, cells=cells)
    graph = load_keras(path)
    held, head = layers[0][2], layers[1][2]
    cell = Gru(*(held[name].astype(float) for name in ("kernel", "recurrent_kernel", "bias")))
    runner, h = Runner(graph), np.zeros((2, 4))
    for x in np.random.default_rng(1).normal(size=(5, 2, 1, 5)):
        h = gru_step(cell, x[:, 0], h)
        wanted = np.maximum(h @ head["kernel"].astype(float) + head["bias"], 0)
        np.testing.assert_allclose(runner.run(x), wanted, atol=1e-12)
    runner.reset()
    assert runner._states == {}


def test_the_published_parameter_counts(tmp_path: Path) -> None:
    """68 inputs, GRU 10 reset_after, Dense 3: 2,433; 10 inputs, GRU 7 not reset_after, Dense 8, Dense 1:
    451."""
    one = write_keras(tmp_path / "a.h5", (1, 68), [gru_entry(68, 10), dense_entry(10, 3, "relu")])
    other = write_keras(
        tmp_path / "b.h5",
        (1, 10),
        [
            gru_entry(10, 7, after=False, recurrent_activation="hard_sigmoid"),
            dense_entry(7, 8, "relu"),
            dense_entry(8, 1),
        ],
    )
    for path, count in ((one, 2433), (other, 451)):
        assert sum(values.size for values in load_keras(path).constants.values()) == count


def test_hard_sigmoid_has_the_slope_of_the_file_s_version(tmp_path: Path) -> None:
    for version, name in ((2, "hard_sigmoid"), (3, "hard_sigmoid_sixth")):
        layers = [gru_entry(3, 2, recurrent_activation="hard_sigmoid")]
        graph = load_keras(write_keras(tmp_path / f"{version}.h5", (1, 3), layers, version=version))
        op = graph.ops[0]
        assert isinstance(op, Recurrent) and op.gate == name


def test_convolution_pooling_and_recurrence_over_a_series(tmp_path: Path) -> None:
    """Against a direct reading of the definitions."""
    conv, gru = conv1d_entry(3, 4, 3, padding="same", stride=2), gru_entry(4, 5, return_sequences=True)
    lstm = lstm_entry(5, 3)
    pool = ("MaxPooling1D", {"pool_size": [2], "strides": None, "padding": "valid"}, {})
    layers = [conv, pool, ("Dropout", {"rate": 0.5}, {}), gru, lstm, dense_entry(3, 2, "softmax")]
    graph = load_keras(write_keras(tmp_path / "n.h5", (12, 3), layers))
    x = np.random.default_rng(0).normal(size=(2, 12, 3))
    kernel, bias = conv[2]["kernel"].astype(float), conv[2]["bias"].astype(float)
    padded = np.pad(x, ((0, 0), (0, 1), (0, 0)))  # same, stride 2: one row, at the end
    seen = np.stack(
        [
            np.maximum(np.einsum("bti,tio->bo", padded[:, 2 * t : 2 * t + 3], kernel) + bias, 0)
            for t in range(6)
        ],
        1,
    )
    pooled = seen.reshape(2, 3, 2, 4).max(axis=2)
    cell = Gru(*(gru[2][name].astype(float) for name in ("kernel", "recurrent_kernel", "bias")))
    h, hs = np.zeros((2, 5)), []
    for t in range(3):
        h = gru_step(cell, pooled[:, t], h)
        hs.append(h)
    held = {name: values.astype(float) for name, values in lstm[2].items()}
    s, c = np.zeros((2, 3)), np.zeros((2, 3))
    for each in hs:
        i, f, g, o = np.split(each @ held["kernel"] + s @ held["recurrent_kernel"] + held["bias"], 4, axis=1)
        c = activate("sigmoid", f) * c + activate("sigmoid", i) * np.tanh(g)
        s = activate("sigmoid", o) * np.tanh(c)
    dense = layers[-1][2]
    wanted = activate("softmax", s @ dense["kernel"].astype(float) + dense["bias"])
    np.testing.assert_allclose(Runner(graph).run(x), wanted, atol=1e-9)
    assert not any(isinstance(op, Recurrent) and op.carry for op in graph.ops)


def test_normalisation_is_folded_or_done(tmp_path: Path) -> None:
    gamma, beta, mean = drawn((2,), (2,), (2,), seed=3)
    norm = (
        "BatchNormalization",
        {"epsilon": 1e-3},
        {"gamma": gamma, "beta": beta, "moving_mean": mean, "moving_variance": np.array([0.5, 2.0])},
    )
    kernel, bias = drawn((3, 3, 1, 2), (2,))
    conv = (
        "Conv2D",
        {"filters": 2, "strides": [1, 1], "padding": "valid", "activation": "linear"},
        {"kernel": kernel, "bias": bias},
    )
    folded = load_keras(write_keras(tmp_path / "f.h5", (5, 5, 1), [conv, norm]))
    done = load_keras(
        write_keras(tmp_path / "d.h5", (5, 5, 1), [conv, ("ReLU", {"max_value": 6.0}, {}), norm])
    )
    assert len(folded.ops) == 1 and len(done.ops) > 1
    x = np.random.default_rng(0).normal(size=(1, 5, 5, 1))
    plain = Runner(load_keras(write_keras(tmp_path / "p.h5", (5, 5, 1), [conv]))).run(x)
    scale = gamma / np.sqrt(np.array([0.5, 2.0]) + 1e-3)
    np.testing.assert_allclose(Runner(folded).run(x), (plain - mean) * scale + beta, atol=1e-5)
    np.testing.assert_allclose(Runner(done).run(x), (np.clip(plain, 0, 6) - mean) * scale + beta, atol=1e-5)


def test_what_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    refusals = [
        ((None, 3), [gru_entry(3, 2)], r"inputs of the shape \(\?, 3\), whose sizes are not all fixed"),
        ((4, 3), [("Bidirectional", {}, {})], "is a Bidirectional, which is not supported"),
        ((4,), [dense_entry(4, 2, "swish")], "activation 'swish' is not supported"),
        ((5,), [dense_entry(4, 2)], "4 inputs for a tensor of 5"),
        ((4, 3), [gru_entry(3, 2, go_backwards=True)], "go_backwards"),
        ((4, 3), [("GRU", {"reset_after": False}, gru_entry(3, 2)[2])], "reset_after=False has"),
    ]
    for shape, layers, said in refusals:
        path = write_keras(tmp_path / "n.h5", shape, layers)
        with pytest.raises(UserError, match=said):
            load_keras(path)
    kind, config, arrays = dense_entry(4, 2)
    broken = write_keras(
        tmp_path / "nan.h5", (4,), [(kind, config, arrays | {"bias": np.array([np.nan, 0])})]
    )
    with pytest.raises(UserError, match="bias of the layer dense_0 holds numbers that are not finite"):
        load_keras(broken)


def test_branches_and_weights_alone_are_refused(tmp_path: Path) -> None:
    import h5py

    path = write_keras(tmp_path / "n.h5", (4,), [dense_entry(4, 2), dense_entry(2, 2)], functional=True)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][2]["inbound_nodes"] = [[["dense_0", 0, 0, {}], ["input_1", 0, 0, {}]]]
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(UserError, match="branches at its layer dense_1"):
        load_keras(path)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_group("model_weights")
    with pytest.raises(UserError, match="only weights at most"):
        load_keras(tmp_path / "w.h5")


def test_damaged_and_hostile_files_are_refused(tmp_path: Path) -> None:
    import h5py

    whole = write_keras(tmp_path / "n.h5", (4,), [dense_entry(4, 2)])
    data = whole.read_bytes()
    bad = tmp_path / "bad.h5"
    for cut in (0, 8, 100, len(data) // 2):
        bad.write_bytes(data[:cut])
        with pytest.raises(DamagedFileError):
            read_keras(bad)
    rng = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), 8):
            changed[at] = int(rng.integers(256))
        bad.write_bytes(bytes(changed))
        with contextlib.suppress(UserError):
            load_keras(bad)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["kernel:0"] = np.zeros((4, 2))
    outside = write_keras(tmp_path / "out.h5", (4,), [dense_entry(4, 2)])
    with h5py.File(outside, "r+") as file:
        group = file["model_weights/dense_0/dense_0"]
        del group["kernel:0"]
        group["kernel:0"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/kernel:0")
    with pytest.raises(DamagedFileError, match="a link to another file"):
        read_keras(outside)
    elsewhere = write_keras(tmp_path / "ext.h5", (4,), [dense_entry(4, 2)])
    with h5py.File(elsewhere, "r+") as file:
        group = file["model_weights/dense_0/dense_0"]
        del group["kernel:0"]
        group.create_dataset("kernel:0", (4, 2), "f4", external=[(str(whole), 0, 32)])
    with pytest.raises(DamagedFileError, match="outside of the file"):
        read_keras(elsewhere)
