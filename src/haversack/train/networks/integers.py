"""Networks of integers: the layered networks with int8 weights and outputs, and int32 between (NITI).

Papers: Wang et al., "NITI" (arXiv 2009.13108, 2020); Sugiura and Matsutani, "ElasticZO" (arXiv 2501.04287,
2025).
What is here: a folder of network.json (`numbers`: int8) and weights.safetensors. Weights are drawn even
within He's range and rounded once; their exponents stay. There are no biases, as in NITI. A layer's sums go
through one int32 buffer of the largest layer's size, come back to int8, then through relu and pooling.
`integer_pass` and `integer_gradients` are what integer methods learn by; float methods are refused.
What we changed: pictures enter as their upper seven bits.
Cost: a byte for each number and each output, four for each output of the largest layer. numpy multiplies in
floats that hold the integers exactly; these copies are counted apart (`float_nbytes`).
Limits: as layered.py; a point cloud must come as int8.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from haversack.core.errors import DamagedFileError, UserError, unknown_name
from haversack.train._network import F32, Array, Batch, Form, Pictures, Role, Wanted
from haversack.train._niti import (
    I8,
    I32,
    F,
    Integers,
    logit_error,
    loss_bits,
    product_type,
    quantized,
    renormalized,
    require_integers,
)
from haversack.train.networks import _layers
from haversack.train.networks._layers import NETWORKS, Layer
from haversack.train.networks.layered import (
    CONFIG,
    WEIGHTS,
    Buffers,
    declares,
    form_of,
    fresh,
    load_weights,
    read_config,
    require_rows,
    softmax_error,
    write_network,
)


class IntegerNetwork:
    """See train/_network.py, Network. `floats`: weights by name to begin with in the place of fresh ones;
    biases among them must be 0 or absent."""

    def __init__(
        self,
        network: str,
        classes: tuple[str, ...],
        floats: Mapping[str, F32] | None = None,
        *,
        name: str | None = None,
        seed: int = 0,
    ) -> None:
        if network not in NETWORKS:
            raise unknown_name("network", network, NETWORKS)
        self.network, self.name, self.classes = network, name or network, classes
        self.layers = NETWORKS[network](len(classes))
        self.form: Form = form_of(self.layers)
        given = fresh(self.layers, seed) | dict(floats or {})
        biased = [key for key, array in given.items() if key.endswith(".bias") and np.any(array)]
        if biased:
            raise UserError(
                f"{biased[0]} is not 0, and networks of integers have no biases; train without them.",
                field=biased[0],
            )
        self._tensors: dict[str, Array] = {}
        for key, array in given.items():
            if key.endswith(".weight"):
                found = quantized(array)
                self._tensors[key] = found.mantissas
                self._tensors[exponent_name(key)] = np.array(found.exponent, np.int32)
        self.saved_nbytes = 0
        self.buffers = Buffers()

    def tensors(self) -> Mapping[str, Array]:
        """See Network: mantissas int8 and exponents int32, which stay."""
        return dict(self._tensors)

    def roles(self) -> Mapping[str, Role]:
        """See Network."""
        return {name: "statistic" if name.endswith("exponent") else "weight" for name in self._tensors}

    @property
    def blocks(self) -> Mapping[str, tuple[str, ...]]:
        """See Network: each layer that has weights is one."""
        return {
            layer.name: (f"{layer.name}.weight", f"{layer.name}.exponent")
            for layer in self.layers
            if layer.weight is not None
        }

    def new_head(self, classes: tuple[str, ...], seed: int) -> None:
        """See Network."""
        self.classes, self.layers = classes, NETWORKS[self.network](len(classes))
        name = f"{self.layers[-1].name}.weight"
        found = quantized(fresh(self.layers, seed)[name])
        self._tensors[name] = found.mantissas
        self._tensors[exponent_name(name)] = np.array(found.exponent, np.int32)
        self.buffers.clear()

    def logits(self, inputs: Array) -> F32:
        """See Network."""
        found = self.integer_pass(inputs)[-1]
        return found.values

    def loss(self, batch: Batch) -> float:
        """See Network: of the logits as floats."""
        require_rows(self.form, len(self.classes), batch)
        logits = self.logits(batch.inputs)
        return softmax_error(logits, batch.labels, np.empty_like(logits))

    def gradients(self, batch: Batch, wanted: Wanted) -> tuple[float, dict[str, F32]]:
        """See Network. Raises UserError: float steps are too small for these weights."""
        raise UserError(
            f"{self.name} is a network of integers, which float gradients cannot train; use gradient "
            "elasticzo-int8.",
            field="gradient",
            given="floats",
            nearest="elasticzo-int8",
        )

    def integer_pass(self, inputs: Array) -> list[Integers]:
        """The input and every layer's output: [n, *shape] int8, one exponent each, in the network's
        buffers."""
        values = [self._inputs(inputs)]
        for number, layer in enumerate(self.layers):
            before = values[-1]
            out = self.buffers.rows(f"output {number}", len(inputs), layer.shape, np.int8)
            exponent = before.exponent
            if layer.weight is None:
                _layers.forward(layer, before.mantissas, None, None, out)
            else:
                sums = self._sums(layer, before.mantissas)
                exponent += int(self._tensors[f"{layer.name}.exponent"]) + renormalized(sums, out)
                if layer.relu:
                    np.maximum(out, 0, out=out)
            values.append(Integers(out, exponent))
        return values

    def integer_loss(self, batch: Batch) -> int:
        """The batch's cross-entropy in units of 2^-15 bits, by a pass forward."""
        require_rows(self.form, len(self.classes), batch)
        return loss_bits(self.integer_pass(batch.inputs)[-1], batch.labels)

    def integer_gradients(self, batch: Batch, names: Collection[str], bits: int) -> tuple[int, dict[str, I8]]:
        """The loss, and for each weight of `names` its gradient with `bits` bits in the largest number, by
        the way back in integers. The arrays are buffers: they hold until the next call."""
        require_rows(self.form, len(self.classes), batch)
        values = self.integer_pass(batch.inputs)
        loss = loss_bits(values[-1], batch.labels)
        wanted = {name.partition(".")[0] for name in names}
        last = len(self.layers) - 1
        first = min((i for i, layer in enumerate(self.layers) if layer.name in wanted), default=last + 1)
        found: dict[str, I8] = {}
        kept: dict[int, int] = {}
        error = self._error(last, len(batch))
        logit_error(values[-1], batch.labels, error)
        for number in range(last, first - 1, -1):
            layer, before, after = self.layers[number], values[number].mantissas, values[number + 1].mantissas
            if layer.relu:
                np.multiply(error, after > 0, out=error)
            if layer.relu or (layer.weight is None and number > first):
                kept[number + 1] = after.nbytes
            if number and (layer.weight is None or layer.name in wanted):
                kept[number] = before.nbytes
            if layer.name in wanted:
                found[f"{layer.name}.weight"] = self._gradient(layer, before, error, bits)
            if number > first:
                error = self._lower(number, layer, before, after, error)
        self.saved_nbytes = sum(kept.values())
        return loss, found

    def plan(self, wanted: Wanted, rows: int) -> tuple[tuple[str, int], ...]:
        """See Network, of the buffers that integers need; the floats that numpy multiplies in are
        `engine`."""
        names = {name.partition(".")[0] for name in wanted}
        count = len(self.layers)
        first = min((i for i, one in enumerate(self.layers) if one.name in names), default=count - 1)
        outputs = rows * sum(layer.size for layer in self.layers)
        errors = rows * sum(layer.size for layer in self.layers[first:])
        matrices = {layer.name: math.prod(layer.weight) for layer in self.layers if layer.weight}
        gradients = [size for name, size in matrices.items() if name in names]
        sums = [rows * layer.size for layer in self.layers if layer.weight]
        pairs = zip(self.layers[first:], self.layers[first + 1 :], strict=False)
        lower = [rows * below.size for below, layer in pairs if layer.weight]
        most = max([*sums, *gradients, *lower])
        return (
            ("working set", outputs + 4 * most + errors + sum(gradients)),
            ("engine", self.float_nbytes()),
        )

    def write(self, folder: Path) -> None:
        """Write the network into `folder`."""
        write_network(folder, self.network, self.classes, "int8", self._tensors)

    def buffer_nbytes(self) -> int:
        """Bytes of the buffers that exist by now; parameters are not among them."""
        return sum(array.nbytes for array in self.buffers.held.values())

    def float_nbytes(self) -> int:
        """Bytes of the float copies in which numpy multiplies: the largest matrix, windows."""
        matrices = [4 * layer.weight[0] * layer.weight[1] for layer in self.layers if layer.weight]
        return max(matrices) + max(layer.scratch(4) for layer in self.layers)

    def _inputs(self, inputs: Array) -> Integers:
        if isinstance(self.form, Pictures):
            if inputs.dtype != np.uint8:
                raise UserError(
                    f"pictures are {inputs.dtype}; a network of integers takes u8.",
                    field="inputs",
                    given=str(inputs.dtype),
                    nearest="uint8",
                )
            return Integers((np.moveaxis(inputs, 3, 1) >> 1).astype(np.int8), -7)
        require_integers(inputs, "inputs")
        return Integers(inputs, -7)

    def _sums(self, layer: Layer, before: I8) -> I32:
        """A layer's sums [n, *shape], int32, in the buffer that all layers share."""
        rows = len(before)
        shared = self._shared(rows * layer.size)
        assert layer.weight is not None
        weight = self._tensors[f"{layer.name}.weight"].astype(product_type(layer.weight[1]))
        sums: I32 = shared.reshape(rows, *layer.shape)
        if weight.dtype == np.float32:
            floats = shared.view(np.float32).reshape(rows, *layer.shape)  # in place: four bytes each
            _layers.forward(_plain(layer), before, weight, None, floats)
            sums[...] = floats
        else:
            wide = np.empty(sums.shape, np.float64)
            _layers.forward(_plain(layer), before, weight, None, wide)
            sums[...] = wide
        return sums

    def _gradient(self, layer: Layer, before: I8, error: I8, bits: int) -> I8:
        name, shape = f"{layer.name}.weight", layer.weight
        assert shape is not None
        length = error.size // layer.shape[0 if layer.kind == "convolution" else -1]
        floats = np.empty(shape, product_type(length))
        _layers.weight_gradient(layer, before, error, floats)
        sums = self._shared(floats.size)
        sums[...] = floats.reshape(-1)
        out: I8 = self.buffers.rows(f"gradient {name}", shape[0], shape[1:], np.int8)
        renormalized(sums, out, bits)
        return out

    def _lower(self, number: int, layer: Layer, before: I8, after: I8, error: I8) -> I8:
        """The error of the layer's input, int8."""
        lower = self._error(number - 1, len(before))
        if layer.weight is None:
            _layers.input_error(layer, before, after, error, None, lower)
            return lower
        length = layer.weight[0] * (layer.kernel**2 or 1)
        weight = self._tensors[f"{layer.name}.weight"].astype(product_type(length))
        floats = np.empty(lower.shape, weight.dtype)
        _layers.input_error(layer, before, after, error, weight, floats)
        sums = self._shared(floats.size)
        sums[...] = floats.reshape(-1)
        renormalized(sums, lower)
        return lower

    def _shared(self, count: int) -> I32:
        """The int32 buffer through which all sums go."""
        found: I32 = self.buffers.rows("sums", count, (), np.int32)
        return found

    def _error(self, number: int, rows: int) -> I8:
        found: I8 = self.buffers.rows(f"error {number}", rows, self.layers[number].shape, np.int8)
        return found


def exponent_name(weight: str) -> str:
    """The tensor that holds a weight's exponent."""
    return weight.removesuffix("weight") + "exponent"


def _plain(layer: Layer) -> Layer:
    """The layer without its relu, which comes after the sums are eight bits again."""
    from dataclasses import replace

    return replace(layer, relu=False)


def nats(loss: int, rows: int) -> float:
    """An integer loss as the mean over rows, in nats."""
    return float(loss / (1 << F) / rows * np.log(2))


def recognises(path: Path) -> bool:
    """See train/networks."""
    return declares(path, "int8")


def open_network(path: Path, seed: int) -> IntegerNetwork:
    """See train/networks. Raises DamagedFileError for weights that are not the network's."""
    config: dict[str, Any] = read_config(path)
    network = IntegerNetwork(config["network"], tuple(config["classes"]), name=path.resolve().name, seed=seed)
    load_weights(path / WEIGHTS, network.tensors())
    for name, array in network.tensors().items():
        if array.dtype == np.int8 and array.min(initial=0) < -127:
            raise DamagedFileError(path / CONFIG, f"{name} holds -128", field=name)
    return network
