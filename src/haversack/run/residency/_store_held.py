"""What every residency that streams experts does alike: open the store, bind the rest, tell what happened."""

from __future__ import annotations

import atexit
import mmap
from collections.abc import Iterable, Mapping
from typing import Any

from haversack.core._record import STORE_NAME
from haversack.core.errors import DamagedFileError
from haversack.core.expert_store import ExpertRecord, ExpertStore
from haversack.core.pack import Pack
from haversack.core.storage import SlowStorage
from haversack.models._experts import Experts, identity
from haversack.run._expert_buffer import ExpertBuffer
from haversack.run._forms import stored_names
from haversack.run._residency import AllHeld
from haversack.run._shelf import Key
from haversack.run.residency.copied import Copy
from haversack.run.residency.streamed import drop_cached


class Loaded(dict[str, Any]):
    """Tensors by name, and the memory that they lie in."""

    __slots__ = ("buffer",)

    def __init__(self, tensors: Mapping[str, Any], buffer: mmap.mmap) -> None:
        super().__init__(tensors)
        self.buffer = buffer


class StoreHeld(AllHeld):
    """Everything but the experts bound once. A subclass makes the `buffer`, which holds `budget` bytes of the
    `units`, what comes and goes, and says `opened`. See Held, Experts and Telling.

    Raises DamagedFileError and UserError for a store that is not the model's.
    """

    told = "experts"
    buffer: ExpertBuffer

    def __init__(self, fitted: Any, budget: int, units: Iterable[Key]) -> None:
        source, architecture, experts = fitted.source, fitted.architecture, fitted.experts
        assert isinstance(source, Pack)
        self.fitted, self.budget = fitted, budget
        self.experts: Experts = experts
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
        storage = SlowStorage(fitted.method.mb_s) if fitted.method.mb_s else None
        self.store = ExpertStore.open(source.path / STORE_NAME, storage)
        try:
            self.store.require_model(identity(source, architecture))
            self._records = {key: self._record(key) for key in units}
        except BaseException:
            self.store.close()
            raise

    def opened(self, buffer: ExpertBuffer) -> None:
        """Everything is open, `buffer` too: close it at the latest when the program ends."""
        self.buffer = buffer
        atexit.register(self.close)

    def part_of(self, key: Key) -> tuple[str, Iterable[str]]:
        """What the store calls a unit's part of its expert ("" for a whole one), and its tensors."""
        raise NotImplementedError

    def _record(self, key: Key) -> ExpertRecord:
        block, expert, (part, names) = self.experts.blocks[key[0]], key[1], self.part_of(key)
        record = self.store.records.get((block, expert, part))
        if record is None:
            what = f"{part} of " if part else ""
            raise DamagedFileError(self.store.path, f"{what}expert {expert} of layer {block} is missing")
        needed = {name: self.fitted.source.tensors[name] for name in names}
        if {entry.name: entry for entry in record.entries()} != needed:
            raise DamagedFileError(self.store.path, f"{record} is not the one that pack.json describes")
        return record

    def record(self, seconds: float | None = None) -> dict[str, Any]:
        """What happened, as `run --json` prints it. With the `seconds` that the run took: how many times the
        bound they were, which is the slower of reading what no eviction could have kept and computing."""
        counts = self.buffer.statistics
        found = {
            **counts.record(),
            "bytes_read": self.store.bytes_read,
            "predict": "none",
            "eviction": self.fitted.method.eviction,
            "buffer_nbytes": self.budget,
        }
        least, busy = self.buffer.least_bytes(), self.buffer.reader.busy_s
        if seconds is not None and least is not None and busy > 0:
            rate = self.store.bytes_read / busy
            bound = max(least / rate, seconds - counts.stall_s)
            found |= {"bound_s": round(bound, 4), "times_bound": round(seconds / bound, 3)}
        return found

    def storage_words(self, found: Mapping[str, Any], parts: str = "") -> str:
        """The line of a record `found` that tells of the storage; `parts`: of what was read."""
        bound = f"; {found['times_bound']:.2f} times the storage's bound" if "times_bound" in found else ""
        return (
            f"storage: {found['bytes_read'] / 2**20:.1f} MiB read{parts}, {found['stall_s']:.2f} s waited, "
            f"buffer {found['peak_nbytes'] / 2**20:.1f} of {self.budget / 2**20:.1f} MiB{bound}"
        )

    def close(self) -> None:
        """End the reading thread and close the store."""
        atexit.unregister(self.close)
        if self.buffer.close():
            self.store.close()
        super().close()
