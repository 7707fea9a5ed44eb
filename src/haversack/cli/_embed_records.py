"""What `haversack embed` prints under `--json`, as records."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]


class _Record(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class ModelErrors(_Record):
    """Mean absolute errors of a forward model in metres on the end of its log: one step ahead, running
    free."""

    error_m: float
    free_error_m: float


class TrackingRecord(_Record):
    """Distances from the wish in metres, and the mean square of the input's moves."""

    max_m: float
    mean_m: float
    rmse_m: float
    effort: float


class ControllerCosts(_Record):
    """Counted from shapes: numbers, bytes, and what a tick computes."""

    parameters: Count
    flash_bytes: Count
    ram_bytes: Count
    network_steps: Count
    operations: Count


class ControllerC(_Record):
    """The C controller beside the numpy one, as a share of the inputs' range; microseconds a tick on this
    machine. Null without gcc."""

    difference: float | None
    tick_us: float | None


class EmbedControlOutput(_Record):
    """`haversack embed control`"""

    plant: str
    reference: str
    model: ModelErrors
    tracking: TrackingRecord
    costs: ControllerCosts
    c: ControllerC
    warnings: list[str]
    output: str


class ArenaPiece(_Record):
    """A tensor's place in the arena: bytes from `offset`, alive from operation `first` to `last`."""

    tensors: list[str]
    offset: Count
    nbytes: Count
    first: Count
    last: Count


class LearnedPiece(_Record):
    """What learns of a tensor, in the block of what learns: bytes from `offset`; `channels` of its last
    dimension, null for all."""

    dtype: Literal["int8", "int32", "f32", "f16", "bf16"]
    offset: Count
    shape: list[Count]
    channels: list[Count] | None


class TrainingStep(_Record):
    """The step that `--train` emits. `ram_bytes`: arena, what learns, and what steps carry along."""

    scheme: str
    loss: Literal["cross-entropy", "mean-square"]
    sums: Literal["same", "f32"]
    kernels: str
    momentum: float
    examples: Count
    learned_numbers: Count
    learned_bytes: Count
    carried_bytes: Count
    ram_bytes: Count
    learned: dict[str, LearnedPiece]
    forward_macs: Count
    backward_macs: Count


class StripsRecord(_Record):
    """The first `operations` run in `count` strips, with `extra` products more than without."""

    operations: Count
    count: Count
    extra: Count


class EmbedBuildOutput(_Record):
    """`haversack embed build`. `instructions` (of a pass) and `cycles` are a model's figures, not
    measurements; `kernels` are those of layers that do not have the plain one, `tuned_us` what tuning
    measured of each, here."""

    model: str
    target: Literal["host", "cortex-m4f", "cortex-m7", "riscv32", "riscv32-zfh", "riscv32-zvfh"]
    kind: Literal["float", "int8", "fp32", "fp16", "bf16", "int8-qas"]
    arena_bytes: Count
    arena_bound_bytes: Count
    state_bytes: Count
    constant_bytes: Count
    flash_bytes: Count | None
    macs: Count
    instructions: Count | None
    cycles: Count
    kernels: dict[str, str]
    threads: Count
    strips: StripsRecord | None
    tuned_us: dict[str, dict[str, float]] | None
    arena: list[ArenaPiece]
    tensors: dict[str, Count]
    files: list[str]
    output: str
    training: TrainingStep | msgspec.UnsetType = msgspec.UNSET


class VerifiedBuild(_Record):
    """One build and its run: where, the largest difference from the Python graph, marks in bytes."""

    where: str
    outputs: Count
    differing: Count
    largest: float
    arena_used: Count
    stack_used: Count | None
    instructions: Count | None
    skipped: str | None


class EmbedCalibrateOutput(_Record):
    """`haversack embed calibrate`: of every kernel instructions for a product with an addition, for a place
    of a window and for a number; how far off the fit is at most; the same of the model that ships."""

    target: str
    costs: dict[str, dict[str, tuple[float, float, float]]]
    largest_error: float
    shipped: dict[str, dict[str, tuple[float, float, float]]] | None


class EmbedVerifyOutput(_Record):
    """`haversack embed verify`"""

    builds: list[VerifiedBuild]
    holds: bool
    report: dict[str, Any]


EMBED_OUTPUTS: dict[str, type[msgspec.Struct]] = {
    "embed-control": EmbedControlOutput,
    "embed-build": EmbedBuildOutput,
    "embed-calibrate": EmbedCalibrateOutput,
    "embed-verify": EmbedVerifyOutput,
}
