"""What `run --json` says of decoding with a draft model, and with a server."""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0)]


class DraftingRecord(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What decoding with a draft model did. A pass is a step of the large model after the prompt;
    `acceptance`: the share of drafted tokens that was right; `speculated`: drafted while a pass waited for
    weights, `kept` of them still of use after it; `plain`: passes for which drafting rested; `threshold`: the
    confidence below which drafting stopped in the end. Times are in seconds."""

    passes: Count
    tokens_a_pass: float
    acceptance: float | None
    drafted: Count
    accepted: Count
    small_steps: Count
    largest: Count
    speculated: Count
    kept: Count
    plain: Count
    threshold: float | None
    drafting_s: Share
    verifying_s: Share


class RemoteRecord(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What writing with a server did. `model`, `target`: the server's, and its version; `mode`: greedy,
    tokens or rejection. `acceptance`: the share of drafted tokens that was right; `acceptance_judged`: of
    those whose predecessors were, as the controller sees it in the end. `lengths`: drafts, round by round.
    `repeated`: rounds asked for again, `stale`: answers that came twice, `reopened`: times the text was sent
    again. `unverified` tokens were written alone, at the places [first, end) of `alone`. Seconds: of the
    draft, on the link, at the server, until the server had read the text, without a link. Joules are modelled
    (watts times seconds): of this device, and the server's. `over_budget`: rounds longer than the energy
    budget allows."""

    model: str
    target: str
    mode: str
    rounds: Count
    tokens_a_round: float
    drafted: Count
    accepted: Count
    acceptance: float | None
    acceptance_judged: float
    lengths: list[Count]
    repeated: Count
    stale: Count
    reopened: Count
    unverified: Count
    alone: list[list[Count]]
    up_bytes: Count
    down_bytes: Count
    rtt_s: float | None
    drafting_s: Share
    link_s: Share
    serving_s: Share
    opening_s: Share
    offline_s: Share
    device_j: Share
    cloud_j: Share
    over_budget: Count
