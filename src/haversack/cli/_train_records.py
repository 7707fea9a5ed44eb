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
