"""What `haversack train` prints under `--json`, as records."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec


class _Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class FamilyRecord(_Record):
    """The family of a model: the hash of its anchor's float tensors (docs/format.md), and its blocks."""

    name: str
    anchor_sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    anchor_layers: Annotated[int, msgspec.Meta(ge=1)]


class LossRecord(_Record):
    """Mean loss of the first and of the last tenth of this run's steps."""

    first: float
    last: float


class DraftQuality(_Record):
    """On held-out text: share of positions where draft and target choose alike, and KL in nats."""

    agreement: Annotated[float, msgspec.Meta(ge=0, le=1)]
    divergence: float


class FitQuality(_Record):
    """Loss on held-out text, nats a token."""

    loss_before: float
    loss: float


class TrainMemory(_Record):
    """Peak memory in MiB: planned before, measured at the end."""

    planned: float
    measured: float


class TrainDraftOutput(_Record):
    """`haversack train draft`. `shared_nbytes`: bytes of the draft that the target has too."""

    output: str
    family: FamilyRecord
    nbytes: int
    shared_nbytes: int
    steps: int
    tokens: int
    loss: LossRecord
    held_out: DraftQuality
    seconds: float
    ram_mib: TrainMemory


class TrainFitOutput(_Record):
    """`haversack train fit`. `family`: null where the target belongs to none; `blocks`: what changed."""

    output: str
    form: Literal["merged", "adapter"]
    family: FamilyRecord | None
    blocks: list[int]
    steps: int
    tokens: int
    loss: LossRecord
    held_out: FitQuality
    seconds: float
    ram_mib: TrainMemory


class JudgedRecord(_Record):
    """On held-out rows: the share that the likeliest class is right of, and the mean loss in nats."""

    accuracy: Annotated[float, msgspec.Meta(ge=0, le=1)]
    loss: float


class HeldOutRecord(_Record):
    """Before the first step and after the last."""

    before: JudgedRecord
    after: JudgedRecord


class TrainSlots(_Record):
    """The choice of each slot of stage train."""

    parameters: str
    gradient: str
    precision: str
    aggregation: str


class RowsRecord(_Record):
    """Rows of each side; `left_out`: path and finding of each picture that was skipped."""

    learned: Annotated[int, msgspec.Meta(ge=1)]
    held_out: Annotated[int, msgspec.Meta(ge=1)]
    left_out: list[tuple[str, str]]


class DeltaSize(_Record):
    """Bytes on storage, and tensors."""

    nbytes: int
    tensors: int


class SavedRecord(_Record):
    """MiB kept between the way forward and the way back: by the plan (null where it does not say), and the
    most that a step had."""

    planned: float | None
    measured: float


class TrainLabelsOutput(_Record):
    """`haversack train fit` on labelled rows. `why`: how the methods were chosen; `rate`: the one taken;
    `plan_mib`: the lines of the memory plan."""

    output: str
    network: str
    classes: list[str]
    new_head: bool
    slots: TrainSlots
    why: str
    learned_numbers: int
    steps: int
    rate: float
    rows: RowsRecord
    loss: LossRecord
    held_out: HeldOutRecord
    delta: DeltaSize
    saved_mib: SavedRecord
    plan_mib: dict[str, float]
    seconds: float
    ram_mib: TrainMemory | msgspec.UnsetType = msgspec.UNSET


class SchemeRecord(_Record):
    """A combination of methods that was looked at, and what it would hold."""

    parameters: str
    gradient: str
    precision: str
    learned_numbers: int
    ram_mib: float


class TrainPlanOutput(_Record):
    """`haversack train fit --plan` on labelled rows: what would be trained and the lines of its memory in
    MiB; `schemes`: all that were looked at, the best first."""

    network: str
    slots: TrainSlots
    why: str
    learned_numbers: int
    rows: RowsRecord
    schemes: list[SchemeRecord]
    plan_mib: dict[str, float]
    ram_mib: float


class TrainTextPlanOutput(_Record):
    """`haversack train fit --plan` without labels, and with `--gradient zeroqat`."""

    model: str
    methods: str
    plan_mib: dict[str, float]
    ram_mib: float


class TrainingArm(_Record):
    """One training of a comparison. `plain`: fine-tuning of everything; `front`: nothing beats it in memory
    and accuracy both; `training`: what `haversack train fit` printed, null where it was refused
    (`reason`)."""

    parameters: str
    gradient: str
    precision: str
    plain: bool
    front: bool
    ram_mib: TrainMemory
    reason: str | None
    training: TrainLabelsOutput | None


class TrainCompareOutput(_Record):
    """`haversack train fit --compare`"""

    report: str
    network: str
    arms: list[TrainingArm]


class TrainApplyOutput(_Record):
    """`haversack train apply` and `haversack train remove`. `files_sha256`: over the base's files."""

    output: str
    base: str
    files_sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class ClassRecord(_Record):
    """A class and its probability."""

    name: str
    probability: Annotated[float, msgspec.Meta(ge=0, le=1)]


class RunNetworkOutput(_Record):
    """`haversack run` of a network that classifies, the likeliest classes first."""

    network: str
    delta: str | None
    input: str
    classes: list[ClassRecord]
    ram_mib: TrainMemory


class BitsRecord(_Record):
    """Bits of weights and of what matrices are given (16: not rounded); `group`: inputs under one scale, null
    for whole rows."""

    weights: Annotated[int, msgspec.Meta(ge=2, le=16)]
    inputs: Annotated[int, msgspec.Meta(ge=2, le=16)]
    group: int | None


class StepsRecord(_Record):
    """Steps that were taken and skipped (a loss that was not finite), and the one that was written."""

    best: int
    taken: int
    skipped: int


class TrainQuantizedOutput(_Record):
    """`haversack train fit --gradient zeroqat`. `before`, `held_out`: loss in nats and, of a table, accuracy
    of the rounded model on what was kept apart, before the first step and as written."""

    output: str
    bits: BitsRecord
    variant: Literal["full", "light"]
    before: dict[str, float]
    held_out: dict[str, float]
    steps: StepsRecord
    seconds: float
    ram_mib: TrainMemory


TRAIN_OUTPUTS: dict[str, type[msgspec.Struct]] = {
    "train-draft": TrainDraftOutput,
    "train-fit": TrainFitOutput,
    "train-fit-labels": TrainLabelsOutput,
    "train-fit-compare": TrainCompareOutput,
    "train-fit-plan": TrainPlanOutput,
    "train-fit-plan-texts": TrainTextPlanOutput,
    "train-fit-zeroqat": TrainQuantizedOutput,
    "train-apply": TrainApplyOutput,
    "train-remove": TrainApplyOutput,
    "run-network": RunNetworkOutput,
}
