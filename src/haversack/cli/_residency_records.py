"""What `run --json` says of weights that come while a model runs, and of an output matrix in parts."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0)]


class NeuronsRecord(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Neurons of chosen experts whose gate was `examined`, and those whose gate was above zero."""

    examined: Count
    activated: Count


class RestorationRecord(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What restoring sealed weights took; the stages run beside one another and beside the computation, which
    waited for `waited_s`."""

    restored_mib: float
    allocate_s: float
    read_s: float
    decrypt_s: float
    waited_s: float


class HeadRecord(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`rows` of the output matrix over all tokens after the prompt, and how many were `computed`."""

    rows: Count
    computed: Count


class ExpertsRecord(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Experts were `asked` for; `hits` were there, `late` on their way, `demands` absent. `preloads` were
    begun on a guess: `useful` ones were chosen, `wasted` ones not, `stopped` ones called off. `nbytes`
    arrived, `bytes_read` left the storage. `stall_s` was waited. `bound_s`: reading what no eviction could
    have kept, or computing, whichever is slower; `times_bound`: the run's seconds over it. `unit`: what
    comes and goes, where it is no whole expert; of matrices also how many were `prefetched`, that is begun
    before attention, and the `neurons`. Where bits are nested, planes are what is counted: `plane_nbytes`
    were read of each, in the `schedule`'s order, and tokens read `mean_bits`."""

    asked: Count
    hits: Count
    late: Count
    demands: Count
    preloads: Count
    useful: Count
    wasted: Count
    stopped: Count
    evictions: Count
    nbytes: Count
    peak_nbytes: Count
    stall_s: Share
    hit_ratio: Share
    bytes_read: Count
    buffer_nbytes: Count
    predict: Literal["paths", "gate", "none"]
    eviction: Literal["planes", "intent", "printed", "frequency", "lru", "fifo", "none"]
    bound_s: Share | msgspec.UnsetType = msgspec.UNSET
    times_bound: Share | msgspec.UnsetType = msgspec.UNSET
    unit: Literal["matrix"] | msgspec.UnsetType = msgspec.UNSET
    prefetched: Count | msgspec.UnsetType = msgspec.UNSET
    neurons: NeuronsRecord | msgspec.UnsetType = msgspec.UNSET
    schedule: Literal["hebf", "id-order"] | msgspec.UnsetType = msgspec.UNSET
    plane_nbytes: list[Count] | msgspec.UnsetType = msgspec.UNSET
    mean_bits: Share | msgspec.UnsetType = msgspec.UNSET
