"""A delta: what a training changed of a network, and only that, as a pack.

It holds the new values of the tensors that learned (or of their parts), the names of the classes, the
choice of each slot, and the hash of the base. Laying it over its base runs what the training ran before its
first step (a new head, `Parameters.prepare`, `Precision.begin`), writes the values, and finishes. The base's
own files are not touched, so taking a delta away again is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from haversack.core import index
from haversack.core._record import DeltaEntry, PartEntry
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, PackWriter
from haversack.train._network import Array, Network, Slice, identity
from haversack.train._slots import Learned, Parameters, Precision
from haversack.train.networks._open import read_tokens

KIND_OF_TYPE = {"<f4": "f32", "<f2": "f16", "|i1": "i8", "|u1": "u8", "<i4": "i32"}
TYPE_OF_KIND = {kind: np.dtype(name) for name, kind in KIND_OF_TYPE.items()}


@dataclass(frozen=True)
class Delta:
    """A delta in memory: its pack's `entry`, `values` by tensor (or part), what was measured; `length`:
    tokens of a text that it learned to read (None: the network's usual number)."""

    entry: DeltaEntry
    values: Mapping[str, Array]
    measurements: tuple[Mapping[str, Any], ...] = ()
    length: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return sum(array.nbytes for array in self.values.values())


def taken(network: Network, learned: Learned, entry: DeltaEntry) -> Delta:
    """What `learned` names of `network`, as it is now; `entry` gets the parts."""
    tensors = network.tensors()
    values: dict[str, Array] = {}
    parts: dict[str, PartEntry] = {}
    for name in (*learned.wanted, *learned.moved):
        part = learned.wanted.get(name)
        values[name] = np.array(tensors[name]) if part is None else part.of(tensors[name])
        if part is not None:
            parts[name] = PartEntry(axis=part.axis, indices=part.indices)
    fields = {name: getattr(entry, name) for name in DeltaEntry.__struct_fields__}
    return Delta(DeltaEntry(**{**fields, "parts": parts}), values)


def write_delta(
    goal: Path, delta: Delta, measurements: list[dict[str, Any]], provenance: Mapping[str, Any]
) -> int:
    """Write `delta` as the pack `goal`; its bytes on storage. Raises UserError for a disk that is full."""
    with PackWriter(goal, "delta") as writer:
        for name, array in delta.values.items():
            values = np.ascontiguousarray(array)
            kind = KIND_OF_TYPE.get(values.dtype.str)
            if kind is None:
                raise ValueError(f"{name} is {values.dtype}, which a delta does not hold")
            data = values.reshape(-1).view(np.uint8).data
            writer.add_tensor(name, kind, array.shape, [data])
        writer.finish(
            {
                "plan": dict(delta.entry.slots),
                "delta": delta.entry,
                "measurements": measurements,
                "provenance": dict(provenance),
            }
        )
    return Pack.open(goal).nbytes


def read_delta(path: str | Path) -> Delta:
    """The delta in the pack `path`, its sums checked. Raises UserError for what is no delta,
    DamagedFileError for one whose values do not hold."""
    pack = Pack.open(path)
    entry = pack.record.delta
    if entry is None:
        raise UserError(
            f"{path} is a {pack.record.kind} pack and no delta; haversack train fit writes deltas.",
            field="delta",
            given=str(path),
        )
    pack.verify_once()
    values: dict[str, Array] = {}
    for name, tensor in pack.tensors.items():
        if tensor.kind not in TYPE_OF_KIND:
            raise DamagedFileError(pack.path, f"{name} is {tensor.kind}, which a delta does not hold")
        array = np.frombuffer(pack.bytes(name), TYPE_OF_KIND[tensor.kind]).reshape(tensor.shape)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DamagedFileError(pack.path, f"{name} holds numbers that are not finite")
        values[name] = array
    length = pack.record.provenance.get("length")
    length = length if type(length) is int else None
    return Delta(entry, values, tuple(pack.record.measurements), length)


def slots_of(entry: DeltaEntry) -> tuple[Parameters, Precision]:
    """The methods that changed the network. Raises UserError for one that this version does not have."""
    for slot in ("parameters", "precision"):
        if slot not in entry.slots:
            raise UserError(f"the delta names no method of the slot {slot}.", field="delta")
    parameters = cast(Parameters, index.create("train", "parameters", entry.slots["parameters"]))
    precision = cast(Precision, index.create("train", "precision", entry.slots["precision"]))
    return parameters, precision


def apply_delta(network: Network, delta: Delta, where: str = "the delta") -> None:
    """Lay `delta` over `network`, which must be its base, as opened. Raises UserError for another base, with
    both hashes, and for values that do not fit."""
    entry = delta.entry
    found = identity(network)
    if found != entry.base_sha256:
        raise UserError(
            f"{where} was made for {entry.base_name} ({entry.base_sha256[:12]}), and {network.name} is "
            f"another network ({found[:12]}); give the base that it was trained from.",
            field="delta",
            given=found,
            nearest=entry.base_sha256,
        )
    parameters, precision = slots_of(entry)
    if delta.length is not None:
        read_tokens(network, delta.length)
    if entry.new_head:
        network.new_head(entry.classes, entry.seed)
    learned = parameters.prepare(network, entry.seed)
    numbers = precision.begin(network, learned)
    tensors = network.tensors()
    _require_fit(where, learned, delta, tensors)
    for name, values in delta.values.items():
        part = learned.wanted.get(name)
        if part is None:
            tensors[name][...] = values
        else:
            part.put(tensors[name], values)
    numbers.finish()


def _require_fit(where: str, learned: Learned, delta: Delta, tensors: Mapping[str, Array]) -> None:
    wanted = {*learned.wanted, *learned.moved}
    if set(delta.values) != wanted:
        odd = sorted(wanted ^ set(delta.values))[0]
        raise UserError(
            f"{where} and its method {delta.entry.slots['parameters']} do not agree on what changed ({odd}); "
            "it was made by another version.",
            field="delta",
            given=odd,
        )
    for name, values in delta.values.items():
        part = learned.wanted.get(name)
        listed = delta.entry.parts.get(name)
        same = None if listed is None else Slice(listed.axis, listed.indices)
        shape = tensors[name].shape if part is None else part.of(tensors[name]).shape
        if same != part or values.shape != shape:
            raise UserError(
                f"{where} has {name} as {list(values.shape)} where its base has {list(shape)}, or another "
                "part of it; it was made by another version.",
                field="delta",
                given=name,
            )
