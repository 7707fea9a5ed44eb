"""What `haversack share split` prints under `--json`, as records."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class SplitMemory(_Record):
    """Peak memory in MiB."""

    measured: float


class SplitTrainOutput(_Record):
    """`haversack share split train`. `quality`: of each mode, k first; `model`: its hash."""

    task: str
    classes: list[str]
    side: int
    members: int
    model: str
    metric: str
    quality: list[list[Share]]
    teacher: Share
    pack: str
    method: str
    learned_from: int
    held_out: int
    seconds: float
    ram_mib: SplitMemory


class SplitHalveOutput(_Record):
    """`haversack share split halve`"""

    pack: str
    model: str
    whole_bytes: int
    device_bytes: int


class SplitDeviceMode(_Record):
    """One mode on this device."""

    k: int
    b: int
    encode_ms: float
    payload_bytes: int
    quality: Share


class SplitBenchDeviceOutput(_Record):
    """`haversack share split bench-device`. `encode_ms`: by k; `switch_us`: microseconds of set_mode."""

    pack: str
    backend: str
    threads: int
    metric: str
    modes: list[SplitDeviceMode]
    encode_ms: dict[str, float]
    switch_us: float
    ram_mib: SplitMemory


class SplitServeOutput(_Record):
    """`haversack share split serve`, printed when it listens. `planned_mib`: memory that it will hold."""

    url: str
    model: str
    task: str
    classes: list[str]
    planned_mib: float


class SplitModeCount(_Record):
    """How many frames a mode had."""

    mode: int
    frames: int


class SplitMilliseconds(_Record):
    """Medians over the frames."""

    encode: float
    decode: float
    total: float


class SplitShot(_Record):
    """One frame; `answer` is null where none came."""

    seq: int
    mode: int
    bytes: int
    e2e_ms: float
    encoder_time_ms: float
    decoder_time_ms: float
    transfer_time_ms: float
    kbs: float
    hit: bool
    answer: dict[str, Any] | None


class SplitRunOutput(_Record):
    """`haversack share split run`. `shots`: the last hundred; `mean_quality`: of the modes of frames in time,
    others as 0."""

    pack: str
    source: str
    controller: str
    deadline_ms: float
    frames: int
    hits: int
    lost: int
    hit_share: Share
    metric: str
    mean_quality: Share
    uplink_bytes: int
    modes: list[SplitModeCount]
    ms: SplitMilliseconds
    shots: list[SplitShot]
    ram_mib: SplitMemory


class SplitPlayed(_Record):
    """One controller over the link; `mean_quality`: of the modes of frames in time, others as 0."""

    controller: str
    frames: int
    hit_share: Share
    mean_quality: Share
    modes: list[SplitModeCount]


class SplitTraced(_Record):
    """What a public trace's own device came to; `mean_map`: as the trace has it, late frames as 0."""

    frames: int
    hit_share: Share
    mean_map: float


class SplitPlayOutput(_Record):
    """`haversack share split play`. `encode_ms`: by k; `traced`: null where the link is no public trace."""

    pack: str
    link: str
    deadline_ms: float
    seconds: float
    metric: str
    encode_ms: dict[str, float]
    controllers: list[SplitPlayed]
    traced: SplitTraced | None


class SplitJudged(_Record):
    """One mode (0: a file of results): the metric of the pack, and COCO's mAP (a classifier's accuracy)."""

    mode: int
    quality: Share
    coco: Share


class SplitEvaluateOutput(_Record):
    """`haversack share split evaluate`"""

    pack: str
    pictures: int
    metric: str
    modes: list[SplitJudged]


# Name of the schema -> what it describes.
SHARE_SPLIT_OUTPUTS: dict[str, type[msgspec.Struct]] = {
    "share-split-train": SplitTrainOutput,
    "share-split-halve": SplitHalveOutput,
    "share-split-bench-device": SplitBenchDeviceOutput,
    "share-split-serve": SplitServeOutput,
    "share-split-run": SplitRunOutput,
    "share-split-play": SplitPlayOutput,
    "share-split-evaluate": SplitEvaluateOutput,
}
