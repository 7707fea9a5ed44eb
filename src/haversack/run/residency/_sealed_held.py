"""The weights of an opened sealed model, as the computing process has them: regions that another restores."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haversack.core.pack import Pack
from haversack.formats.sealed import BLOCK, record_bytes
from haversack.kernels import CacheLayer, Matrix
from haversack.models._architecture import Architecture
from haversack.run._cache import Cache
from haversack.run._weights import Steady, Weights, row_span, rows_matrix
from haversack.run.residency._link import Link
from haversack.run.residency._sealed_units import SealedUnit, bound_unit

if TYPE_CHECKING:
    from haversack.run.residency.sealed import Sealed

I32 = npt.NDArray[np.int32]
MIB = 2**20
ROWS_AT_ONCE = 32
"""Blocks of the embedding that are restored together where it is not kept."""


class SealedHeld:
    """Restored weights: `units` in order of use, of which the first `kept` stay. See Held and Telling."""

    told = "restoration"

    def __init__(
        self, pack: Pack, architecture: Architecture, method: Sealed, units: Sequence[SealedUnit], kept: int
    ) -> None:
        self._pack, self._architecture, self._method = pack, architecture, method
        self._units, self._kept = units, kept
        self._steady: dict[int, Any] = {}
        self._known: dict[int, set[int]] = {}
        """Blocks of a matrix read by rows that are restored, before all of its unit is."""
        self._places: dict[int, int] = {}
        """The regions of such units."""
        self._using: set[int] = set()
        self._closed = False
        self._link = Link(
            {
                "pack": str(pack.path.resolve()),
                "key": method.key,
                "record": record_bytes(pack.record).decode(),
                "units": [
                    (
                        unit.layer,
                        unit.nbytes,
                        [(s.name, s.first, s.count, s.nbytes, s.at) for s in unit.spans],
                    )
                    for unit in units
                ],
                "kept": kept,
                "slots": 2 if kept < len(units) else 0,
                "schedule": method.schedule,
                "mb_s": method.mb_s,
            }
        )
        atexit.register(self.close)
        try:
            self._link.opened()
            view = self._link.wait(0)
        except BaseException:
            self.close()
            raise
        # Copies: small, and always needed; the region may be given back between answers.
        self._resident = bound_unit(units[0], memoryview(bytes(view)))
        self.top: Weights = {
            name: self._resident[name] for name in architecture.top_tensors() if name in self._resident
        }
        self._blocks = len(architecture.blocks)
        self._tables = {
            unit.parts[0].entry.name: i for i, unit in enumerate(units) if unit.table and i < kept
        }

    def weights(self, block: int, names: Sequence[str] = ()) -> AbstractContextManager[Weights]:
        """See Held."""
        return self._unit(1 + block)

    def _unit(self, index: int) -> AbstractContextManager[Any]:
        if index >= self._kept:
            return self._passing(index)
        if index not in self._steady:
            tensors = bound_unit(self._units[index], self._link.wait(index))
            self._steady[index] = nullcontext(Steady({**self._resident, **tensors}))
        return self._steady[index]  # type: ignore[no-any-return]

    @contextmanager
    def _passing(self, index: int) -> Iterator[Any]:
        """A unit in a region that the next one but one will have."""
        tensors = bound_unit(self._units[index], self._link.wait(index, self._using))
        self._using.add(index)
        try:
            yield {**self._resident, **tensors}
        finally:
            self._using.discard(index)
            self._link.ready.pop(index, None)
            self._link.ask(do="free", unit=index)

    def want(self, block: int, ids: Sequence[int] = (), priority: int = 0) -> None:
        """Nothing to do: units are restored in order."""

    def head(self) -> Iterator[tuple[int, Matrix]]:
        """See Held."""
        name = self._architecture.head.weight
        for index in range(1 + self._blocks, len(self._units)):
            if self._units[index].parts[0].entry.name == name:
                with self._unit(index) as weights:
                    yield self._units[index].first_row, weights[name]

    def rows(self, tokens: I32, table: str | None = None) -> tuple[Matrix, I32]:
        """See Held; only the blocks that hold these rows are restored for it."""
        entry = self._pack.tensors[table or self._architecture.embedding]
        unit = 16 if entry.layout == "rows16-1" else 1
        wanted, local = np.unique(tokens // unit, return_inverse=True)
        spans = [row_span(entry, int(w) * unit, min(int(w + 1) * unit, entry.shape[0])) for w in wanted]
        index = self._tables.get(entry.name)
        if index is not None:
            view = self._table(index, spans)
            return rows_matrix(entry, 0, entry.shape[0], view[: entry.nbytes]), tokens
        parts = [part for some in _few(spans) for part in self._aside(entry.name, some)]
        matrix = rows_matrix(entry, 0, len(wanted) * unit, b"".join(parts))
        return matrix, (local.reshape(-1) * unit + tokens % unit).astype(np.int32)

    def _table(self, index: int, spans: Sequence[tuple[int, int]]) -> memoryview:
        """The region of a kept matrix, at least the bytes `spans` of it restored."""
        if self._method.schedule == "at-once":
            return self._link.wait(index)
        known = self._known.setdefault(index, set())
        absent = sorted(set().union(*map(_blocks, spans)) - known) if index not in self._link.ready else []
        if absent:
            name = self._units[index].parts[0].entry.name
            said = self._link.answer("gathered", do="gather", unit=index, tensor=name, blocks=absent)
            self._places[index] = said["region"]
            known.update(absent)
        number = self._link.ready.get(index)
        return self._link.regions[self._places[index] if number is None else number]

    def _aside(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes `spans` of a matrix that is not kept, copied out of a region for a few blocks."""
        blocks = sorted(set().union(*map(_blocks, spans)))
        said = self._link.answer("gathered", do="gather", unit=None, tensor=name, blocks=blocks)
        view = self._link.regions[said["region"]]
        places = {block: at * BLOCK for at, block in enumerate(blocks)}
        found = []
        for start, count in spans:
            pieces = []
            for block in _blocks((start, count)):
                first, last = max(start, block * BLOCK), min(start + count, (block + 1) * BLOCK)
                at = places[block] + first - block * BLOCK
                pieces.append(view[at : at + last - first])
            found.append(b"".join(pieces))
        return found

    def rest(self, percent: int | None = None) -> None:
        """Between answers: wipe and give back all but the first `percent` of the bytes (default: the method's
        `cache`); what is wanted next is restored again. The caller holds no weights."""
        share = self._method.cache if percent is None else percent
        if share >= 100 or self._kept < len(self._units) or self._closed:
            return
        allowed = share * sum(unit.nbytes for unit in self._units) // 100
        count = 0
        while count < len(self._units) and self._units[count].nbytes <= allowed:
            allowed -= self._units[count].nbytes
            count += 1
        self._steady = {index: held for index, held in self._steady.items() if index < count}
        for number in self._places.values():
            self._link.regions.pop(number, None)
        self._known, self._places = {}, {}
        self._link.answer("rested", do="rest", units=count)
        self._link.drop(lambda unit: unit >= count)

    def wipe_later(self, cache: Cache) -> None:
        """Overwrite keys and values when nobody holds `cache` any more."""
        weakref.finalize(cache, _overwrite, [layer for layer in cache.layers if layer is not None])

    def times(self) -> dict[str, float]:
        """Seconds of each stage since this, or `record`, was last asked for."""
        said: dict[str, float] = self._link.answer("times", do="times")["times"]
        return said

    def record(self, seconds: float | None = None) -> dict[str, Any]:
        """What restoring took since this was last asked for: MiB, seconds of each stage, seconds waited."""
        said = self._link.answer("times", do="times")
        waited, self._link.waited_s = self._link.waited_s, 0.0
        stages = {f"{stage}_s": round(took, 4) for stage, took in said["times"].items()}
        return {"restored_mib": round(said["restored"] / MIB, 2), **stages, "waited_s": round(waited, 4)}

    def words(self, seconds: float | None = None) -> str:
        """The same in a line."""
        return (
            "restored: {restored_mib} MiB; allocating {allocate_s} s, reading {read_s} s, decrypting "
            "{decrypt_s} s; computing waited {waited_s} s for it".format(**self.record(seconds))
        )

    def close(self) -> None:
        """End the process that holds the key, which wipes what it restored."""
        atexit.unregister(self.close)
        self._closed = True
        self._steady = {}
        self._link.close()


def _overwrite(layers: Sequence[CacheLayer]) -> None:
    for layer in layers:
        for array in (layer.keys, layer.values, layer.key_scales, layer.value_scales):
            if array is not None:
                array.fill(0)


def _blocks(span: tuple[int, int]) -> range:
    """The blocks that hold `span`, (first byte, bytes) of a tensor."""
    return range(span[0] // BLOCK, -(-(span[0] + span[1]) // BLOCK))


def _few(spans: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """`spans` in groups that lie in at most ROWS_AT_ONCE blocks, or are one span."""
    group: list[tuple[int, int]] = []
    count = 0
    for span in spans:
        if group and count + len(_blocks(span)) > ROWS_AT_ONCE:
            yield group
            group, count = [], 0
        group.append(span)
        count += len(_blocks(span))
    if group:
        yield group
