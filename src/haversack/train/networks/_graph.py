"""A graph of integers as a network that learns: what the slots of stage train see of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from haversack.core.errors import UserError
from haversack.models.graph._execute import LABEL, LOSS, Machine
from haversack.models.graph._gradients import CrossEntropy
from haversack.models.graph._ir import BITS, Conv2d, Graph, Op, Tensor
from haversack.models.graph.autodiff import Channels, backward, gradients_of, with_loss
from haversack.models.graph.training import HEAD, LOGITS, with_head
from haversack.train._network import (
    F32,
    Array,
    Batch,
    Features,
    Form,
    Pictures,
    Role,
    Slice,
    Wanted,
)

ROOM = 24 << 20
"""Bytes that the rows which go through at once may take: more rows take no less time."""
ROWS_MOST = 64


class GraphNetwork:
    """See train/_network.py, Network. `graph` is made to end in a float classifier; its constants are the
    tensors. Inputs may be given as codes, too (i8)."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.name, self.saved_nbytes = name, 0
        self.classes: tuple[str, ...] | None = None
        self._narrow = False
        self._take(with_head(graph, None, 0))
        (self._input,) = self.graph.inputs
        tensor = self.graph.tensors[self._input]
        self._codes = tensor.quantization
        shape = tensor.shape
        pictures = len(shape) == 3 and shape[-1] == 3
        self.form: Form = Pictures(shape[0], shape[1], 3) if pictures else Features(shape)

    def _take(self, graph: Graph) -> None:
        self.graph = graph
        self._tensors: dict[str, Array] = {name: np.array(graph.constants[name]) for name in graph.parameters}
        self._machine = Machine(graph, parameters=self._tensors)
        self._whole = backward(with_loss(graph))
        alone = max(1, self._most(graph, 1)[0])
        self._rows = max(1, min(ROWS_MOST, ROOM // alone))
        self._ways: dict[Any, tuple[Machine, dict[str, str]]] = {}

    def tensors(self) -> Mapping[str, Array]:
        """See Network."""
        return self._tensors

    def roles(self) -> Mapping[str, Role]:
        """See Network."""
        found: dict[str, Role] = {}
        for op in self.graph.linears():
            found[op.weight] = "weight"
            if op.bias is not None:
                found[op.bias] = "bias"
        return {name: found[name] for name in self._tensors}

    @property
    def blocks(self) -> Mapping[str, tuple[str, ...]]:
        """See Network. Cut wherever a single tensor crosses."""
        found: dict[str, tuple[str, ...]] = {}
        names: list[str] = []
        for number, op in enumerate(self.graph.ops):
            names += [name for name in op.reads if name in self._tensors and name not in HEAD]
            if names and _crossing(self.graph, number) == 1:
                found[names[0].rpartition(".")[0] or names[0]] = tuple(names)
                names = []
        return {**found, "head": HEAD}

    def new_head(self, classes: tuple[str, ...], seed: int) -> None:
        """See Network."""
        kept = self._tensors
        self._take(with_head(self.graph, len(classes), seed))
        for name, values in kept.items():
            if name not in HEAD:
                self._tensors[name][...] = values
        self.classes = tuple(classes)

    def learn_in(self, latent: str, gradients: str) -> None:
        """Keep what is stored in integers in f32 from now on (`latent` "float"), and round gradients of sums
        and weights to 8 bits (`gradients` "int8")."""
        if latent == "float":
            for name, values in self._tensors.items():
                self._tensors[name] = values.astype(np.float32)
        self._narrow = gradients == "int8"
        self._ways.clear()

    def settle(self) -> None:
        """Back to integers: what was kept finer is rounded."""
        for name, values in self._tensors.items():
            kind = self.graph.constants[name].dtype
            if values.dtype != kind:
                limit = 127.0 if kind == np.int8 else float((1 << 31) - 1)
                self._tensors[name] = np.clip(np.rint(values.astype(np.float64)), -limit, limit).astype(kind)

    def codes(self, inputs: Array) -> Array:
        """Inputs of `form` as i8 codes: the 256 values of a picture are the 256 codes."""
        if inputs.dtype == np.int8 or self._codes is None:
            return inputs
        if isinstance(self.form, Pictures):
            return (inputs.astype(np.int16) - 128).astype(np.int8)
        codes = np.rint(inputs / np.float32(self._codes.scale)) + self._codes.zero
        return np.clip(codes, -128, 127).astype(np.int8)

    def logits(self, inputs: Array) -> F32:
        """See Network. Raises UserError for inputs of another size."""
        self._require(inputs)
        parts = [
            self._machine.run({self._input: self.codes(inputs[start : start + self._rows])})[LOGITS]
            for start in range(0, len(inputs), self._rows)
        ]
        return np.concatenate(parts).astype(np.float32)

    def loss(self, batch: Batch) -> float:
        """See Network."""
        self._require_labels(batch)
        found = self.logits(batch.inputs).astype(np.float64)
        top = found - found.max(axis=1, keepdims=True)
        own = top[np.arange(len(batch)), batch.labels]
        return float((np.log(np.exp(top).sum(axis=1)) - own).mean())

    def gradients(self, batch: Batch, wanted: Wanted) -> tuple[float, dict[str, F32]]:
        """See Network. Rows go through in pieces, whose gradients are summed."""
        self._require(batch.inputs)
        self._require_labels(batch)
        machine, names = self._way(wanted)
        loss, self.saved_nbytes = 0.0, 0
        total: dict[str, F32] = {}
        for start in range(0, len(batch), self._rows):
            rows = slice(start, start + self._rows)
            labels = batch.labels[rows]
            share = len(labels) / len(batch)
            values = machine.run({self._input: self.codes(batch.inputs[rows]), LABEL: labels})
            loss += share * float(values[LOSS])
            self.saved_nbytes = max(self.saved_nbytes, machine.saved_nbytes)
            for name, part in wanted.items():
                found = values[names[name]].astype(np.float32) * np.float32(share)
                if part is not None and not self._sliced(name, part):
                    found = part.of(found)
                total[name] = found if name not in total else total[name] + found
        return loss, total

    def plan(self, wanted: Wanted, rows: int) -> tuple[tuple[str, int], ...]:
        """See Network."""
        graph = self._way(wanted)[0].graph if wanted else self.graph
        most, saved = self._most(graph, min(rows, self._rows))
        lines = (("saved for the way back", saved), ("working set", max(0, most - saved)))
        return tuple(line for line in lines if line[1])

    def _most(self, graph: Graph, rows: int) -> tuple[int, int]:
        """Bytes that passes of `rows` rows hold at most, and those that they keep for the way back."""
        last = {name: number for number, op in enumerate(graph.ops) for name in (*op.reads, *op.writes)}
        (start,) = (name for name in graph.inputs if name != LABEL)
        alive, saved, most = {start}, 0, 0
        for number, op in enumerate(graph.ops):
            alive.update(op.writes)
            held = sum(_nbytes(graph.tensors[name], rows) for name in alive)
            most = max(most, held + rows * _temporaries(graph, op))
            alive -= {name for name in alive if last.get(name, -1) <= number and name not in graph.outputs}
            if isinstance(op, CrossEntropy):
                kept = alive - {start, LABEL, *op.reads, *op.writes}
                saved = sum(_nbytes(graph.tensors[name], rows) for name in kept)
        return most, saved

    def _way(self, wanted: Wanted) -> tuple[Machine, dict[str, str]]:
        asked: dict[str, Channels | None] = {
            name: part.indices if part is not None and self._sliced(name, part) else None
            for name, part in wanted.items()
        }
        key = tuple(sorted((name, channels) for name, channels in asked.items()))
        if key not in self._ways:
            graph, names = gradients_of(self._whole, asked)
            machine = Machine(graph, parameters=self._tensors, narrow_gradients=self._narrow)
            self._ways[key] = machine, names
        return self._ways[key]

    def _sliced(self, name: str, part: Slice) -> bool:
        """Whether the way back itself can leave the other channels out."""
        convs = {op.weight for op in self.graph.linears() if isinstance(op, Conv2d)}
        return name in convs and part.axis == self._tensors[name].ndim - 1

    def _require(self, inputs: Array) -> None:
        shape = self.graph.tensors[self._input].shape
        if inputs.ndim != len(shape) + 1 or inputs.shape[1:] != shape:
            raise UserError(
                f"{self.name} takes inputs of {' x '.join(map(str, shape))}, and these are "
                f"{' x '.join(map(str, inputs.shape[1:]))}.",
                field="data",
                given=list(inputs.shape[1:]),
                nearest=list(shape),
            )

    def _require_labels(self, batch: Batch) -> None:
        count = self.graph.tensors[LOGITS].shape[0]
        if len(batch) and not 0 <= int(batch.labels.min()) <= int(batch.labels.max()) < count:
            worst = int(batch.labels.max()) if batch.labels.min() >= 0 else int(batch.labels.min())
            raise UserError(
                f"the label {worst} is beyond the head of {self.name}, which has {count} outputs.",
                field="data",
                given=worst,
                nearest=count - 1,
            )


def _crossing(graph: Graph, number: int) -> int:
    """How many tensors are alive between operation `number` and the next."""
    written = {name for op in graph.ops[: number + 1] for name in op.writes} | set(graph.inputs)
    later = {name for op in graph.ops[number + 1 :] for name in op.reads}
    return len(written & later)


def _nbytes(tensor: Tensor, rows: int) -> int:
    """In numpy's types; bits are packed."""
    if tensor.dtype == "bit":
        return -(-tensor.size * rows // 8)
    return tensor.size * rows * BITS[tensor.dtype] // 8


def _temporaries(graph: Graph, op: Op) -> int:
    """Bytes of a row that an operation uses beside what it reads and writes: f32 copies, unrolled inputs."""
    written = sum(graph.tensors[name].size for name in op.writes)
    read = sum(graph.tensors[name].size for name in op.reads if name not in graph.constants)
    unrolled = 0
    if isinstance(op, Conv2d):
        kernel = graph.tensors[op.weight].shape
        if len(kernel) == 4 and kernel[1] * kernel[2] > 1:
            unrolled = math.prod(graph.tensors[op.y].shape[:2]) * math.prod(kernel[1:])
    return 24 * written + 8 * read + 4 * unrolled


def as_network(graph: Graph, name: str) -> GraphNetwork:
    """The network of an int8 graph as opened from a file."""
    return GraphNetwork(graph, name)
