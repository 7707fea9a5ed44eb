"""What `run --json` says of how a run computed: what it left out, and how two processors shared a prompt."""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0)]


class SparsityRecord(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What tokens behind the prompt (`rows`) skipped: bytes of weights read by one, of `dense`; the share
    skipped, and the one `asked` for; `drift`: what to do where the two are far apart."""

    rows: Count
    nbytes: float
    dense: Count
    sparsity: float | None
    asked: float | None
    drift: str | None


class AttentionRecord(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A prompt under sparse attention. `kept`: the share of its pairs of query and key that were looked at;
    `borders`: chunks; `note`: why it was read densely, else empty."""

    tokens: Count
    borders: Count
    kept: Share
    border_ms: float
    choice_ms: float
    gathered_mib: float
    note: str


class PrefillRecord(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A prompt in chunks on two processors. `graphs_built`: those that had to be made for it; `load_ms`:
    opening the weights; `busy_ms`: processor -> time at work."""

    chunks: Count
    graphs_built: Count
    load_ms: Share
    build_ms: Share
    run_ms: Share
    busy_ms: dict[str, float]
