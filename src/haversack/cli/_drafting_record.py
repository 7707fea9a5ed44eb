"""What `run --json` says of decoding with a draft model."""

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
