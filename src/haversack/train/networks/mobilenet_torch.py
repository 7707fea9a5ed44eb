"""A network of inverted residual blocks in PyTorch, as the slots of stage train want a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from haversack.core.errors import UserError
from haversack.models.vision import _counts
from haversack.models.vision._counts import Way
from haversack.models.vision._inverted_residual_torch import ACTIVATIONS, PictureModule
from haversack.models.vision._lean_torch import Norm
from haversack.models.vision._record import PictureNet, statistic
from haversack.train._meter_torch import SavedTensors
from haversack.train._network import F32, Array, Batch, Features, Form, Pictures, Role, Wanted
from haversack.train.parameters.tinytl_torch import LiteResidual

PIECE = 64
"""Rows of a pass that keeps nothing."""
BELOW = 8
"""Rows that go at once through blocks below all that learn, whose maps are large."""
ENGINE_MIB = 40
"""What PyTorch's kernels allocate for themselves in the first pass [measured on x86-64]."""


class PictureNetwork:
    """See train/_network.py, Network. `start`: how many of the lowest blocks were run beforehand; the inputs
    are then their maps and not pictures (`above`)."""

    def __init__(self, name: str, module: PictureModule, start: int = 0) -> None:
        self.name, self.module, self.start = name, module, start
        self.classes = module.record.labels
        self.saved_nbytes = 0

    @classmethod
    def of(cls, name: str, record: PictureNet, tensors: Mapping[str, F32]) -> Self:
        """From a record and its tensors, which are copied."""
        module = PictureModule(record)
        module.load(tensors)
        return cls(name, module)

    @property
    def record(self) -> PictureNet:
        """What the network is made of."""
        return self.module.record

    @property
    def form(self) -> Form:
        """See Network."""
        record = self.record
        if self.start == 0:
            return Pictures(record.size, record.size)
        side = _counts.map_into(record, self.start)
        return Features((record.inputs_of(self.start), side, side))

    def tensors(self) -> dict[str, Array]:
        """See Network."""
        return self.module.arrays()

    def roles(self) -> dict[str, Role]:
        """See Network."""
        return {name: role_of(name) for name in self.module.tensors()}

    @property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """See Network: `stem`, `blocks.0` and so on, `final` with the hidden layer, `classifier`."""
        found: dict[str, list[str]] = {name: [] for name in self.record.groups()}
        for name in self.module.tensors():
            parts = name.split(".")
            place = ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]
            found["final" if place == "hidden" else place].append(name)
        return {name: tuple(held) for name, held in found.items()}

    def new_head(self, classes: tuple[str, ...], seed: int) -> None:
        """See Network: weights even within 1 / sqrt(inputs), biases 0."""
        record = self.module.record = self.record.with_classes(classes)
        head = nn.Linear(record.classifier.inputs, len(classes))
        bound = record.classifier.inputs**-0.5
        draw = np.random.default_rng([seed, 0xC1A55])
        drawn = draw.uniform(-bound, bound, (len(classes), record.classifier.inputs))
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(drawn.astype(np.float32)))
            head.bias.zero_()
        self.module.classifier = head
        self.classes = classes

    def above(self, blocks: int) -> PictureNetwork:
        """The same network, in the same memory, whose inputs are maps that come into block `blocks`."""
        return PictureNetwork(self.name, self.module, blocks)

    def maps(self, inputs: Array, blocks: int) -> F32:
        """f32 [n, channels, side, side]: what comes into block `blocks` for these inputs, as in use."""
        return self._below(inputs, blocks).numpy()

    def lowest(self, wanted: Wanted) -> int:
        """How many blocks lie below all of `wanted`; 0 where the first convolution learns."""
        groups = list(self.blocks)
        place = {name: groups.index(group) for group, names in self.blocks.items() for name in names}
        above = min((place[name] for name in wanted), default=len(groups)) - 1
        return max(self.start, min(above, len(self.record.blocks)))

    def logits(self, inputs: Array) -> F32:
        """See Network."""
        pieces = []
        with torch.no_grad():
            for first in range(0, len(inputs), PIECE):
                x = self._entered(inputs[first : first + PIECE])
                pieces.append(self.module(x, self.start).numpy())
        return np.concatenate(pieces)

    def loss(self, batch: Batch) -> float:
        """See Network."""
        logits = torch.from_numpy(self.logits(batch.inputs))
        return float(functional.cross_entropy(logits, torch.from_numpy(batch.labels)))

    def gradients(self, batch: Batch, wanted: Wanted) -> tuple[float, dict[str, F32]]:
        """See Network. Raises UserError for one row where a norm measures its batch."""
        self._refuse_one_row(len(batch), wanted)
        held = self.module.tensors()
        for name, tensor in held.items():
            if not statistic(name):
                tensor.requires_grad_(name in wanted)
        start, labels = self.lowest(wanted), torch.from_numpy(batch.labels)
        x = self._entered(batch.inputs) if start == self.start else self._below(batch.inputs, start)
        beside = [*held.values(), labels, *([x] if start == self.start > 0 else [])]
        with torch.enable_grad(), SavedTensors(beside) as saved:
            loss = functional.cross_entropy(self.module(x, start), labels)
        self.saved_nbytes = saved.nbytes
        found = torch.autograd.grad(loss, [held[name] for name in wanted])
        made = {}
        for (name, part), gradient in zip(wanted.items(), found, strict=True):
            array: Array = gradient.numpy()
            made[name] = array if part is None else part.of(array)
        return float(loss.detach()), made

    def plan(self, wanted: Wanted, rows: int) -> tuple[tuple[str, int], ...]:
        """See Network."""
        record, start = self.record, self.lowest(wanted) if wanted else self.start
        count = rows if wanted else min(rows, PIECE)
        working = _counts.largest_working_set(record, count, start) * (2 if wanted else 1)
        if start > self.start:
            working = max(working, _counts.largest_working_set(record, min(rows, BELOW), self.start, start))
        lines = [("working set", working), ("engine", ENGINE_MIB << 20)]
        if wanted:
            kept = _counts.kept(record, self.way(wanted), rows, start=self.start)
            lines.insert(0, ("saved for the way back", sum(kept.values()) - self._entering(wanted, rows)))
        return tuple(lines)

    def way(self, wanted: Wanted) -> Way:
        """How the network learns `wanted` as its layers are now."""
        units = self.module.units()
        measuring = {name for name, unit in units.items() if getattr(unit.norm, "measures", False)}
        plain = (*ACTIVATIONS.values(), nn.Identity)
        masked = {name for name, unit in units.items() if not isinstance(unit.act, plain)}
        if not isinstance(self.module.hidden_act, plain):
            masked.add("hidden")
        beside = {
            block.block.name: block.beside.record
            for block in self.module.inverted_residuals()
            if isinstance(block.beside, LiteResidual)
        }
        return Way(frozenset(wanted), frozenset(measuring), frozenset(masked), beside)

    def _entered(self, inputs: Array) -> Tensor:
        if self.start == 0:
            return self.module.normed(inputs)
        return torch.from_numpy(np.ascontiguousarray(inputs, np.float32))

    def _below(self, inputs: Array, blocks: int) -> Tensor:
        pieces = []
        with torch.no_grad():
            for first in range(0, len(inputs), BELOW):
                x = self._entered(inputs[first : first + BELOW])
                pieces.append(self.module.maps(x, self.start, blocks))
        return torch.cat(pieces)

    def _entering(self, wanted: Wanted, rows: int) -> int:
        """Bytes of inputs among what the counts keep: maps that the caller holds anyway."""
        if self.start == 0:
            return 0
        blocks = self.record.blocks
        first = next(blocks[self.start].layers()) if self.start < len(blocks) else self.record.final
        if f"{first.name}.conv.weight" not in wanted:
            return 0
        form = self.form
        assert isinstance(form, Features)
        return 4 * rows * int(np.prod(form.shape))

    def _refuse_one_row(self, rows: int, wanted: Wanted) -> None:
        if rows > 1:
            return
        for name, module in self.module.named_modules():
            if isinstance(module, Norm) and module.measures and f"{name}.weight" in wanted:
                raise UserError(
                    f"a step of one row gives {name} no statistics to measure; use rows of 2 or more, or a "
                    "method that leaves statistics as they are (mobiletl:last_norm=frozen).",
                    field="rows",
                    given=rows,
                    nearest=2,
                )


def role_of(name: str) -> Role:
    """See Network.roles."""
    if statistic(name):
        return "statistic"
    if name.endswith(".norm.weight"):
        return "scale"
    return "bias" if name.endswith(".bias") else "weight"
