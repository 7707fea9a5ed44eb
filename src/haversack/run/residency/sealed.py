"""Sealed weights: encrypted where they are stored, restored while the model already computes.

Paper: "TZ-LLM: Protecting On-Device Large Language Models with Arm TrustZone" (2025, arXiv 2511.13717); its
published artifact for the stages and queues. The rules that only its summary gives are marked below.
What is here: a pass over a model touches its weights in a fixed order, so allocating memory for layer k +
1, reading its ciphertext and decrypting it hide behind the computation of layer k. Each unit (norms, a
block, the output matrix) goes through three queues, smallest key first, the key being (layer << 32) |
number. A free processor decrypts what has arrived, else allocates for what comes next, 64 KiB at a time;
while an operator waits for its weights, idle processors help, and stop at the end of a block; restoration
yields to operators that compute [paper's summary; here by the priority of the process]. The rows of the
embedding that a prompt needs come before all queues. Between answers the first `cache` percent stay
restored; the rest is wiped and given back, the last unit first. Within a budget that the model does not
fit, the first units stay and the others take turns in two regions, as streamed weights do. The store, and
what binds a block to its place: formats/sealed.py.

What we changed: the paper's artifact decrypts AES-CBC in place, without authentication; we decrypt AES-GCM
from the read buffer, and an operator never sees a unit of which one block failed. Its regions are
contiguous secure memory that grows at the top, which orders protection and release; ours are separate, so a
restored unit waits for no gap to close. It restores and waits by tensor, we by block of the model. Its
secure world asks an untrusted one for memory, reads and the accelerator; the checks which that needs are in
simulate/co_driver.py.

What the processes isolate: the process that holds the key (`_holder.py`) is not the one that computes. The
key, and the memory that keeps it, are in that process alone, which parses nothing but the pack's front and
five small requests: out of reach of a fault in what reads prompts, templates or HTTP, if the key came by a
named pipe, which is read once, and not by a file that the same user may open again. Restored weights are
its memory as well: the computing process maps them read-only, cannot make them writable, and holds only
what is restored at the time. But it can read them, since it multiplies with them. Letting the holder
compute the products too would not hide them: a product is an oracle, and one unit vector after the other
reads a matrix out of it. What hides weights is to put the whole model behind the border, tokens in and
tokens out: `haversack serve --residency sealed` under a user of its own is that, and its clients then see
text alone. So weights go to the process that computes, at no cost a product, and where the border lies is
the owner's choice.
What only hardware can: against the same user's other programs there are file permissions and a process that
refuses debuggers, against an administrator, a changed kernel or someone with a probe nothing. Weights that
such a person must not get need a processor that keeps memory from the system (TrustZone, SEV, TDX), and a
counter against old versions (formats/_sealed_versions.py). Sizes and times of accesses are visible
everywhere.

Cost: one process (about 40 MiB), one decryption of every weight a pass that is not kept.
Limits: decoder language models in packs; Linux. An encrypted draft model is not opened, and `serve` keeps
what it restored between answers. Regions are wiped, and so are keys and values of a cache that is dropped;
Python cannot promise it of the key, or of other numbers on their way.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.core.pack import Pack, TensorSource
from haversack.formats.sealed import BLOCK, record_bytes, require_cipher
from haversack.kernels import CacheLayer, Matrix
from haversack.models._architecture import Architecture
from haversack.run._cache import Cache
from haversack.run._residency import Lines
from haversack.run._units import SMALLEST_PART
from haversack.run._weights import Steady, Weights, row_span, rows_matrix
from haversack.run.residency._link import Link
from haversack.run.residency._sealed_units import SealedUnit, bound_unit, sealed_units

I32 = npt.NDArray[np.int32]
MIB = 2**20
HOLDER_NBYTES = 40 * MIB
"""The process that holds the key: interpreter, cipher, reads on their way."""
REGION_SPARE = 2 * BLOCK
"""Of a region beside its unit: blocks cut by a part's ends, and the rest of a page."""
ROWS_AT_ONCE = 32
"""Blocks of the embedding that are restored together where it is not kept."""
ROWS_SPARE = ROWS_AT_ONCE * BLOCK + 4 * MIB


@dataclass(frozen=True)
class Stages:
    """Seconds of each stage of one layer: memory for it, its reads, their decryption, its computation."""

    allocate: float
    read: float
    decrypt: float
    compute: float


def unpipelined_s(layers: Sequence[Stages], init: float = 0.0) -> float:
    """The first token where no stage runs beside another (the paper's strawman)."""
    return init + sum(one.allocate + one.read + one.decrypt + one.compute for one in layers)


def bound_s(layers: Sequence[Stages], workers: int = 1, kept: int = 0) -> float:
    """No pipeline is faster: the processors' share of the restoration, the storage, or the first layer's
    restoration and everything computed, whichever is longest. The first `kept` layers are restored already.
    """
    absent = layers[kept:]
    processors = sum(one.allocate + one.decrypt for one in absent) / workers
    storage = sum(one.read for one in absent)
    first = 0.0 if kept or not layers else layers[0].allocate + layers[0].read + layers[0].decrypt
    return max(processors, storage, first + sum(one.compute for one in layers))


def overlap(unpipelined: float, pipelined: float, bound: float) -> float:
    """The share of what overlap could save that was saved."""
    return (unpipelined - pipelined) / (unpipelined - bound)


@dataclass(frozen=True)
class Sealed(Method):
    name = "sealed"
    stage = "run"
    slot = "residency"
    paper = "TZ-LLM (2025, arXiv 2511.13717)"
    summary = "Encrypted weights, decrypted by a process of their own while the blocks before compute."
    system = 29
    requires = frozenset({"sealed-weights"})
    excludes = frozenset({"mapped-weights"})

    key: str = parameter("", help="file of the owner's key; --key KEYFILE says the same")
    keep: int = parameter(-1, help="blocks that stay in memory; -1: all, or as many as the budget allows")
    cache: int = parameter(100, allowed=range(101), help="percent of the weights kept between answers")
    schedule: str = parameter(
        "pipelined",
        allowed=("pipelined", "at-once", "random", "whole-tensors"),
        help="how weights are restored; all but pipelined are there to be compared with",
    )
    storage_mb_s: float = parameter(0.0, help="storage no faster than this, 10^6 bytes/s; 0: as it is")

    def planned(
        self, blocks: Sequence[int], top: int, files: int = 1, limit: int | None = None, aside: int = 0
    ) -> Lines:
        """What stays restored, two regions for what does not, and the process that holds the key."""
        holder = (("weights, key's process", HOLDER_NBYTES),)
        everything = sum(blocks) + top + (len(blocks) + 4) * REGION_SPARE
        least = 2 * (max([*blocks, SMALLEST_PART]) + REGION_SPARE) + ROWS_SPARE + aside
        if self._keeps_all(everything, least, limit):
            return (("weights, restored", everything), *holder)
        kept = sum(blocks[: self.keep]) if self.keep > 0 else 0
        if self.keep < 0 and limit is not None:
            for nbytes in blocks:
                if least + HOLDER_NBYTES + kept + nbytes + REGION_SPARE > limit:
                    break
                kept += nbytes + REGION_SPARE
        lines: Lines = (("weights, two blocks on their way", least), *holder)
        return (*lines, ("weights, kept", kept)) if kept else lines

    def _keeps_all(self, everything: int, least: int, limit: int | None) -> bool:
        fits = limit is None or everything + HOLDER_NBYTES <= limit or everything <= least
        return self.keep < 0 and fits

    def kept(self, units: Sequence[SealedUnit], limit: int | None, aside: int) -> int:
        """How many of `units` (what is always there, blocks, parts of the output matrix) stay restored."""
        if self.keep >= 0:
            return min(1 + self.keep, len(units))
        assert limit is not None
        largest = max(unit.nbytes for unit in units[1:])
        left = limit - HOLDER_NBYTES - 2 * (largest + REGION_SPARE) - ROWS_SPARE - aside
        count = 1
        while count < len(units) and units[count].nbytes + REGION_SPARE <= left:
            left -= units[count].nbytes + REGION_SPARE
            count += 1
        return count

    def open(self, source: TensorSource, architecture: Architecture, limit: int | None = None) -> SealedHeld:
        """Start the process that holds the key, and with it the restoration."""
        if not isinstance(source, Pack) or not source.sealed:
            raise UserError(
                f"{source.path} is not sealed; haversack pack --seal --key KEYFILE makes a sealed pack.",
                field="residency",
                given=self.name,
                nearest="mapped",
            )
        require_cipher()
        whole = sealed_units(source, architecture, whole=True)
        units = sealed_units(source, architecture, whole=False)
        everything = sum(unit.nbytes + REGION_SPARE for unit in whole)
        least = 2 * (max(unit.nbytes for unit in units[1:]) + REGION_SPARE) + ROWS_SPARE
        if self._keeps_all(everything, least, limit):
            return SealedHeld(source, architecture, self, whole, len(whole))
        if self.schedule == "at-once":
            raise UserError(
                "schedule=at-once restores everything before it begins, and that does not fit this budget.",
                field="schedule",
                given=self.schedule,
                nearest="pipelined",
            )
        return SealedHeld(source, architecture, self, units, self.kept(units, limit, 0))


class SealedHeld:
    """Restored weights: `units` in order of use, of which the first `kept` stay. See Held."""

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
                "storage_mb_s": method.storage_mb_s,
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
        """Seconds of each stage since this, or `report`, was last asked for."""
        said: dict[str, float] = self._link.answer("times", do="times")["times"]
        return said

    def report(self) -> dict[str, float]:
        """What restoring took since this was last asked for: MiB, seconds of each stage, seconds waited."""
        said = self._link.answer("times", do="times")
        waited, self._link.waited_s = self._link.waited_s, 0.0
        seconds = {f"{stage}_s": round(took, 4) for stage, took in said["times"].items()}
        return {"restored_mib": round(said["restored"] / MIB, 2), **seconds, "waited_s": round(waited, 4)}

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
