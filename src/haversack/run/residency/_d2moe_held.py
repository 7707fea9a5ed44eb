"""D2MoE's weights while a model runs: what is resident, the store, the buffer of planes and the schedule."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from haversack.core.errors import UserError, not_allowed
from haversack.core.pack import Pack, TensorSource
from haversack.core.storage import aligned_buffer
from haversack.kernels.nested import Plane
from haversack.models._architecture import Architecture
from haversack.models._experts import Experts, experts_of
from haversack.run._eviction import eviction
from haversack.run._expert_buffer import ExpertBuffer, Going
from haversack.run._forms import forms_of
from haversack.run._levels import ROUTER_NAME, Levels, Uniform
from haversack.run._shelf import Item as Shelved
from haversack.run._shelf import Key, Shelf
from haversack.run._source import traits_of
from haversack.run._weights import Weights, nbytes
from haversack.run.forms.nested import BoundNested, names_of, plane_of
from haversack.run.residency._edgemoe_held import DEFAULT_EXPERTS, Room, Sized
from haversack.run.residency._store_held import Loaded, StoreHeld
from haversack.run.residency.d2moe import Item, Planes, demand, schedule, waves

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


class PlanesHeld(StoreHeld):
    """The experts' planes in a buffer of `budget` bytes; `levels` chooses levels where the method names bits.
    See StoreHeld.
    """

    def __init__(self, fitted: Fitted, budget: int) -> None:
        super().__init__(fitted, budget, fitted.rooms)
        experts = fitted.experts
        method: Any = fitted.method
        self.method = method
        self.levels: Levels | None = Uniform(method.bits - fitted.first) if method.bits else None
        self.nested = not fitted.entry.get("copies")
        self.last = len(fitted.parts) - 1
        layers, planes = len(experts.blocks), len(fitted.parts)
        recipe: Any = Planes(layers, planes)
        if method.eviction != "planes":
            recipe = eviction("lru" if method.eviction == "none" else method.eviction, layers, experts.count)
        buffer = ExpertBuffer(
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
        self.opened(buffer)

    def part_of(self, key: Key) -> tuple[str, Iterable[str]]:
        """See StoreHeld."""
        layer, expert, plane = key
        part = self.fitted.parts[plane]
        return part if plane else "", [f"{name}.{part}" for name in self.experts.tensors[layer, expert]]

    def _load(self, key: Key, leaving: list[Shelved], going: Going | None) -> Loaded:
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
        return Loaded(planes, buffer)

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
        """See StoreHeld. `asked` counts planes."""
        return {
            **super().record(seconds),
            "schedule": self.method.schedule,
            "plane_nbytes": list(self.plane_nbytes),
            "mean_bits": round(self.mean_bits, 4),
        }

    def words(self, seconds: float | None = None) -> str:
        """The same in two lines."""
        found = self.record(seconds)
        read = ", ".join(
            f"{count / 2**20:.1f} of {self.fitted.parts[plane]}"
            for plane, count in enumerate(self.plane_nbytes)
        )
        return (
            f"experts: {found['asked']} planes used, {found['hits']} were there, {found['demands']} loaded "
            f"when chosen, {found['mean_bits']:.2f} bits a token\n{self.storage_words(found, f' ({read})')}"
        )
