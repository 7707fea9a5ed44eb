"""Counting without running: products of a pass, and what the way back keeps of the way there.

Rules of products: a multiplication and addition count as one; convolutions and linear layers count, norms,
activations and sums do not. The way back costs the products of a layer once for the gradient of its weights,
if they learn, and once for that of its inputs, if anything below learns.

Rules of what is kept, in elements of 4 bytes: a layer whose weights learn keeps its inputs; a norm that
measures its batch keeps its inputs and two numbers a channel; one with fixed statistics keeps its inputs only
if its scale learns; an activation keeps its inputs as floats (ReLU its outputs), or one bit an element; the
product of a squeeze keeps both factors where both have a gradient. A tensor that two layers need is kept
once. Nothing is kept by what no gradient passes. What PyTorch keeps is the same to the byte (a test).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from haversack.models.vision._record import Beside, Block, Linear, PictureNet, Squeeze, Unit

FLOAT = 4


@dataclass(frozen=True)
class Way:
    """How a network learns: names of the tensors that do, layers whose norm measures its batch, layers whose
    activation keeps one bit an element, branches beside blocks by the block's name. Norms of other layers
    have fixed statistics, other activations keep floats."""

    learned: frozenset[str]
    batch_norms: frozenset[str] = frozenset()
    masked: frozenset[str] = frozenset()
    beside: Mapping[str, Beside] = field(default_factory=dict)


@dataclass
class Kept:
    """Bytes by block, as a walk finds them."""

    nbytes: dict[str, int] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def keep(self, block: str, tensor: str, nbytes: int) -> None:
        """Count `tensor` once."""
        if tensor not in self.seen:
            self.seen.add(tensor)
            self.nbytes[block] = self.nbytes.get(block, 0) + nbytes


def products(record: PictureNet, size: int | None = None) -> dict[str, int]:
    """Multiplications of a pass of one picture, by layer."""
    found: dict[str, int] = {}

    def unit(layer: Unit, side: int) -> int:
        after = layer.map_after(side)
        found[layer.name] = layer.products * after * after
        return after

    side = unit(record.stem, size or record.size)
    for block in record.blocks:
        for layer in block.layers():
            if isinstance(layer, Squeeze):
                found[layer.name] = 2 * layer.channels * layer.inner
            else:
                side = unit(layer, side)
    unit(record.final, side)
    for linear in filter(None, (record.hidden, record.classifier)):
        found[linear.name] = linear.inputs * linear.outputs
    return found


def products_back(record: PictureNet, way: Way, size: int | None = None) -> int:
    """Multiplications of the way back of one picture."""
    total, below = 0, False
    counted = products(record, size) | products_beside(record, way.beside, size)
    branches = {record.block(name).project.name: one for name, one in way.beside.items()}
    for layer in record.layers():
        branch = branches.get(layer.name)
        for one in (layer,) if branch is None else (layer, branch.first, branch.second):
            names = [name for name, _ in one.tensors()]
            weights = any(name in way.learned and _is_weight(name) for name in names)
            total += counted[one.name] * (int(weights) + int(below))
            below = below or any(name in way.learned for name in names)
    return total


def products_beside(
    record: PictureNet, beside: Mapping[str, Beside], size: int | None = None
) -> dict[str, int]:
    """Multiplications of branches beside blocks, by layer, for one picture."""
    found = {}
    for name, branch in beside.items():
        side = map_into(record, record.blocks.index(record.block(name)), size) // branch.pool
        for unit in (branch.first, branch.second):
            side = unit.map_after(side)
            found[unit.name] = unit.products * side * side
    return found


def kept(record: PictureNet, way: Way, rows: int, size: int | None = None, start: int = 0) -> dict[str, int]:
    """Bytes that the way back keeps of a pass of `rows` pictures, by block; `loss` is what cross-entropy
    keeps.

    `start`: how many blocks below were run beforehand (their maps come in); 0 begins with pictures.
    """
    walk = _Walk(record, way, rows)
    side = size or record.size
    if start == 0:
        walk.group, side = "stem", walk.unit(record.stem, side)
    else:
        side = map_into(record, start, side)
    for block in record.blocks[start:]:
        side = walk.block(block, side)
    return walk.top(side)


def kept_by_block(block: Block, way: Way, rows: int, side: int) -> int:
    """Bytes that the way back keeps of one block by itself, whose inputs need a gradient too."""
    walk = _Walk(None, way, rows)
    walk.reached = True
    walk.block(block, side)
    return sum(walk.kept.nbytes.values())


def map_into(record: PictureNet, start: int, size: int | None = None) -> int:
    """The side of the map that comes into block `start`."""
    side = record.stem.map_after(size or record.size)
    for block in record.blocks[:start]:
        side = block.depthwise.map_after(side)
    return side


def _is_weight(name: str) -> bool:
    return name.endswith((".conv.weight", ".reduce.weight", ".expand.weight")) or name in (
        "hidden.weight",
        "classifier.weight",
    )


class _Walk:
    """Follows the tensors of a pass. `current` names the one at hand, `reached` says whether a gradient has
    to pass through it."""

    def __init__(self, record: PictureNet | None, way: Way, rows: int) -> None:
        self.record, self.way, self.rows = record, way, rows
        self.kept = Kept()
        self.group, self.current, self.reached = "", "input", False

    def learns(self, name: str) -> bool:
        return name in self.way.learned

    def keep(self, tensor: str, elements: int, bits: int = 8 * FLOAT) -> None:
        self.kept.keep(self.group, tensor, -(-elements * bits // 8))

    def unit(self, layer: Unit, side: int) -> int:
        after = layer.map_after(side)
        outputs = self.rows * layer.outputs * after * after
        if self.learns(f"{layer.name}.conv.weight"):
            self.keep(self.current, self.rows * layer.inputs * side * side)
            self.reached = True
        self.current = f"{layer.name}.conv"
        scale, shift = (self.learns(f"{layer.name}.norm.{part}") for part in ("weight", "bias"))
        if layer.name in self.way.batch_norms and (self.reached or scale or shift):
            self.keep(self.current, outputs)
            self.keep(f"{layer.name}.statistics", 2 * layer.outputs)
        elif scale:
            self.keep(self.current, outputs)
        self.reached = self.reached or scale or shift
        self.current = f"{layer.name}.norm"
        if layer.activation is not None:
            self.activation(layer.name, layer.activation, outputs)
        return after

    def activation(self, name: str, kind: str, elements: int) -> None:
        before, self.current = self.current, f"{name}.activation"
        if not self.reached:
            return
        if kind == "relu":
            self.keep(self.current, elements)
        elif name in self.way.masked:
            self.keep(f"{name}.mask", elements, bits=1)
        else:
            self.keep(before, elements)

    def squeeze(self, layer: Squeeze, side: int) -> None:
        below, x = self.reached, self.current
        wide, narrow = self.rows * layer.channels, self.rows * layer.inner
        gate = below
        if self.learns(f"{layer.name}.reduce.weight"):
            self.keep(f"{layer.name}.pooled", wide)
        gate = gate or any(self.learns(f"{layer.name}.reduce.{part}") for part in ("weight", "bias"))
        if gate or self.learns(f"{layer.name}.expand.weight"):
            self.keep(f"{layer.name}.inner", narrow)
        gate = gate or any(self.learns(f"{layer.name}.expand.{part}") for part in ("weight", "bias"))
        if gate:
            self.keep(f"{layer.name}.logits", wide)
            self.keep(x, wide * side * side)
        if below:
            self.keep(f"{layer.name}.gate", wide)
        self.reached, self.current = gate, f"{layer.name}.product"

    def block(self, block: Block, side: int) -> int:
        self.group = block.name
        below, came = self.reached, side
        for layer in block.layers():
            if isinstance(layer, Squeeze):
                self.squeeze(layer, side)
            else:
                side = self.unit(layer, side)
        beside = self.way.beside.get(block.name)
        if beside is not None:
            main, self.reached, self.current = self.reached, below, f"{block.name}.pooled"
            self.unit(beside.second, self.unit(beside.first, came // beside.pool))
            self.reached, self.current = self.reached or main, f"{block.name}.both"
        if block.residual:
            self.current = f"{block.name}.sum"
            self.reached = self.reached or below
        return side

    def top(self, side: int) -> dict[str, int]:
        assert self.record is not None
        self.group = "final"
        self.unit(self.record.final, side)
        self.current = "pooled"
        if self.record.hidden is not None:
            self.linear(self.record.hidden)
        self.group = "classifier"
        self.linear(self.record.classifier)
        if self.reached:
            self.group = "loss"
            self.keep("probabilities", self.rows * self.record.classifier.outputs)
            self.keep("count of labels", 1)
        return self.kept.nbytes

    def linear(self, layer: Linear) -> None:
        if self.learns(f"{layer.name}.weight"):
            self.keep(self.current, self.rows * layer.inputs)
        self.reached = self.reached or any(self.learns(f"{layer.name}.{part}") for part in ("weight", "bias"))
        self.current = layer.name
        if layer.activation is not None:
            self.activation(layer.name, layer.activation, self.rows * layer.outputs)


def largest_working_set(record: PictureNet, rows: int, start: int = 0, end: int | None = None) -> int:
    """Bytes of the three largest neighbouring maps of a pass from block `start` (0: from pictures) to block
    `end` (None: to the classifier): what comes into a layer, what leaves it, and what its norm makes of that.
    """
    side, most = record.size if start == 0 else map_into(record, start), 0
    units = [record.stem] if start == 0 else []
    for block in record.blocks[start:end]:
        units += [layer for layer in block.layers() if isinstance(layer, Unit)]
    for unit in units if end is not None else [*units, record.final]:
        after = unit.map_after(side)
        most = max(most, unit.inputs * side * side + 2 * unit.outputs * after * after)
        side = after
    return FLOAT * rows * most
