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

from collections.abc import Sequence
from dataclasses import dataclass

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.core.pack import Pack, TensorSource
from haversack.formats.sealed import BLOCK, require_cipher
from haversack.models._architecture import Architecture
from haversack.run._residency import Lines
from haversack.run._units import SMALLEST_PART
from haversack.run.residency._sealed_held import ROWS_AT_ONCE, SealedHeld
from haversack.run.residency._sealed_units import SealedUnit, sealed_units

MIB = 2**20
HOLDER_NBYTES = 40 * MIB
"""The process that holds the key: interpreter, cipher, reads on their way."""
REGION_SPARE = 2 * BLOCK
"""Of a region beside its unit: blocks cut by a part's ends, and the rest of a page."""
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
    excludes = frozenset({"mapped-weights", "encoder-decoder"})

    key: str = parameter("", help="file of the owner's key; --key KEYFILE says the same")
    keep: int = parameter(-1, help="blocks that stay in memory; -1: all, or as many as the budget allows")
    cache: int = parameter(100, allowed=range(101), help="percent of the weights kept between answers")
    schedule: str = parameter(
        "pipelined",
        allowed=("pipelined", "at-once", "random", "whole-tensors"),
        help="how weights are restored; all but pipelined are there to be compared with",
    )
    mb_s: int = parameter(
        0, help="storage to be emulated, in 10^6 bytes a second; 0: as fast as this machine's"
    )

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
        largest = max(unit.held_nbytes for unit in units[1:])
        left = limit - HOLDER_NBYTES - 2 * (largest + REGION_SPARE) - ROWS_SPARE - aside
        count = 1
        while count < len(units) and units[count].held_nbytes + REGION_SPARE <= left:
            left -= units[count].held_nbytes + REGION_SPARE
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
        everything = sum(unit.held_nbytes + REGION_SPARE for unit in whole)
        least = 2 * (max(unit.held_nbytes for unit in units[1:]) + REGION_SPARE) + ROWS_SPARE
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
