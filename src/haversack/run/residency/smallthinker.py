"""SmallThinker: experts come and go matrix by matrix, read from the moment that a router before attention has
chosen, and computed as they arrive.

Paper: Song et al., "SmallThinker: A Family of Efficient Large Language Models Natively Trained for Local
Deployment" (arXiv 2507.20984, 2025), and the engine released with it.
What is here: the cache's unit is one matrix of an expert, of any layer, and the matrix used longest ago
leaves first; what the running layer has yet to use does not leave. A router that reads the block's input
announces its choice before attention: the reading thread brings the 3 k matrices of a token while attention
computes. Then experts whose matrices are there are computed first, in the order of how many tokens of the
micro-batch chose them; their down products are added in the order of their numbers, so that tokens are bit
for bit those of the model in memory. Of a ReLU's neurons it counts how many were above zero.
What we changed: one read is under way at a time, not 512 (a card or a disk has one queue, and so has the
throttle), so the smallest cache is one layer's choice instead of the depth of the queue. All matrices of a
micro-batch are asked for, not the first 3 k: they are certain, and room decides when they are read.
Mixtures whose router runs after attention are served too; their experts are read when they are chosen.
Cost: a pass of the reading thread's processor time for checksums, about 1 GB a second.
Limits: a prompt passes in micro-batches of eight, each of which may read a layer's experts again where the
cache is smaller than a layer. Guessing the next layer's choice is EdgeMoE's (streamed:edgemoe).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from haversack.core._record import STORE_NAME
from haversack.core.method import Method, parameter
from haversack.core.pack import TensorSource
from haversack.run._residency import Held, Lines
from haversack.run._shelf import Key


def order_of_use(experts: Sequence[Sequence[int]]) -> list[int]:
    """The experts of a choice [tokens][k], the best first in each row: those that most tokens chose first;
    of equals the one that stands higher in a token's choice, and then that of the earlier token.

    >>> order_of_use([[5, 2], [2, 7]])
    [2, 5, 7]
    """
    counts: dict[int, int] = {}
    for rank in range(len(experts[0])):
        for token in experts:
            counts[token[rank]] = counts.get(token[rank], 0) + 1
    return sorted(counts, key=lambda expert: -counts[expert])


def overlapped(attention_s: float, load_s: float, rest_s: float) -> float:
    """How many times faster a layer is whose reads hide behind attention than one that reads after it: (A + L
    + F) / (max(A, L) + F).

    >>> overlapped(1.0, 1.0, 0.5)
    1.6666666666666667
    """
    return (attention_s + load_s + rest_s) / (max(attention_s, load_s) + rest_s)


@dataclass(frozen=True)
class SmallThinker(Method):
    name = "streamed:smallthinker"
    stage = "run"
    slot = "residency"
    paper = "SmallThinker (arXiv 2507.20984, 2025)"
    summary = (
        "Matrices of experts are read while attention computes, and used as they arrive; the same tokens."
    )
    system = 49
    requires = frozenset({"expert-store:matrices"})
    excludes = frozenset({"mapped-weights", "sealed-weights", "weight-type:nested", "encoder-decoder"})
    checks: ClassVar[tuple[str, ...]] = (STORE_NAME,)
    """Files whose every read is checked, so that they are not summed before."""
    eviction: ClassVar[str] = "lru"

    buffer_kib: int = parameter(
        -1, help="KiB of matrices kept in memory; -1: as many as the budget allows, thirty without one"
    )
    early: bool = parameter(
        True, help="a router before attention has its experts read at once; false: after attention"
    )
    keeps: bool = parameter(True, help="false: a matrix leaves as soon as it was used")
    micro_batch: int = parameter(
        8, allowed=range(1, 257), help="tokens of a prompt that pass a block at once"
    )
    mb_s: int = parameter(
        0, help="storage to be emulated, in 10^6 bytes a second; 0: as fast as this machine's"
    )
    timeout_s: int = parameter(30, help="seconds after which a storage that gives nothing is given up")

    def fitted(self, source: TensorSource, architecture: Any) -> Any:
        """The method for one model: its `planned` knows the sizes of the matrices."""
        from haversack.run.residency._smallthinker_held import FittedMatrices

        return FittedMatrices.of(self, source, architecture)

    def sized(self, parts: Mapping[Key, Sequence[tuple[str, int]]], chosen: int) -> Any:
        """The method for experts that are not stored yet: (kind, bytes) of each one's matrices, `chosen` of
        which a token takes in a layer."""
        from haversack.run.residency._smallthinker_held import sized

        return sized(self, parts, chosen)

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
