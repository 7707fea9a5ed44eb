"""EdgeMoE, widths: each expert gets its own, as narrow as a budget of lost quality allows.

Paper: Yi, Guo, Wei, Zhou, Wang and Xu, "EdgeMoE: Fast On-Device Inference of MoE-based Large Language Models"
(2023; "Empowering Sparse LLMs on Mobile Devices", 2025).
What is here: weights are rounded to nearest with one f16 scale for each output, symmetric: s = max|w| /
(2^(b-1) - 1). An expert's importance is what the loss grows by when it alone has 2 bits and all others 4. Two
neighbouring widths bracket the budget `max_loss` when all experts have them; the least important experts get
the narrower one, as many as the budget allows, found by halves and then step by step. What is no expert stays
in f16, which the paper found fastest. The calibration text's routing is kept beside the pack (run/_paths.py),
for predictions and eviction of `run --residency streamed:edgemoe`.
What we changed: the loss is the mean next-token loss of the calibration text, the paper's a task's metric
[inferred]. `importance=error` ranks experts by the squared error of their outputs on the tokens they are
sent, in one pass, for models with many experts [inferred].
Cost: a pass over the calibration text for every expert, or one with `importance=error`; about ten for the
search. The model's experts are in memory in f32 while it runs.
Limits: 2 bits are the three levels -s, 0 and s; only budgets of some percent leave experts there. Widths do
not change while the model runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.kernels._matrix import GROUPS
from haversack.models._experts import Expert, Experts
from haversack.shrink._expert_bits import WIDTHS, BitPlan, plan_bits
from haversack.shrink._precision import (
    Compressed,
    InputStatistics,
    Kept,
    Narrow,
    Quantized,
    StoredKind,
    expected_noise,
)
from haversack.shrink._rounding import F32, I8

I32 = NDArray[np.int32]
PLANNED_BITS = 4
"""What an expert is expected to get, before its bits are chosen."""


def channel_scales(weight: F32, bits: int) -> F32:
    """One scale a row of `weight` f32 [rows, columns], exact in f16: f32 [rows]."""
    scales = np.abs(weight).max(axis=1) / ((1 << (bits - 1)) - 1)
    return scales.astype(np.float16).astype(np.float32)


def round_channels(weight: F32, bits: int) -> tuple[I8, F32]:
    """Codes int8 [rows, columns] within +-(2^(bits - 1) - 1), and scales f32 [rows], of `weight`; halves go
    to the even code.

    >>> round_channels(np.array([[1, -2, 3.5, -7]], np.float32), 4)[0].tolist()
    [[1, -2, 4, -7]]
    """
    scales = channel_scales(weight, bits)
    largest = (1 << (bits - 1)) - 1
    steps = np.where(scales > 0, scales, np.float32(1))[:, None]
    return np.rint(weight / steps).clip(-largest, largest).astype(np.int8), scales


def stored_kind(bits: int, rows: int, columns: int) -> StoredKind:
    """How a matrix [rows, columns] of `bits` is stored: kinds with a scale for each group repeat the row's,
    in the groups that take the fewest bytes."""
    if bits in (16, 32):
        return StoredKind(f"f{bits}")
    if bits == 8:
        return StoredKind("int8")
    kinds = [StoredKind(f"int{bits}", group) for group in sorted(GROUPS, reverse=True)]
    return min(kinds, key=lambda kind: kind.nbytes(rows, columns))


def compressed(weight: F32, bits: int) -> Compressed:
    """`weight` f32 [rows, columns] at `bits`, with one scale a row."""
    kind = stored_kind(bits, *weight.shape)
    if bits in (16, 32):
        return Kept(kind, weight)
    codes, scales = round_channels(weight, bits)
    groups = 1 if kind.group is None else -(-weight.shape[1] // kind.group)
    made = Narrow if bits == 2 else Quantized
    return made(kind, codes, np.repeat(scales[:, None], groups, axis=1))


@dataclass(frozen=True)
class EdgeMoE(Method):
    name = "edgemoe"
    stage = "shrink"
    slot = "precision"
    paper = "Yi et al., EdgeMoE: Fast On-Device Inference of MoE-based Large Language Models (2023)"
    summary = "Each expert its own bits, as few as a budget of lost quality allows; all else in f16."
    system = 4
    provides = frozenset(
        {
            "weight-type:f32",
            "weight-type:f16",
            "weight-type:int8",
            "weight-type:int4",
            "weight-type:int2",
            "weight-layout:rows16-1",
        }
    )
    needs: ClassVar[frozenset[str]] = frozenset()
    passes: ClassVar[float] = 60.0
    """Of the calibration text, about: one for every expert of a model of fifty."""

    max_loss: float = parameter(0.02, help="share by which the loss of calibration text may grow")
    bits: int = parameter(0, allowed=(0, 2, 4, 8, 16, 32), help="bits of every expert; 0: chosen for each")
    importance: str = parameter(
        "loss",
        allowed=("loss", "error"),
        help="experts are ranked by lost quality, or by their outputs' error",
    )
    rest: str = parameter("f16", allowed=("f16", "f32", "int8"), help="kind of all matrices but the experts'")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.max_loss >= 0:
            raise UserError(
                f"max_loss={self.max_loss} is no loss; use 0 or more (0.02 is 2 %).",
                field="max_loss",
                given=self.max_loss,
                nearest=0.02,
            )

    def for_walk(self, walk: Any) -> EdgeMoE | ForModel:
        """The method for a model that has experts."""
        experts = getattr(walk, "all_experts", None)
        return self if experts is None else ForModel(self, experts)

    def refused(self, walk: Any) -> Mapping[str, str]:
        """Every matrix of a model without experts."""
        if getattr(walk, "all_experts", None) is not None:
            return {}
        inside = (name for block in range(walk.blocks) for name in walk.names(block))
        return {name: "the model has no experts" for name in inside if walk.is_matrix(name)}

    def learn(self, source: Any, walk: Any, texts: I32) -> ForModel:
        """See ForModel; the pipeline asks that."""
        return ForModel(self, walk.all_experts).learn(source, walk, texts)

    def stored(self, rows: int, columns: int) -> StoredKind:
        """How a matrix that is no expert's is stored."""
        return StoredKind(self.rest)

    def noise(self) -> float:
        """Expected squared error over the weights' mean square, of experts."""
        bits = self.bits or PLANNED_BITS
        return 0.0 if bits > 8 else expected_noise(bits, 1024, "largest")

    def quantize(
        self, weights: Mapping[str, F32], inputs: InputStatistics | None
    ) -> Mapping[str, Compressed]:
        """Without a model's experts (see `for_walk`) there is nothing to choose bits for."""
        raise UserError(
            "edgemoe chooses bits for experts, and the model has none; use round-to-nearest.",
            field="precision",
            given=self.name,
            nearest="round-to-nearest",
        )


@dataclass(frozen=True)
class ForModel:
    """The method for one model's `experts`; `plan` once their bits are chosen, `profile` the file that says
    how calibration text chose experts."""

    method: EdgeMoE
    experts: Experts
    plan: BitPlan | None = None
    profile: bytes = b""

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def name(self) -> str:
        """As the method's."""
        return self.method.name

    def __str__(self) -> str:
        return str(self.method)

    def for_walk(self, walk: Any) -> ForModel:
        """Itself: it was made for the model."""
        return self

    def bits_of(self, name: str) -> int | None:
        """Bits of the expert that the tensor `name` belongs to; None for what is no expert's."""
        owner = self._owners.get(name)
        if owner is None:
            return None
        return self.method.bits or (PLANNED_BITS if self.plan is None else self.plan.bits[owner])

    @cached_property
    def _owners(self) -> dict[str, Expert]:
        return {name: key for key, names in self.experts.tensors.items() for name in names}

    def stored(self, rows: int, columns: int) -> StoredKind:
        """See EdgeMoE."""
        return self.method.stored(rows, columns)

    def stored_as(self, name: str, rows: int, columns: int) -> StoredKind:
        """How the matrix `name` is, or is expected to be, stored."""
        bits = self.bits_of(name)
        return self.stored(rows, columns) if bits is None else stored_kind(bits, rows, columns)

    def noise(self) -> float:
        """See EdgeMoE."""
        return self.method.noise()

    def quantize(
        self, weights: Mapping[str, F32], inputs: InputStatistics | None
    ) -> Mapping[str, Compressed]:
        """Every matrix of `weights` at the bits of its expert; what is no expert's in the method's `rest`."""
        found: dict[str, Compressed] = {}
        for name, weight in weights.items():
            bits = self.bits_of(name)
            if bits is not None:
                found[name] = compressed(weight, bits)
            elif self.method.rest == "int8":
                found[name] = compressed(weight, 8)
            else:
                found[name] = Kept(StoredKind(self.method.rest), weight)
        return found

    def learn(self, source: Any, walk: Any, texts: I32) -> ForModel:
        """Choose the experts' bits on `texts` i32 [pieces, length], and note how they choose experts."""
        from haversack.shrink._expert_loss import ModelLoss, profile_of

        profile = b""
        if self.experts.read < len(self.experts.blocks):  # what is written passes experts
            profile = profile_of(source, walk, self.experts, texts).to_bytes()
        if self.method.bits:
            return replace(self, profile=profile)
        loss = ModelLoss(source, walk, self.experts, texts)
        keys: Sequence[Expert] = list(self.experts.tensors)
        errors = loss.errors() if self.method.importance == "error" else None
        plan = plan_bits(loss, keys, loss.reference, self.method.max_loss, widths=WIDTHS, importance=errors)
        return replace(self, plan=plan, profile=profile)

    def files(self) -> dict[str, bytes]:
        """What the pack holds beside the tensors."""
        from haversack.run._paths import PROFILE_NAME

        return {PROFILE_NAME: self.profile} if self.profile else {}
