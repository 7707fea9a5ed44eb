"""Writes Keras networks as HDF5 files, in the layouts of Keras 2 and of Keras 3, with h5py alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Entry = tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]
CELLS = {"GRU": "gru_cell", "LSTM": "lstm_cell", "SimpleRNN": "simple_rnn_cell"}


def write_keras(
    path: Path,
    input_shape: Sequence[int | None],
    layers: Sequence[Entry],
    *,
    version: int = 2,
    functional: bool = False,
    cells: bool = True,
) -> Path:
    """`layers`: (class, config, arrays) in order. `cells`: a recurrent layer's arrays lie in a group of its
    cell, as later files have them."""
    import h5py

    shape_key = "batch_input_shape" if version == 2 else "batch_shape"
    entries: list[dict[str, Any]] = [
        {"class_name": "InputLayer", "config": {"name": "input_1", shape_key: [None, *input_shape]}}
    ]
    for number, (kind, config, _) in enumerate(layers):
        entries.append({"class_name": kind, "config": {"name": f"{kind.lower()}_{number}", **config}})
    if functional:
        for before, entry in itertools.pairwise(entries):
            name = before["config"]["name"]
            entry["name"] = entry["config"]["name"]
            entry["inbound_nodes"] = (
                [[[name, 0, 0, {}]]]
                if version == 2
                else [
                    {"args": [{"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}}]}
                ]
            )
    kind = "Functional" if functional else "Sequential"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(
            {"class_name": kind, "config": {"name": "net", "layers": entries}}
        )
        file.attrs["keras_version"] = {2: "2.11.0", 3: "3.5.0"}[version]
        file.attrs["backend"] = "tensorflow"
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [entry["config"]["name"].encode() for entry in entries]
        for entry, arrays in zip(entries, [{}, *(layer[2] for layer in layers)], strict=True):
            name = entry["config"]["name"]
            own = group.create_group(name)
            inner = own.create_group(name if version == 2 else f"net/{name}") if arrays else own
            if entry["class_name"] in CELLS and cells and arrays:
                inner = inner.create_group(CELLS[entry["class_name"]])
            names = []
            for short, values in arrays.items():
                full = f"{short}:0" if version == 2 else short
                inner.create_dataset(full, data=values.astype(np.float32))
                names.append(f"{inner.name.removeprefix(own.name + '/')}/{full}".encode())
            own.attrs["weight_names"] = names
    return path


def drawn(*shapes: tuple[int, ...], seed: int = 0, size: float = 0.4) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(size * rng.normal(size=shape)).astype(np.float32) for shape in shapes]


def gru_entry(features: int, units: int, *, after: bool = True, seed: int = 0, **config: Any) -> Entry:
    kernel, recurrent, bias = drawn(
        (features, 3 * units), (units, 3 * units), (2, 3 * units) if after else (3 * units,), seed=seed
    )
    given = {"units": units, "reset_after": after, "activation": "tanh", "recurrent_activation": "sigmoid"}
    return "GRU", given | config, {"kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}


def lstm_entry(features: int, units: int, *, seed: int = 0, **config: Any) -> Entry:
    kernel, recurrent, bias = drawn((features, 4 * units), (units, 4 * units), (4 * units,), seed=seed)
    given = {"units": units, "activation": "tanh", "recurrent_activation": "sigmoid"}
    return "LSTM", given | config, {"kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}


def dense_entry(inputs: int, units: int, activation: str = "linear", *, seed: int = 0) -> Entry:
    kernel, bias = drawn((inputs, units), (units,), seed=seed)
    return "Dense", {"units": units, "activation": activation}, {"kernel": kernel, "bias": bias}


def conv1d_entry(
    inputs: int, filters: int, size: int, activation: str = "relu", *, padding: str = "valid", stride: int = 1
) -> Entry:
    kernel, bias = drawn((size, inputs, filters), (filters,))
    config = {"filters": filters, "strides": [stride], "padding": padding, "activation": activation}
    return "Conv1D", config, {"kernel": kernel, "bias": bias}
