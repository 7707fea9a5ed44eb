"""LeNet-5 and a small PointNet in numpy: networks for boards that have no PyTorch.

Papers: LeCun et al., "Gradient-based learning applied to document recognition" (1998), with the widths of
ElasticZO's (arXiv 2501.04287); Qi et al., "PointNet" (arXiv 1612.00593, 2017).
What is here: a folder of network.json (`network`, `classes`, `numbers`: f32) and weights.safetensors, read
and written; a pass into buffers that are allocated once, as firmware allocates them: every layer's output,
one scratch buffer for windows. Without weights.safetensors a network begins fresh from the seed. The way back
stops at the lowest layer that learns: the error of its input is not computed, and buffers for errors and
gradients exist only from there up.
Cost: outputs of all layers; for layers that learn, as much again and their gradients.
Limits: grey pictures of 28 x 28, clouds of 256 points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from haversack.core._files import write_atomically
from haversack.core.errors import DamagedFileError, UserError, unknown_name
from haversack.train._network import (
    F32,
    I64,
    Array,
    Batch,
    Features,
    Form,
    Pictures,
    Role,
    Wanted,
)
from haversack.train.networks import _layers
from haversack.train.networks._layers import NETWORKS, Layer

CONFIG, WEIGHTS = "network.json", "weights.safetensors"
KINDS = {np.dtype(np.float32): "f32", np.dtype(np.int8): "u8", np.dtype(np.int32): "i32"}
"""Types in memory, and in the file."""


def fresh(layers: tuple[Layer, ...], seed: int) -> dict[str, F32]:
    """Weights even within sqrt(6 / inputs) (He's range), biases 0."""
    generator = np.random.default_rng([seed, 0x1E5])
    found: dict[str, F32] = {}
    for layer in layers:
        if layer.weight is not None:
            bound = math.sqrt(6 / layer.weight[1])
            found[f"{layer.name}.weight"] = generator.uniform(-bound, bound, layer.weight).astype(np.float32)
            found[f"{layer.name}.bias"] = np.zeros(layer.weight[0], np.float32)
    return found


def softmax_error(logits: F32, labels: I64, out: F32) -> float:
    """Mean cross-entropy in nats of logits [n, classes]; its gradient for them in `out`."""
    np.subtract(logits, logits.max(axis=1, keepdims=True), out=out)
    picked = out[np.arange(len(labels)), labels].astype(np.float64)
    np.exp(out, out=out)
    total = out.sum(axis=1, keepdims=True)
    loss = float((np.log(total[:, 0].astype(np.float64)) - picked).mean())
    out /= total
    out[np.arange(len(labels)), labels] -= 1
    out /= len(labels)
    return loss


def inputs_of(form: Form, inputs: Array) -> F32:
    """What the first layer sees: pictures in 0..1, channels first; points as they are."""
    if isinstance(form, Pictures):
        return np.moveaxis(inputs, 3, 1).astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(inputs, np.float32)


def require_rows(form: Form, classes: int, batch: Batch) -> None:
    """Raises UserError for rows of another shape, no rows, or labels beyond the head."""
    want = (
        (form.height, form.width, form.channels) if isinstance(form, Pictures) else getattr(form, "shape", ())
    )
    if batch.inputs.shape[1:] != want or not len(batch):
        raise UserError(
            f"rows are {batch.inputs.shape}; this network reads [n, {', '.join(map(str, want))}], n above 0.",
            field="inputs",
            given=list(batch.inputs.shape),
        )
    least, most = int(batch.labels.min()), int(batch.labels.max())
    if least < 0 or most >= classes:
        raise UserError(
            f"label {most if most >= classes else least} is outside 0..{classes - 1}, the head's classes.",
            field="labels",
            given=most if most >= classes else least,
            nearest=classes - 1,
        )


class Buffers:
    """Arrays by name that grow to the largest number of rows asked for and stay."""

    def __init__(self) -> None:
        self.held: dict[str, Array] = {}

    def rows(self, name: str, count: int, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        """The first `count` rows of the array `name` [>= count, *shape]."""
        found = self.held.get(name)
        if found is None or len(found) < count:
            found = self.held[name] = np.empty((count, *shape), dtype)
        return found[:count]

    def clear(self) -> None:
        """Give all of it back."""
        self.held.clear()


class LayeredNetwork:
    """See train/_network.py, Network. `network` is one of NETWORKS; `dtype` is f32, or f64 for checks against
    finite differences."""

    def __init__(
        self,
        network: str,
        classes: tuple[str, ...],
        tensors: Mapping[str, F32] | None = None,
        *,
        name: str | None = None,
        seed: int = 0,
        dtype: Any = np.float32,
    ) -> None:
        if network not in NETWORKS:
            raise unknown_name("network", network, NETWORKS)
        self.network, self.name, self.classes = network, name or network, classes
        self.layers = NETWORKS[network](len(classes))
        self.form: Form = form_of(self.layers)
        self.dtype = np.dtype(dtype)
        self._tensors = {key: array.astype(dtype) for key, array in fresh(self.layers, seed).items()}
        for key, array in (tensors or {}).items():
            self._tensors[key][...] = array
        self.saved_nbytes = 0
        self.buffers = Buffers()

    def tensors(self) -> Mapping[str, Array]:
        """See Network."""
        return dict(self._tensors)

    def roles(self) -> Mapping[str, Role]:
        """See Network."""
        return {name: "bias" if name.endswith(".bias") else "weight" for name in self._tensors}

    @property
    def blocks(self) -> Mapping[str, tuple[str, ...]]:
        """See Network: each layer that has numbers is one."""
        return {
            layer.name: tuple(name for name in self._tensors if name.split(".")[0] == layer.name)
            for layer in self.layers
            if layer.weight is not None
        }

    def new_head(self, classes: tuple[str, ...], seed: int) -> None:
        """See Network."""
        self.classes, self.layers = classes, NETWORKS[self.network](len(classes))
        head = self.layers[-1].name
        for name, array in fresh(self.layers, seed).items():
            if name.split(".")[0] == head:
                self._tensors[name] = array.astype(self.dtype)
        self.buffers.clear()

    def logits(self, inputs: Array) -> F32:
        """See Network."""
        require_rows(self.form, len(self.classes), Batch(inputs, np.zeros(len(inputs), np.int64)))
        found: F32 = self._pass(inputs)[-1].astype(np.float32)
        return found

    def loss(self, batch: Batch) -> float:
        """See Network."""
        require_rows(self.form, len(self.classes), batch)
        logits = self._pass(batch.inputs)[-1]
        return softmax_error(logits, batch.labels, np.empty_like(logits))

    def gradients(self, batch: Batch, wanted: Wanted) -> tuple[float, dict[str, F32]]:
        """See Network. The arrays are the network's buffers: they hold until the next call."""
        require_rows(self.form, len(self.classes), batch)
        values = self._pass(batch.inputs)
        last = len(self.layers) - 1
        error = self._error(last, len(batch))
        loss = softmax_error(values[-1], batch.labels, error)
        names = {name.split(".")[0] for name in wanted}
        first = min((i for i, layer in enumerate(self.layers) if layer.name in names), default=last + 1)
        found: dict[str, F32] = {}
        kept: dict[int, int] = {}
        for number in range(last, first - 1, -1):
            layer = self.layers[number]
            before, after = values[number], values[number + 1]
            if layer.relu:
                np.multiply(error, after > 0, out=error)
                kept[number + 1] = after.nbytes
            if layer.name in names:
                self._gradients_of(layer, before, error, wanted, found)
            kept[number] = before.nbytes if number and not self._reads_nothing(layer, names) else 0
            if number > first:
                lower = self._error(number - 1, len(batch))
                weight = None if layer.weight is None else self._tensors[f"{layer.name}.weight"]
                _layers.input_error(layer, before, after, error, weight, lower)
                if layer.kind in ("pool", "point-max"):
                    kept[number + 1] = after.nbytes
                error = lower
        self.saved_nbytes = sum(kept.values())
        return loss, {
            name: found[name] if part is None else part.of(found[name]) for name, part in wanted.items()
        }

    def plan(self, wanted: Wanted, rows: int) -> tuple[tuple[str, int], ...]:
        """See Network. Outputs of layers are buffers whether they are kept for the way back or not, so
        `saved` holds those that it reads and `working set` all others."""
        names = {name.split(".")[0] for name in wanted}
        first = min((i for i, layer in enumerate(self.layers) if layer.name in names), default=None)
        outputs = [4 * rows * layer.size for layer in self.layers]
        start = 4 * rows * math.prod(self.layers[0].before)
        scratch = max(layer.scratch(4) for layer in self.layers)
        read: set[int] = set()
        errors = 0
        if first is not None:
            for number in range(len(self.layers) - 1, first - 1, -1):
                layer = self.layers[number]
                errors += outputs[number]
                if layer.relu or (number > first and layer.kind in ("pool", "point-max")):
                    read.add(number + 1)
                if number and not self._reads_nothing(layer, names):
                    read.add(number)
        saved = sum(outputs[number - 1] for number in read)
        return (
            ("saved for the way back", saved),
            ("working set", start + sum(outputs) - saved + errors + scratch),
        )

    def write(self, folder: Path) -> None:
        """Write the network into `folder`."""
        write_network(folder, self.network, self.classes, "f32", self._tensors)

    def buffer_nbytes(self) -> int:
        """Bytes of the buffers that exist by now, scratch included; parameters are not among them."""
        held = sum(array.nbytes for array in self.buffers.held.values())
        return held + max(layer.scratch(self.dtype.itemsize) for layer in self.layers)

    def _pass(self, inputs: Array) -> list[F32]:
        """The input and every layer's output."""
        values = [inputs_of(self.form, inputs).astype(self.dtype, copy=False)]
        for number, layer in enumerate(self.layers):
            out = self.buffers.rows(f"output {number}", len(inputs), layer.shape, self.dtype)
            weight, bias = (self._tensors.get(f"{layer.name}.{part}") for part in ("weight", "bias"))
            _layers.forward(layer, values[-1], weight, bias, out)
            values.append(out)
        return values

    def _error(self, number: int, rows: int) -> F32:
        found: F32 = self.buffers.rows(f"error {number}", rows, self.layers[number].shape, self.dtype)
        return found

    def _gradients_of(
        self, layer: Layer, before: F32, error: F32, wanted: Wanted, found: dict[str, F32]
    ) -> None:
        for part in ("weight", "bias"):
            name = f"{layer.name}.{part}"
            if name in wanted:
                shape = self._tensors[name].shape
                out = self.buffers.rows(f"gradient {name}", shape[0], shape[1:], self.dtype)
                if part == "weight":
                    _layers.weight_gradient(layer, before, error, out)
                else:
                    _layers.bias_gradient(layer, error, out)
                found[name] = out

    def _reads_nothing(self, layer: Layer, names: set[str]) -> bool:
        """Whether the way back does without the layer's input: a layer with a matrix that does not learn."""
        return layer.weight is not None and layer.name not in names


def form_of(layers: tuple[Layer, ...]) -> Form:
    """What the network's inputs are."""
    start = layers[0].before
    return Pictures(start[1], start[2], start[0]) if len(start) == 3 else Features(start)


def write_network(
    folder: Path, network: str, classes: tuple[str, ...], numbers: str, tensors: Mapping[str, Array]
) -> None:
    """Write a folder that `open_network` reads; `numbers`: f32 or int8."""
    from haversack.formats.safetensors import write_safetensors

    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(
        folder / WEIGHTS,
        [
            (name, KINDS[array.dtype], array.shape, np.ascontiguousarray(array).tobytes())
            for name, array in tensors.items()
        ],
    )
    said = {"network": network, "classes": list(classes), "numbers": numbers}
    write_atomically(folder / CONFIG, (json.dumps(said, indent=1) + "\n").encode())


def read_config(path: Path) -> dict[str, Any]:
    """network.json, checked. Raises DamagedFileError."""
    config = path / CONFIG
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedFileError(config, "it is not JSON") from error
    classes = found.get("classes") if isinstance(found, dict) else None
    if (
        not isinstance(classes, list)
        or not classes
        or len(classes) > 65536
        or not all(isinstance(name, str) for name in classes)
    ):
        raise DamagedFileError(config, "its classes are no list of names", field="classes")
    if found.get("network") not in NETWORKS:
        raise unknown_name("network", str(found.get("network")), NETWORKS)
    if found.get("numbers", "f32") not in ("f32", "int8"):
        raise DamagedFileError(config, f"numbers is {found['numbers']!r}, not f32 or int8", field="numbers")
    return found


def declares(path: Path, numbers: str) -> bool:
    """Whether `path` is such a folder with these numbers."""
    try:
        found = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return numbers == "f32" and (path / CONFIG).is_file()
    return isinstance(found, dict) and "network" in found and found.get("numbers", "f32") == numbers


def recognises(path: Path) -> bool:
    """See train/networks."""
    return declares(path, "f32")


def open_network(path: Path, seed: int) -> LayeredNetwork:
    """See train/networks. Raises DamagedFileError for weights that are not the network's."""
    config = read_config(path)
    network = LayeredNetwork(config["network"], tuple(config["classes"]), name=path.resolve().name, seed=seed)
    load_weights(path / WEIGHTS, network.tensors())
    return network


def load_weights(path: Path, tensors: Mapping[str, Array]) -> None:
    """Read `path` into `tensors`, where it exists; names, shapes and types must be theirs. Bytes that are
    int8 in memory are U8 in the file."""
    if not path.exists():
        return
    from haversack.formats.safetensors import SafetensorsFile

    file = SafetensorsFile.open(path)
    if set(file.tensors) != set(tensors):
        odd = sorted(set(file.tensors) ^ set(tensors))[0]
        raise DamagedFileError(path, f"the tensor {odd} is missing or not the network's", field=odd)
    for name, array in tensors.items():
        entry, kind = file.tensors[name], KINDS[array.dtype]
        if entry.shape != array.shape or entry.kind != kind:
            raise DamagedFileError(
                path, f"{name} is {entry.kind} {entry.shape}, not {kind} {array.shape}", field=name
            )
        array[...] = np.frombuffer(file.bytes(name), array.dtype).reshape(array.shape)
