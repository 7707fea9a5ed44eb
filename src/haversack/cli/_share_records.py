"""What `haversack share route`, `learn`, `collaborate` and `ledger` print under `--json`, as records."""

from __future__ import annotations

from typing import Annotated

import msgspec

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]


class _Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class ShareRouteOutput(_Record):
    """`haversack share route`, printed when it answers. `budget`: the limits that are set; `threshold` with a
    router, `tau` with a cascade."""

    url: str
    device: str
    cloud: str | None
    policy: str
    threshold: float | None
    tau: float | None
    budget: dict[str, float | str]
    privacy: str
    ledger: str | None
    planned_mib: float | None


class HeldOutRecord(_Record):
    """A form on queries that it did not learn from: mean outcomes of the weak and the strong model, of
    routing (`outcome`), random, prompt length and the oracle at the wanted share; parts of the gap recovered;
    the area beside the oracle's; what the calibrated threshold gives."""

    form: str
    weak: Share
    strong: Share
    outcome: Share
    random: Share
    length: Share
    oracle: Share
    recovered: float
    recovered_length: float
    area_of_oracle: float
    share_by_threshold: Share
    outcome_by_threshold: Share


class RouterFile(_Record):
    """What was written."""

    path: str
    nbytes: Count


class ShareLearnOutput(_Record):
    """`haversack share learn`. `weak`, `strong`: the columns; `form` and `threshold` of the router, which in
    the end learned from all queries."""

    queries: Count
    weak: str
    strong: str
    share: Share
    by: str
    seed: int
    held_out: list[HeldOutRecord]
    file: RouterFile | None
    form: str
    threshold: float


class AlgorithmRecord(_Record):
    """One algorithm of `--list`."""

    code: str
    name: str
    summary: str
    parameters: list[str]


class RunRecord(_Record):
    """An algorithm over all tasks. `right`: share of known answers; `degraded`: tasks that ended otherwise
    than the algorithm would; `nbytes` over all links."""

    algorithm: str
    swept: str
    tasks: Count
    right: Share | None
    degraded: Count
    calls: dict[str, Count]
    tokens: Count
    nbytes: Count
    cost_usd: Amount
    median_s: Amount
    longest_s: Amount


class StepRecord(_Record):
    """One message and what came of it."""

    at: Amount
    sender: str
    to: str
    kind: str
    nbytes: Count
    outcome: str


class AnswerRecord(_Record):
    """The answer to one question."""

    answer: str
    right: bool | None
    degraded: str
    seconds: Amount
    cost_usd: Amount
    nbytes: Count
    calls: dict[str, Count]
    trace: list[StepRecord]


class ShareCollaborateOutput(_Record):
    """`haversack share collaborate`. `runs`: one, or one for each value of --sweep; `answer` to a single
    question; `url` with --serve."""

    algorithms: list[AlgorithmRecord]
    runs: list[RunRecord]
    answer: AnswerRecord | None
    url: str | None


class Totals(_Record):
    """Sums of a ledger's counters."""

    uplink_bytes: Amount
    downlink_bytes: Amount
    energy_mj: Amount
    cost_usd: Amount


class AnsweredRecord(Totals, kw_only=True):
    """What one place answered."""

    where: str
    requests: Count


class LedgerEntry(Totals, kw_only=True):
    """One request: when, where it was answered, and why."""

    time: str
    where: str
    what: str


class ShareLedgerOutput(_Record):
    """`haversack share ledger`: every entry was checked."""

    ledger: str
    entries: Count
    totals: Totals
    answered: list[AnsweredRecord]
    last: list[LedgerEntry]


SHARE_OUTPUTS: dict[str, type[msgspec.Struct]] = {
    "share-route": ShareRouteOutput,
    "share-learn": ShareLearnOutput,
    "share-collaborate": ShareCollaborateOutput,
    "share-ledger": ShareLedgerOutput,
}
