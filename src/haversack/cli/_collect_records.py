"""What `haversack collect` prints under `--json`, as records."""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class _Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class FindingRecord(_Record):
    """Why a bundle is refused: a code for programs and a sentence."""

    code: str
    what: str


class BundleNumbers(_Record):
    """Of a bundle whose tables could be read: its length, the longest pause, the largest share of frames
    missing in a second, and whether the rate varies by more than a quarter of a period."""

    seconds: Seconds
    frames: Count
    longest_gap_s: Seconds
    worst_drop_rate: Seconds
    variable_rate: bool


class CheckedBundle(_Record):
    """One bundle."""

    path: str
    whole: bool
    findings: list[FindingRecord]
    numbers: BundleNumbers | None


class CollectValidateOutput(_Record):
    """`haversack collect validate`; a data set stands in `bundles` alone, with findings of code `set`."""

    path: str
    bundles: list[CheckedBundle]
    refused: Count


class CollectServerOutput(_Record):
    """`haversack collect server`, printed when it takes uploads; `token`: whether /metrics needs one."""

    url: str
    root: str
    token: bool


class CollectEnrolOutput(_Record):
    """`haversack collect enrol`: the code, and the address that the QR shows."""

    code: str
    address: str
    contributor: str
    hours: Seconds
    svg: str | None


class RefusedClip(_Record):
    """A clip that stays in the spool, with the server's code."""

    path: str
    code: str
    reason: str


class CollectPushOutput(_Record):
    """`haversack collect push`. `payload_bytes`: of the clips delivered; `sent_bytes`: of all chunks sent."""

    clips: list[str]
    payload_bytes: Count
    sent_bytes: Count
    retries: Count
    refused: list[RefusedClip]


class StageState(_Record):
    """Clips in one state of one stage, and the processor's seconds they took."""

    stage: str
    version: str
    state: str
    count: Count
    cpu_s: Seconds


class DroppedRecord(_Record):
    """Clips that a stage dropped for one reason."""

    stage: str
    reason: str
    count: Count


class QuarantinedRecord(_Record):
    """A clip that was set aside, and the last error."""

    clip: str
    stage: str
    attempts: Count
    error: str | None


class CollectProcessOutput(_Record):
    """`haversack collect process`. `deaths`: workers that ended before their time."""

    deaths: Count
    seconds: Seconds
    jobs: list[StageState]
    dropped: list[DroppedRecord]
    quarantined: list[QuarantinedRecord]


class CollectForgetOutput(_Record):
    """`haversack collect forget`. `mark`: the tombstone; `files`, `nbytes`: removed (bytes of objects);
    `searched_*`: what the proof read; `traces`: what it found, always empty when the command ends with 0."""

    mark: str
    clips: Count
    devices: Count
    files: Count
    nbytes: Count
    exports: list[str]
    searched_files: Count
    searched_bytes: Count
    traces: list[str]


class CollectEdgeOutput(_Record):
    """`haversack collect edge`. `states`: frames in each state of the motion sensors' gate."""

    seconds: Seconds
    clock_s: Seconds
    frames: Count
    looks: Count
    detections: Count
    clips: list[str]
    clip_bytes: Count
    states: dict[str, Count]


class CollectExportOutput(_Record):
    """`haversack collect export`. `splits`: episodes of each; `left_out`: clips, by reason."""

    path: str
    episodes: Count
    frames: Count
    splits: dict[str, Count]
    left_out: dict[str, Count]


class CollectRetargetOutput(_Record):
    """`haversack collect retarget`. `unknown`: frames without a hand; `outside`: of those with one, outside
    the workspace; `residual_m`: of the fingertips, mean."""

    path: str
    episodes: Count
    frames: Count
    outside: Count
    unknown: Count
    residual_m: Seconds


class CollectViewOutput(_Record):
    """`haversack collect view`."""

    path: str
    episode: Count
    bytes: Count


COLLECT_OUTPUTS: dict[str, type[msgspec.Struct]] = {
    "collect-edge": CollectEdgeOutput,
    "collect-server": CollectServerOutput,
    "collect-enrol": CollectEnrolOutput,
    "collect-push": CollectPushOutput,
    "collect-process": CollectProcessOutput,
    "collect-export": CollectExportOutput,
    "collect-retarget": CollectRetargetOutput,
    "collect-view": CollectViewOutput,
    "collect-forget": CollectForgetOutput,
    "collect-validate": CollectValidateOutput,
}
