"""EdgeMoE: what every token uses stays in memory; experts wait in storage, each at its own width, and are
guessed and read while the layer before computes.

Paper: Yi, Guo, Wei, Zhou, Wang and Xu, "EdgeMoE: Fast On-Device Inference of MoE-based Large Language Models"
(2023; "Empowering Sparse LLMs on Mobile Devices", 2025).
What is here: experts are read one by one from the pack's expert store (core/expert_store.py) into a buffer of
fixed bytes. When a layer's router has chosen, what is absent is read first, then the experts that the next
layer will likely choose, until its router has chosen too. A guess is never computed with: tokens are those of
the same model in memory. The guess is the paper's, the experts that followed the same choices of the two
layers before (`predict=paths`, run/_paths.py), or the next layer's router applied one layer early (`gate`).
From a full buffer leaves the expert that is chosen least and whose layer is farthest from running: keep =
(frequency + eps) / layers ahead. Widths are chosen when the pack is made (shrink/precision/edgemoe.py).
What we changed: a guess that was wrong is called off while it is read, and one for which an expert must leave
is made only where it is worth that (run/_expert_buffer.py, `Worth`), so that guesses cost nothing where
storage has no time to spare. The paper prints the distance as (layers - layer + running) mod layers, which is
large for the layer that runs next and contradicts its text; `eviction=intent` counts the layers until an
expert's layer runs, `printed` is the printed one [inferred]. eps keeps experts of frequency 0 in the same
order [inferred]. An encoder's experts share the buffer with the decoder's, count as never chosen, as in the
paper, and are as far as all layers once the text is read; guesses follow the decoder's layers alone.
Cost: a pass of the reading thread's processor time for checksums, about 1 GB a second.
Limits: decoding one text; a long prompt needs nearly every expert of every layer. Experts of 2 bits become 4
bits in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from haversack.core._record import STORE_NAME
from haversack.core.method import Method, parameter
from haversack.core.pack import TensorSource
from haversack.run._residency import Held, Lines
from haversack.run._shelf import Key

EPS = 1e-6


def layers_ahead(layer: int, running: int, layers: int, first: int = 0) -> int:
    """How many of `layers` layers until `layer` runs while `running` does; the running one has been used, so
    it is the farthest. The `first` layers, an encoder's, run before the others and then not again.
    """
    if first and running >= first:
        if layer < first:
            return layers
        layers -= first
    return (layer - running) % layers or layers


def layers_as_printed(layer: int, running: int, layers: int, first: int = 0) -> int:
    """The paper's denominator, (S - l + I) mod S, with S for 0: how long ago `layer` ran. S counts the
    decoder's layers where there is an encoder.
    """
    if first and running >= first and layer >= first:
        layers -= first
    return (layers - layer + running) % layers or layers


class Shares(Protocol):
    """How often each expert is chosen."""

    layers: int
    first: int

    def __getitem__(self, key: Key) -> float: ...

    def used(self, key: Key) -> None: ...


class Intent:
    """Keeps what is chosen often and needed soon: -L of the paper as its text says it."""

    def __init__(self, frequencies: Shares) -> None:
        self.frequencies = frequencies

    def loaded(self, key: Key) -> None:
        """See Eviction."""

    def used(self, key: Key) -> None:
        """See Eviction."""
        self.frequencies.used(key)

    def keep(self, key: Key, layer: int) -> float:
        """See Eviction."""
        shares = self.frequencies
        return (shares[key] + EPS) / layers_ahead(key[0], layer, shares.layers, shares.first)


class Printed(Intent):
    """-L of the paper as its formula is printed."""

    def keep(self, key: Key, layer: int) -> float:
        """See Eviction."""
        shares = self.frequencies
        return (shares[key] + EPS) / layers_as_printed(key[0], layer, shares.layers, shares.first)


@dataclass(frozen=True)
class EdgeMoE(Method):
    name = "streamed:edgemoe"
    stage = "run"
    slot = "residency"
    paper = "Yi et al., EdgeMoE: Fast On-Device Inference of MoE-based Large Language Models (2023)"
    summary = "Experts are guessed and read from storage while the layer before computes; the same tokens."
    system = 4
    requires = frozenset({"expert-store:experts"})
    excludes = frozenset({"mapped-weights", "sealed-weights", "weight-type:nested"})
    checks: ClassVar[tuple[str, ...]] = (STORE_NAME,)
    """Files whose every read is checked, so that they are not summed before."""

    buffer_kib: int = parameter(
        -1, help="KiB of experts kept in memory; -1: as many as the budget allows, ten experts without one"
    )
    eviction: str = parameter(
        "intent",
        allowed=("intent", "printed", "frequency", "lru", "fifo", "none"),
        help="what leaves a full buffer first; none: what was used leaves at once",
    )
    predict: str = parameter(
        "auto",
        allowed=("auto", "paths", "gate", "none"),
        help="how the next layer's experts are guessed; auto: paths where the pack has a profile, else gate",
    )
    ahead: int = parameter(-1, help="experts that are guessed for a layer; -1: as many as a token takes")
    mb_s: int = parameter(
        0, help="storage to be emulated, in 10^6 bytes a second; 0: as fast as this machine's"
    )
    timeout_s: int = parameter(30, help="seconds after which a storage that gives nothing is given up")

    def fitted(self, source: TensorSource, architecture: Any) -> Any:
        """The method for one model: its `planned` knows the sizes of the experts."""
        from haversack.run.residency._edgemoe_held import Fitted

        return Fitted.of(self, source, architecture)

    def sized(self, parts: Mapping[Key, Sequence[tuple[str, int]]], chosen: int) -> Any:
        """The method for experts that are not stored yet: (kind, bytes) of each one's tensors, `chosen` of
        which a token takes in a layer."""
        from haversack.run.residency._edgemoe_held import Room, Sized

        rooms = {key: Room.sized(sum(count for _, count in own), own) for key, own in parts.items()}
        held = sum(count * (3 if kind == "int2" else 1) for own in parts.values() for kind, count in own)
        return Sized(self, rooms, chosen, held)

    def planned(
        self, blocks: Sequence[int], top: int, files: int = 1, limit: int | None = None, aside: int = 0
    ) -> Lines:
        """All weights; `fitted` says less of a model with experts."""
        from haversack.run.residency.copied import Copied

        return Copied().planned(blocks, top, files, limit, aside)

    def open(self, source: TensorSource, architecture: Any, limit: int | None = None) -> Held:
        """Bring what every token uses into memory and open the expert store."""
        held: Held = self.fitted(source, architecture).open(limit)
        return held
