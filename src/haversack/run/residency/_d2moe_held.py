"""D2MoE's weights while a model runs: what is resident, the store, the buffer of planes and the schedule."""

from __future__ import annotations

import atexit
import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from haversack.core._record import STORE_NAME
from haversack.core.errors import DamagedFileError, UserError, not_allowed
from haversack.core.expert_store import ExpertRecord, ExpertStore
from haversack.core.pack import Pack, TensorSource
from haversack.core.storage import SlowStorage, aligned_buffer
from haversack.kernels.nested import Plane
from haversack.models._architecture import Architecture
from haversack.models._experts import Experts, experts_of, identity
from haversack.run._eviction import eviction
from haversack.run._expert_buffer import ExpertBuffer, Going
from haversack.run._forms import forms_of, stored_names
from haversack.run._levels import ROUTER_NAME, Levels, Uniform
from haversack.run._residency import AllHeld
from haversack.run._shelf import Item as Shelved
from haversack.run._shelf import Key, Shelf
from haversack.run._source import traits_of
from haversack.run._weights import Weights, nbytes
from haversack.run.forms.nested import BoundNested, names_of, plane_of
from haversack.run.residency._edgemoe_held import DEFAULT_EXPERTS, Room, Sized
from haversack.run.residency.copied import Copy
from haversack.run.residency.d2moe import Item, Planes, demand, schedule, waves
from haversack.run.residency.streamed import drop_cached

if TYPE_CHECKING:
    from haversack.run.layers.mixture import Routing
    from haversack.run.residency.d2moe import D2Moe


class SizedPlanes(Sized):
    """The method for planes of known sizes; keys are (layer, expert, plane). `extra` bytes are resident
    beside the weights."""

    extra = 0

    def _experts(self) -> dict[Key, int]:
        found: dict[Key, int] = {}
        for key, room in self.rooms.items():
            found[key[:2]] = found.get(key[:2], 0) + room.held
        return found

    @property
    def least(self) -> int:
        """Bytes of the buffer below which the largest expert, taken alone, does not fit."""
        return max(self._experts().values())

    def buffer_nbytes(self, limit: int | None, resident: int) -> int:
        """Bytes of the buffer, where `limit` are left for all weights, `resident` of which are taken."""
        everything = sum(room.held for room in self.rooms.values())
        wanted = everything
        if self.method.buffer_kib >= 0:
            wanted = self.method.buffer_kib * 1024
        elif limit is None:
            wanted = DEFAULT_EXPERTS * self.least
        if limit is not None:
            wanted = min(wanted, limit - resident)
        return max(self.least, min(wanted, everything))

    def resident_nbytes(self, total: int) -> int:
        """See Sized."""
        return super().resident_nbytes(total) + self.extra


class Fitted(SizedPlanes):
    """The method for one model."""

    def __init__(
        self, method: D2Moe, source: TensorSource, architecture: Architecture, experts: Experts
    ) -> None:
        self.source, self.architecture, self.experts = source, architecture, experts
        held = forms_of(source)
        kinds = {
            tuple(held[name].get(field) for field in ("form", "first", "last", "copies"))
            if name in held
            else ()
            for names in experts.tensors.values()
            for name in names
        }
        if len(kinds) > 1 or not kinds or next(iter(kinds))[0] != "nested":
            raise UserError(
                f"{source.path} has experts whose bits are not nested; pack the model with --precision "
                "d2moe, or use streamed:edgemoe.",
                field="residency",
                given=str(method),
                nearest="streamed:edgemoe",
            )
        first = next(iter(experts.tensors.values()))[0]
        self.entry = held[first]
        self.parts = names_of(self.entry)
        self.first = int(self.entry["first"])
        widths = range(self.first, self.first + len(self.parts))
        if method.bits and method.bits not in widths:
            raise not_allowed("bits", method.bits, widths)
        rooms: dict[Key, Room] = {}
        for key, names in experts.tensors.items():
            for plane, part in enumerate(self.parts):
                entries = [source.tensors[f"{name}.{part}"] for name in names]
                rooms[*key, plane] = Room.of(sorted(entries, key=lambda entry: entry.offset))
        super().__init__(method, rooms, experts.chosen, nbytes(source, experts.owners))
        if isinstance(source, Pack) and ROUTER_NAME in source.record.files:
            self.extra = 2 * source.record.files[ROUTER_NAME].size

    @classmethod
    def of(cls, method: D2Moe, source: TensorSource, architecture: Architecture) -> Self:
        """Raises UserError for a model whose experts lie in no store, or not in planes."""
        experts = experts_of(architecture)
        if experts is None or "expert-store:experts" not in traits_of(source):
            raise UserError(
                f"{source.path} has no expert store; pack the model: haversack pack MODEL --device DEVICE "
                "--precision d2moe -o NAME.",
                field="residency",
                given=str(method),
                nearest="streamed",
            )
        return cls(method, source, architecture, experts)

    def open(self, limit: int | None) -> Any:
        """See D2Moe."""
        total = nbytes(self.source, self.architecture.tensors())
        return PlanesHeld(self, self.buffer_nbytes(limit, self.resident_nbytes(total)))


class _Loaded(dict[str, Plane]):
    """Matrix name -> its plane, and the memory that the planes lie in."""

    __slots__ = ("buffer",)

    def __init__(self, planes: Mapping[str, Plane], buffer: mmap.mmap) -> None:
        super().__init__(planes)
        self.buffer = buffer


class PlanesHeld(AllHeld):
    """Everything but the experts bound once, and the experts' planes in a buffer of `budget` bytes.

    `top` of a model's weights is AllHeld's; `levels` chooses levels where the method names bits. See Held,
    Experts and Telling.
    """

    told = "experts"

    def __init__(self, fitted: Fitted, budget: int) -> None:
        source, architecture, experts = fitted.source, fitted.architecture, fitted.experts
        assert isinstance(source, Pack)
        self.fitted, self.budget, self.experts = fitted, budget, experts
        method: Any = fitted.method
        self.method = method
        self.levels: Levels | None = Uniform(method.bits - fitted.first) if method.bits else None
        self.nested = not fitted.entry.get("copies")
        self.last = len(fitted.parts) - 1
        self._layers = {block: layer for layer, block in enumerate(experts.blocks)}
        entries = [
            source.tensors[name]
            for name in stored_names(source, architecture.tensors())
            if source.tensors[name].file != STORE_NAME
        ]
        (file,) = {entry.file for entry in entries}
        copy = Copy(source.path / file, entries)
        super().__init__(source, architecture, copy.bytes, without=experts.owners)
        drop_cached(source.path / STORE_NAME)
        storage = SlowStorage(method.mb_s) if method.mb_s else None
        self.store = ExpertStore.open(source.path / STORE_NAME, storage)
        try:
            self.store.require_model(identity(source, architecture))
            self._records = {key: self._record(key) for key in fitted.rooms}
        except BaseException:
            self.store.close()
            raise
        layers, planes = len(experts.blocks), len(fitted.parts)
        recipe: Any = Planes(layers, planes)
        if method.eviction != "planes":
            recipe = eviction("lru" if method.eviction == "none" else method.eviction, layers, experts.count)
        self.buffer = ExpertBuffer(
            Shelf(budget, recipe, keeps=method.eviction != "none"),
            {key: room.held for key, room in fitted.rooms.items()},
            self._load,
            stored={key: record.nbytes for key, record in self._records.items()},
            timeout_s=method.timeout_s,
            names=self._records.__getitem__,
        )
        self.plane_nbytes = [0] * planes
        """Bytes that were read of each plane."""
        self.tokens = np.zeros(planes, np.int64)
        """How often each level was read, by tokens and experts."""
        self._sizes: list[dict[Item, int]] = [{} for _ in range(layers)]
        for (layer, expert, plane), room in fitted.rooms.items():
            self._sizes[layer][expert, plane] = room.held
        self._waves: list[list[Item]] = []
        atexit.register(self.close)

    def _record(self, key: Key) -> ExpertRecord:
        layer, expert, plane = key
        block, part = self.experts.blocks[layer], self.fitted.parts[plane]
        record = self.store.records.get((block, expert, "" if plane == 0 else part))
        if record is None:
            raise DamagedFileError(self.store.path, f"{part} of expert {expert} of layer {block} is missing")
        names = [f"{name}.{part}" for name in self.experts.tensors[layer, expert]]
        needed = {name: self.fitted.source.tensors[name] for name in names}
        if {entry.name: entry for entry in record.entries()} != needed:
            raise DamagedFileError(self.store.path, f"{record} is not the one that pack.json describes")
        return record

    def _load(self, key: Key, leaving: list[Shelved], going: Going | None) -> _Loaded:
        """Read a plane; runs in the reading thread. Memory of the right size is used again."""
        record = self._records[key]
        fresh_size = (-(-record.nbytes // mmap.PAGESIZE) + 1) * mmap.PAGESIZE
        buffer = next((item.value.buffer for item in leaving if len(item.value.buffer) == fresh_size), None)
        leaving.clear()
        if buffer is None:
            buffer = aligned_buffer(record.nbytes)
        view = self.store.read(record, buffer, going)
        forms, planes = forms_of(self.fitted.source), {}
        for stored in record.tensors:
            name = stored.name.rpartition(".")[0]
            planes[name] = plane_of(forms[name], key[2], view[stored.start : stored.start + stored.nbytes])
        self.plane_nbytes[key[2]] += record.nbytes
        return _Loaded(planes, buffer)

    def routed(self, routing: Routing) -> None:
        """See Experts: count what the step needs, order it, and begin to read."""
        layer = self._layers[routing.block]
        levels = routing.levels
        if levels is None:
            levels = np.full(routing.experts.shape, self.last, np.int32)
        planes = len(self.fitted.parts)
        self.tokens += np.bincount(levels.reshape(-1), minlength=planes)
        needs = demand(routing.experts, levels, self.experts.count, planes, self.nested)
        there = self.buffer.shelf.items
        with self.buffer.reader.changed:
            resident = {item for item in self._sizes[layer] if (layer, *item) in there}
        parts = waves(needs, self._sizes[layer], self.budget, resident)
        self._waves = [schedule(part, self.method.schedule, resident) for part in parts]
        self._need(layer)

    def _need(self, layer: int) -> None:
        if self._waves:
            self.buffer.need(layer, [(layer, *item) for item in self._waves[0]])

    def want(self, block: int, ids: Sequence[int] = (), priority: int = 0) -> None:
        """Nothing to do: `routed` knows the planes."""

    def arriving(self, block: int) -> Iterator[tuple[int, int, Mapping[str, Plane]]]:
        """(expert, level, matrix name -> plane) of all that `routed` counted for `block`, as they are there;
        an expert's planes stay valid until its last one was taken.

        The next wave is asked for when all of this one is there, so that it is read while this one computes.
        """
        layer = self._layers[block]
        with ExitStack() as everything:
            while self._waves:
                wave = self._waves.pop(0)
                last = {expert: plane for expert, plane in wave}
                pins: dict[int, ExitStack] = {}
                for index, (expert, plane) in enumerate(wave):
                    if expert not in pins:
                        pins[expert] = everything.enter_context(ExitStack())
                    planes: Any = pins[expert].enter_context(self.buffer.use((layer, expert, plane)))
                    if index + 1 == len(wave):
                        self._need(layer)
                    yield expert, plane, planes
                    if last[expert] == plane:
                        del planes
                        pins[expert].close()

    @contextmanager
    def expert(self, block: int, expert: int) -> Iterator[Weights]:
        """See Experts: all planes of one expert."""
        layer = self._layers[block]
        with ExitStack() as stack:
            found = [
                stack.enter_context(self.buffer.use((layer, expert, plane)))
                for plane in range(len(self.fitted.parts))
            ]
            names = self.experts.tensors[layer, expert]
            yield {
                name: BoundNested([planes[name] for planes in found], self.fitted.first, self.nested)
                for name in names
            }

    @property
    def mean_bits(self) -> float:
        """Of all that was read by tokens; 0 before anything was."""
        total = int(self.tokens.sum())
        widths = self.fitted.first + np.arange(len(self.tokens))
        return float(self.tokens @ widths) / total if total else 0.0

    def record(self, seconds: float | None = None) -> dict[str, Any]:
        """What happened, as `run --json` prints it; see EdgeMoE's. `asked` counts planes."""
        counts = self.buffer.statistics
        found = {
            **counts.record(),
            "bytes_read": self.store.bytes_read,
            "predict": "none",
            "eviction": self.method.eviction,
            "schedule": self.method.schedule,
            "buffer_nbytes": self.budget,
            "plane_nbytes": list(self.plane_nbytes),
            "mean_bits": round(self.mean_bits, 4),
        }
        least, busy = self.buffer.least_bytes(), self.buffer.reader.busy_s
        if seconds is not None and least is not None and busy > 0:
            rate = self.store.bytes_read / busy
            bound = max(least / rate, seconds - counts.stall_s)
            found |= {"bound_s": round(bound, 4), "times_bound": round(seconds / bound, 3)}
        return found

    def words(self, seconds: float | None = None) -> str:
        """The same in two lines."""
        found = self.record(seconds)
        bound = f"; {found['times_bound']:.2f} times the storage's bound" if "times_bound" in found else ""
        read = ", ".join(
            f"{count / 2**20:.1f} of {self.fitted.parts[plane]}"
            for plane, count in enumerate(self.plane_nbytes)
        )
        return (
            f"experts: {found['asked']} planes used, {found['hits']} were there, {found['demands']} loaded "
            f"when chosen, {found['mean_bits']:.2f} bits a token\n"
            f"storage: {found['bytes_read'] / 2**20:.1f} MiB read ({read}), {found['stall_s']:.2f} s waited, "
            f"buffer {found['peak_nbytes'] / 2**20:.1f} of {self.budget / 2**20:.1f} MiB{bound}"
        )

    def close(self) -> None:
        """End the reading thread and close the store."""
        atexit.unregister(self.close)
        if self.buffer.close():
            self.store.close()
        super().close()
