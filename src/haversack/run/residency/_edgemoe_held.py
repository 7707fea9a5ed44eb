"""EdgeMoE's weights while a model runs: what is resident, the store, the buffer and the guesses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.core.expert_store import TENSOR_STEP, ExpertRecord, StoredTensor
from haversack.core.pack import Pack, TensorEntry, TensorSource
from haversack.core.storage import BLOCK, aligned_buffer
from haversack.kernels import Matrix
from haversack.kernels._narrow import widen_int2
from haversack.models._architecture import Architecture
from haversack.models._experts import PARTS, Experts, experts_of, identity
from haversack.run._eviction import eviction
from haversack.run._expert_buffer import ExpertBuffer, Going
from haversack.run._forms import assemble, forms_of, stored_names
from haversack.run._paths import PROFILE_NAME, Profile
from haversack.run._prediction import GateAhead, NoGuess, Paths, Predictor
from haversack.run._products import multiply
from haversack.run._residency import CHOSEN, GUESSED, Lines
from haversack.run._shelf import Item, Key, Shelf
from haversack.run._source import traits_of
from haversack.run._weights import Weights, nbytes, tensor
from haversack.run.residency._store_held import Loaded, StoreHeld
from haversack.run.residency.copied import HUGE, PIECE

if TYPE_CHECKING:
    from haversack.run.layers.mixture import Routing

F32 = npt.NDArray[np.float32]

DEFAULT_EXPERTS = 10
"""The paper's buffer, where no budget says how large it may be."""
RECORD_SPARE = 4096
"""Python's own objects for an expert in memory, and for its entry in the store's header."""


@dataclass(frozen=True)
class Room:
    """What one expert takes: `held` bytes while it is in memory, `staging` more while it is read (int2: as
    stored, and a part of it while it is widened).
    """

    held: int
    staging: int

    @classmethod
    def of(cls, entries: Sequence[TensorEntry]) -> Self:
        """Of the tensors of one record."""
        span = entries[-1].offset + entries[-1].nbytes - entries[0].offset
        return cls.sized(span, [(entry.kind, entry.nbytes) for entry in entries])

    @classmethod
    def sized(cls, span: int, parts: Iterable[tuple[str, int]]) -> Self:
        """Of a record of `span` bytes with parts (kind, bytes)."""
        parts = list(parts)
        pages = -(-span // BLOCK) * BLOCK
        if not any(kind == "int2" for kind, _ in parts):
            return cls(pages + RECORD_SPARE, 0)
        wide = sum(count * (2 if kind == "int2" else 1) for kind, count in parts)
        return cls(-(-wide // BLOCK) * BLOCK + RECORD_SPARE, 2 * pages + BLOCK)


class Sized:
    """The method for experts of known sizes: `rooms` of each, of which a token takes `chosen` in a layer;
    `cold` are their bytes as weights are counted. `unbounded`: how many are kept where nothing says how many.
    """

    unbounded = DEFAULT_EXPERTS

    def __init__(self, method: Any, rooms: Mapping[Key, Room], chosen: int, cold: int) -> None:
        self.method = method
        self.rooms = rooms
        self.chosen = chosen
        self.cold = cold

    @property
    def name(self) -> str:
        """As the method's."""
        return str(self.method.name)

    @property
    def staging(self) -> int:
        """Bytes that an expert on its way takes beside its place."""
        return max((room.staging for room in self.rooms.values()), default=0)

    @property
    def least(self) -> int:
        """Bytes of the buffer below which no layer's choice fits."""
        layers: dict[int, list[int]] = {}
        for key, room in self.rooms.items():
            layers.setdefault(key[0], []).append(room.held)
        return max(sum(sorted(held, reverse=True)[: self.chosen]) for held in layers.values())

    def buffer_nbytes(self, limit: int | None, resident: int) -> int:
        """Bytes of the buffer, where `limit` are left for all weights, `resident` of which are taken."""
        everything = sum(room.held for room in self.rooms.values())
        largest = max(room.held for room in self.rooms.values())
        if self.method.buffer_kib >= 0:
            wanted = int(self.method.buffer_kib) * 1024
        elif limit is None:
            wanted = self.unbounded * largest
        else:
            wanted = everything
        if limit is not None:
            wanted = min(wanted, limit - resident - self.staging)
        return max(self.least, min(wanted, everything))

    def resident_nbytes(self, total: int) -> int:
        """Bytes of what is no expert, where all weights have `total`, and of books about the experts."""
        hot = total - self.cold
        return hot + HUGE + min(2 * PIECE, hot) + len(self.rooms) * RECORD_SPARE

    def planned(
        self, blocks: Sequence[int], top: int, files: int = 1, limit: int | None = None, aside: int = 0
    ) -> Lines:
        """What is resident, and the buffer that `limit` leaves (None: as large as without a budget)."""
        resident = self.resident_nbytes(sum(blocks) + top)
        buffer = self.buffer_nbytes(limit, resident)
        return (
            ("weights, all but the experts", resident),
            ("weights, experts in memory", buffer + self.staging),
        )


class Fitted(Sized):
    """The method for one model. `units`: what comes and goes, with its tensors: `experts`' whole ones."""

    def __init__(
        self, method: Any, source: TensorSource, architecture: Architecture, experts: Experts
    ) -> None:
        self.source = source
        self.architecture = architecture
        self.experts = experts
        self.units = self.units_of(experts)
        rooms: dict[Key, Room] = {}
        for key, names in self.units.items():
            entries = [source.tensors[name] for name in stored_names(source, names)]
            rooms[key] = Room.of(sorted(entries, key=lambda entry: entry.offset))
        parts = len(rooms) // len(experts.tensors)
        super().__init__(method, rooms, parts * experts.chosen, nbytes(source, experts.owners))

    @staticmethod
    def units_of(experts: Experts) -> Mapping[Key, tuple[str, ...]]:
        """What comes and goes, with its tensors."""
        return experts.tensors

    @classmethod
    def of(cls, method: Any, source: TensorSource, architecture: Architecture) -> Self:
        """Raises UserError for a model whose experts lie in no store."""
        experts = experts_of(architecture)
        if experts is None or not method.requires & set(traits_of(source)):
            raise UserError(
                f"{source.path} has no expert store; packs of mixture-of-experts models have one: haversack "
                "pack MODEL --device DEVICE -o NAME.",
                field="residency",
                given=str(method),
                nearest="streamed",
            )
        return cls(method, source, architecture, experts)

    def open(self, limit: int | None) -> Any:
        """See EdgeMoE."""
        total = nbytes(self.source, self.architecture.tensors())
        budget = self.buffer_nbytes(limit, self.resident_nbytes(total))
        return ExpertsHeld(self, budget)


class ExpertsHeld(StoreHeld):
    """Whole experts, or what `fitted.units` names, in a buffer of `budget` bytes. See StoreHeld."""

    def __init__(self, fitted: Fitted, budget: int) -> None:
        super().__init__(fitted, budget, fitted.units)
        experts, method = fitted.experts, fitted.method
        try:
            self.profile = self._profile()
            self.predict, self._predictor = self._guesser()
        except BaseException:
            self.store.close()
            raise
        narrow = [
            record.nbytes
            for record in self._records.values()
            if any(stored.kind == "int2" for stored in record.tensors)
        ]
        self._staging = aligned_buffer(max(narrow)) if narrow else None
        shelf = Shelf(
            budget,
            eviction(
                "lru" if method.eviction == "none" else method.eviction,
                len(experts.blocks),
                experts.count,
                None if self.profile is None else self.profile.frequencies,
                experts.read,
            ),
            keeps=method.eviction != "none",
        )
        sizes = {key: room.held for key, room in fitted.rooms.items()}
        buffer = ExpertBuffer(
            *(shelf, sizes, self._load),
            stored={key: record.nbytes for key, record in self._records.items()},
            chance=experts.chosen / experts.count,
            timeout_s=method.timeout_s,
            names=self._records.__getitem__,
        )
        self.opened(buffer)

    def part_of(self, key: Key) -> tuple[str, Iterable[str]]:
        """See StoreHeld."""
        return PARTS[key[2]] if len(key) > 2 else "", stored_names(self.fitted.source, self.fitted.units[key])

    def _profile(self) -> Profile | None:
        source = self.fitted.source
        assert isinstance(source, Pack)
        if PROFILE_NAME not in source.record.files:
            return None
        path = source.path / PROFILE_NAME
        profile = Profile.of_bytes(source.read_file(PROFILE_NAME), path)
        told = identity(source, self.fitted.architecture)
        profile.require(told, len(self.experts.blocks), self.experts.count, path, self.experts.read)
        return profile

    def _guesser(self) -> tuple[str, Predictor]:
        name = self.fitted.method.predict
        if name == "auto":
            name = "gate" if self.profile is None else "paths"
        if name == "paths":
            if self.profile is None:
                raise UserError(
                    f"{self.fitted.source.path} has no {PROFILE_NAME}, which predict=paths reads; pack the "
                    "model with --precision edgemoe, or use predict=gate.",
                    field="predict",
                    given="paths",
                    nearest="gate",
                )
            return name, Paths(self.profile)
        return name, GateAhead(self._gate, self._ahead) if name == "gate" else NoGuess()

    @property
    def _ahead(self) -> int:
        ahead = self.fitted.method.ahead
        return self.experts.chosen if ahead < 0 else ahead

    def _load(self, key: Key, leaving: list[Item], going: Going | None) -> Loaded:
        """Read an expert; runs in the reading thread. Memory of the right size is used again."""
        record = self._records[key]
        staged = any(stored.kind == "int2" for stored in record.tensors)
        starts, size = places(record)
        buffer = next((item.value.buffer for item in leaving if len(item.value.buffer) == size), None)
        leaving.clear()
        if buffer is None:
            buffer = aligned_buffer(size - BLOCK)
        view = self.store.read(record, self._staging if staged else buffer, going)
        tensors: dict[str, Any] = {}
        for stored, entry, start in zip(record.tensors, record.entries(), starts, strict=True):
            part: Any = view[stored.start : stored.start + stored.nbytes]
            if staged:
                part = moved(part, stored, np.frombuffer(buffer, np.uint8), start)
            tensors[stored.name] = part if isinstance(part, Matrix) else tensor(entry, part)
        assemble(self._forms(key), tensors)
        return Loaded(tensors, buffer)

    def _forms(self, key: Key) -> dict[str, Any]:
        held = forms_of(self.fitted.source)
        return {name: held[name] for name in self.fitted.units[key] if name in held}

    def routed(self, routing: Routing) -> None:
        """See Experts; guesses follow the last token."""
        layer = self._layers[routing.block]
        self._predictor.chose(layer, routing.experts[-1].tolist(), routing.x[-1].copy())

    def want(self, block: int, ids: Sequence[int] = (), priority: int = GUESSED) -> None:
        """See Experts. What a router chose is read first, then what the next layer will likely choose."""
        if block not in self._layers:
            return
        layer = self._layers[block]
        keys = [(layer, expert) for expert in ids]
        if priority < CHOSEN:
            self.buffer.guess(keys)
            return
        self.buffer.need(layer, keys)
        following = layer + 1
        if following == len(self.experts.blocks):
            following = self.experts.read % following
        elif following == self.experts.read:
            return  # what the encoder read says nothing of what is written first
        likely = self._predictor.likely(following)[: self._ahead]
        self.buffer.guess([(following, expert) for expert in likely])

    def _gate(self, layer: int, x: F32) -> F32:
        """What the router of `layer` says of an input f32 [width] of the layer before."""
        block = self.experts.blocks[layer]
        mixture = self.fitted.architecture.blocks[block].mixture
        assert mixture is not None
        scores = np.empty((1, self.experts.count), np.float32)
        with self.weights(block) as weights:
            multiply(x[None], (mixture.router,), weights, (scores,), "f32")
        found: F32 = scores[0]
        return found

    def record(self, seconds: float | None = None) -> dict[str, Any]:
        """See StoreHeld."""
        return {**super().record(seconds), "predict": self.predict}

    def words(self, seconds: float | None = None) -> str:
        """The same in two lines."""
        found = self.record(seconds)
        return (
            f"experts: {found['asked']} used, {found['hits']} were there, {found['late']} on their way, "
            f"{found['demands']} loaded when chosen; {found['preloads']} guessed ({found['predict']}), "
            f"{found['useful']} of them used, {found['wasted']} not\n{self.storage_words(found)}"
        )

    def expert(self, block: int, expert: int) -> AbstractContextManager[Weights]:
        """See Held."""
        return self.buffer.use((self._layers[block], expert))


def held_nbytes(stored: StoredTensor) -> int:
    """Bytes of a tensor in memory: int2 becomes int4."""
    if stored.kind != "int2":
        return stored.nbytes
    group = stored.group or 0
    return stored.nbytes // (4 * group + 32) * (8 * group + 32)


def places(record: ExpertRecord) -> tuple[list[int], int]:
    """Where each tensor of a record begins in memory, and the size of that memory, as `aligned_buffer` makes
    it.
    """
    starts, at = [], 0
    for stored in record.tensors:
        starts.append(at)
        at = -(-(at + held_nbytes(stored)) // TENSOR_STEP) * TENSOR_STEP
    return starts, (-(-at // BLOCK) + 1) * BLOCK


def moved(part: Any, stored: StoredTensor, memory: npt.NDArray[np.uint8], start: int) -> Any:
    """The bytes `part` of a tensor at `start` of `memory`, or the matrix that int2 becomes there."""
    place = memory[start : start + held_nbytes(stored)]
    if stored.kind == "int2":
        rows, columns = stored.shape
        return widen_int2(part, rows, columns, stored.group or 0, place)
    place[:] = np.frombuffer(part, np.uint8)
    return place
