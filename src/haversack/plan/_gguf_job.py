"""Packing a GGUF file: its numbers kept as stored, or quantized again where the user asks for it.

Whatever is packed, the file first becomes a pack of its own in the scratch folder (tensor by tensor, so that
little memory is used): the *origin*, with every number as the file has it. The quality of the model as it
came is the origin's, and methods that quantize read it like a checkpoint. Where nothing is quantized again,
the origin is the pack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from haversack.core.budget import BudgetError, Failure
from haversack.core.errors import UserError, not_allowed
from haversack.core.memory import MemoryPlan
from haversack.core.pack import Pack, PackWriter
from haversack.formats._gguf_types import PLAIN
from haversack.kernels._matrix import LAYOUTS
from haversack.models._experts import Experts, experts_of, identity
from haversack.models._gguf import GgufModel, counted
from haversack.plan._candidates import Candidate, Plan
from haversack.plan._enumerate import CACHE_TYPES, Space, activation_types, held_as, predict, residencies
from haversack.plan._predict import Sizes, noise
from haversack.shrink._pipeline import PROCESS_MIB
from haversack.shrink._precision import StoredKind

KEPT = "as-stored"
"""The precision of a pack whose numbers are the file's."""
REQUANTIZED = ("int8", "f16")
GROUP = 32
AT_ONCE = 4 << 20
NOISE = {"int8": 2.3e-5, "f16": 2e-8}
"""Squared error over mean square that requantizing adds: even over a step, whose largest is 2.1 deviations
over 127, or that of f16."""


@dataclass(frozen=True)
class GgufJob:
    """What is to be done with a file: `kept` (its numbers stay; `requantize` says what becomes of types that
    are not run), or all of it is quantized again by a precision method."""

    model: GgufModel
    requantize: str | None
    kept: bool

    @classmethod
    def of(cls, path: str, precision: str | None, requantize: str | None) -> GgufJob:
        """Decide. Raises UserError, saying what to give, for what the file is not or lacks."""
        if requantize is not None and requantize not in REQUANTIZED:
            raise not_allowed("requantize", requantize, REQUANTIZED)
        model = GgufModel.open(path)
        quantized, blocking = model.quantized(), model.blocking()
        if precision == KEPT:
            precision = None
        if requantize is not None and not (blocking or (quantized and precision)):
            raise UserError(
                f"{path} has nothing to requantize: every tensor is of a type that runs as stored; leave "
                "--requantize out.",
                field="requantize",
                given=requantize,
            )
        if precision is not None and quantized and requantize is None:
            raise UserError(
                f"{path} is quantized already, {counted(model.file_names(quantized), quantized.values())}; "
                "leave --precision out to keep its numbers, or add --requantize f16 to quantize what they "
                "stand for again.",
                field="precision",
                given=precision,
                nearest=KEPT,
            )
        if requantize is None:
            model.refuse_blocking()
        return cls(model, requantize, bool(quantized) and precision is None)

    @property
    def experts(self) -> Experts | None:
        """The experts of the file's model, where it has any: they become records, matrix by matrix."""
        return experts_of(self.model.architecture)

    def files(self) -> dict[str, bytes | Path]:
        """What belongs into the pack beside the weights."""
        return {**self.model.texts()}

    def kinds(self) -> dict[str, StoredKind]:
        """How each tensor of the pack that keeps the numbers is stored."""
        return {name: self._kind(name, self.requantize or "f32") for name in self.model.tensors}

    def _kind(self, name: str, other: str) -> StoredKind:
        """As the file; types that are not run as `other`."""
        entry = self.model.tensors[name]
        if len(entry.shape) == 1:
            return StoredKind("f32")
        if entry.layout == "gguf-blocks":
            return StoredKind(other, GROUP if other == "int8" else None)
        return StoredKind(entry.kind, entry.group)

    def predicted(self, space: Space) -> tuple[list[Candidate], dict[Plan, float]]:
        """Every way to run the pack that keeps the numbers, and the noise each adds."""
        kinds = self.kinds()
        found = Sizes.of(space.architecture, kinds)
        types = {kind.kind for kind in kinds.values()}
        added = NOISE.get(self.requantize or "", 0.0)
        candidates, noises = [], {}
        records = "matrices" if space.expert_store and self.experts is not None else None
        for activations in activation_types(types, space.activations):
            for residency in residencies(types, space.residency, records):
                for cache_type in CACHE_TYPES:
                    if space.cache_type in (None, cache_type):
                        plan = Plan(KEPT, activations=activations, residency=residency, cache_type=cache_type)
                        noises[plan] = noise(added, activations, cache_type)
                        held = held_as(space, plan, kinds)
                        candidates.append(predict(space, plan, found, noises[plan], held))
        if not candidates:
            raise not_allowed("activations", space.activations, activation_types(types, None))
        return candidates, noises

    def memory_plan(self, work_ram_mib: float | None) -> MemoryPlan:
        """What packing holds at most where the numbers are kept. Raises BudgetError beyond `work_ram_mib`."""
        largest = max(entry.nbytes for entry in self.model.tensors.values())
        plan = MemoryPlan(
            (
                ("the largest tensor", largest),
                ("rows on their way", 6 * 4 * AT_ONCE),
                ("program and buffers", PROCESS_MIB << 20),
            )
        )
        if work_ram_mib is not None and plan.total_mib > work_ram_mib:
            failure = Failure("work_ram_mib", work_ram_mib, float(np.ceil(plan.total_mib)), "MiB")
            raise BudgetError([failure], "packing this file")
        return plan

    def write(self, path: Path, *, origin: bool) -> Pack:
        """The file as a pack: the origin, or the pack that keeps the numbers."""
        everything = origin and not self.kept
        with PackWriter(path) as writer:
            if self.experts is not None:
                told = identity(self.model, self.model.architecture)
                writer.keep_experts(told, self.experts.part_owners)
            for name, entry in self.model.tensors.items():
                kind = self._kind(name, "f32" if origin else self.requantize or "f32")
                if everything and kind.kind not in PLAIN:
                    kind = StoredKind("f32")
                layout = LAYOUTS[kind.kind]
                writer.add_tensor(name, kind.kind, entry.shape, self._pieces(name, kind), kind.group, layout)
            for name, data in self.files().items():
                writer.add_file(name, data)
            writer.finish({"architecture": self.model.config, "plan": Plan(KEPT).record()})
        return Pack.open(path)

    def _pieces(self, name: str, kind: StoredKind) -> Iterator[Any]:
        entry = self.model.tensors[name]
        if (entry.kind, entry.group) == (kind.kind, kind.group) and entry.layout != "gguf-blocks":
            yield self.model.bytes(name)
            return
        rows = entry.shape[0]
        if len(entry.shape) == 1:
            yield np.ascontiguousarray(self.model.values(name), np.float32).data
            return
        heads = self.model.places[name].heads
        unit = int(np.lcm(16, rows // heads if heads else 1))
        step = max(unit, AT_ONCE // entry.shape[1] // unit * unit)
        for start in range(0, rows, step):
            values = self.model.values(name, start, min(start + step, rows))
            if not np.isfinite(values).all():
                raise UserError(
                    f"{self.model.path}: {self.model.places[name].name} holds weights that are not finite.",
                    field="model",
                    given=name,
                )
            yield _stored(values, kind)


def _stored(values: Any, kind: StoredKind) -> Any:
    """Rows f32 as `kind`: bytes of the kernels' layout."""
    from haversack.kernels import Matrix, pack_int8

    if kind.kind == "int8":
        return pack_int8(*round_int8(values), GROUP).data
    return Matrix.from_array(values, kind.kind).data


def round_int8(values: Any) -> tuple[Any, Any]:
    """Codes int8 [rows, columns] and scales f32 [rows, groups] of f32 values: nearest, the largest magnitude
    of every 32 on 127, scales exact in f16."""
    rows, columns = values.shape
    parts = values.reshape(rows, columns // GROUP, GROUP)
    scales = (np.abs(parts).max(axis=2) / np.float32(127)).astype(np.float16).astype(np.float32)
    safe = np.where(scales == 0, np.float32(1), scales)
    codes = np.clip(np.rint(parts / safe[:, :, None]), -127, 127) * (scales != 0)[:, :, None]
    return codes.astype(np.int8).reshape(rows, columns), scales


class Origin:
    """The origin pack as what a search packs from: its folder, config and tensors."""

    def __init__(self, pack: Pack, config: Mapping[str, Any]) -> None:
        self.pack, self.config = pack, config
        self.path, self.tensors, self.files = pack.path, pack.tensors, pack.files

    def bytes(self, name: str) -> memoryview:
        """See TensorSource."""
        return self.pack.bytes(name)
