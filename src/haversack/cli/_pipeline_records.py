"""What `haversack sense pipeline` prints under `--json`, as records."""

from __future__ import annotations

import msgspec


class _Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class PipelineConfig(_Record):
    """Encoder of the slow sense, its frames a second, encoder of the fast sense, its samples a chunk."""

    slow: str
    rate: int
    fast: str
    chunk: int


class WindowRecord(_Record):
    """One window's answer. `used` and `planned`: units of the slow and of the fast sense; `stopped`: by the
    gate. Latencies in ms: after the last sample, after the end of the first sense, since the window's
    begin. `stages`: ms of sense, encode, wait, aggregate, fuse, optimizer, gate; `truth`: the label where
    it is known."""

    label: str
    probability: float
    config: PipelineConfig
    used: list[int]
    planned: list[int]
    stopped: bool
    latency_ms: float
    latency_first_ms: float
    wall_ms: float
    in_time: bool | None
    predicted_ms: float | None
    stages: dict[str, float]
    warnings: list[str]
    truth: str | None


class LatencyRecord(_Record):
    """Of all windows, in ms after the last sample."""

    median: float
    most: float


class PipelineWritten(_Record):
    """A file that was written."""

    path: str
    nbytes: int


class PipelineFiles(_Record):
    """What was written; null where it was not asked for."""

    plot: PipelineWritten | None
    profile: PipelineWritten | None
    recording: PipelineWritten | None


class PipelineMemory(_Record):
    """Peak memory of the three processes together, in MiB."""

    planned: float
    measured: float


class SensePipelineOutput(_Record):
    """`haversack sense pipeline`. `right` of `labelled` windows were answered rightly (null without labels);
    `in_time`: windows that met the deadline."""

    model: str
    mode: str
    deadline_ms: float
    slower: int
    windows: list[WindowRecord]
    right: int | None
    labelled: int
    in_time: int
    latency_ms: LatencyRecord
    warnings: list[str]
    files: PipelineFiles
    ram_mib: PipelineMemory


PIPELINE_OUTPUTS: dict[str, type[msgspec.Struct]] = {"sense-pipeline": SensePipelineOutput}
