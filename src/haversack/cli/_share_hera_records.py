"""What the step commands of `haversack share` print under `--json`, as records."""

from __future__ import annotations

import msgspec

from haversack.cli._sense_records import MeasuredMemory, WrittenRecord


class _Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class SpentRecord(_Record):
    """A ledger's totals: KiB sent, millijoules, USD."""

    uplink_kib: float
    energy_mj: float
    cost_usd: float


class ShareEpisodesOutput(_Record):
    """`haversack share episodes`. `success` and `cloud_share` are shares of episodes and of steps;
    `cloud_calls`, `steps` and `prefill_tokens` (tokens, about, that a model read anew) are means of an
    episode; `offline_steps` and `capped_steps` count steps on which the cloud was wanted and not reached,
    or not within the budget."""

    world: str
    episodes: int
    success: float
    cloud_share: float
    cloud_calls: float
    steps: float
    threshold: float
    prefill_tokens: float
    offline_steps: int
    capped_steps: int
    stopped: int
    spent: SpentRecord
    file: WrittenRecord | None
    ram_mib: MeasuredMemory


class ImitationRecord(_Record):
    """Steps that were learned from, and on how many the agents' actions differ."""

    steps: int
    differ: int


class OutcomesRecord(_Record):
    """States that were left both ways, and in how many the cloud is preferred."""

    states: int
    for_cloud: int


class RoundRecord(_Record):
    """A round of play: means of its episodes, groups of states, the share of them that prefers the cloud."""

    success: float
    cloud_calls: float
    groups: float
    for_cloud: float


class ShareLearnStepsOutput(_Record):
    """`haversack share learn-steps` and `share learn --router hera`; null where a stage was left out.
    `cloud_share`: of the recorded steps, at the threshold."""

    traces: str
    episodes: int
    steps: int
    imitation: ImitationRecord | None
    outcomes: OutcomesRecord | None
    rounds: list[RoundRecord]
    threshold: float
    cloud_share: float | None
    notes: list[str]
    file: WrittenRecord | None


# Name of the schema -> what it describes.
STEP_OUTPUTS: dict[str, type[msgspec.Struct]] = {
    "share-episodes": ShareEpisodesOutput,
    "share-learn-steps": ShareLearnStepsOutput,
}
