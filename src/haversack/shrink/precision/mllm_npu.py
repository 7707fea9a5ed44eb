"""mllm-NPU: int8 weights and static int8 activations, one scale each, with their outliers in the shadow.

Paper: Xu et al. (the list of authors is [recalled]), "Fast On-device LLM Inference with NPUs" (ASPLOS 2025;
arXiv 2407.05858, 2024), shadow outlier execution and the pruning of unimportant shadows.
What is here: a matrix has the scale max|W| / 127. Of the inputs of every matrix, and of its outputs without
the bias, which is added behind the integers, calibration text shows the largest magnitude and the one that a
share `beyond` of them passes (0.1 %), by a streaming histogram. Where the latter times `threshold` is more
than the former there are no outliers of note: the side clips, at max / 127. Else it is in the shadow: its
scale is that of the smaller one, and what passes the grid, r - clip(r) with r = round(x / s), is added in
floats (run/forms/shadow.py, kernels/shadow.py). Outliers sit in few channels: those that hold `HOT_COVER` of
them, at most `HOT_MOST` of all, have their weights kept apart. The importance of a matrix is its largest
input over its scale, or its largest output over its own; shadows of all but the `keep` most important share
of the matrices are left out, which saves a meeting of the two processors each.
What we changed: a side whose shadow is left out gets the clipping grid of the least squared error, found in
its histogram, where the paper clips at the shadow's (`alone=percentile`). `beyond` is a choice, because a
tenth of a percent is less than one channel of a narrow model. Matrices of equal importance (query, key and
value read the same input) stay or go in the order of use.
Cost: two passes of the text through each block of the float model, a product of every matrix and a count of
its numbers; a histogram of 65,536 bins for each side. In use: what kernels/shadow.py says, where shadows are
kept.
Peak: a block in f32, the hidden states of the text (on disk beyond 256 MiB), the widest outputs of a text and
a histogram for each matrix of one block.
Limits: decoders without mixtures of experts: an expert's inputs are too few for a static grid. Rotation of
activations before profiling is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.models._architecture import Architecture
from haversack.shrink._precision import InputStatistics, Quantized, StoredKind, expected_noise
from haversack.shrink._rounding import F32, I8

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
LOW, HIGH = -128, 127
HOT_COVER = 0.8
HOT_MOST = 0.03


# Scales


def weight_codes(weight: F32) -> tuple[I8, float]:
    """Codes int8 of a matrix with one scale, max|W| / 127, and that scale."""
    scale = float(np.abs(weight).max(initial=0.0)) / HIGH or 1.0
    return np.clip(np.rint(weight / np.float32(scale)), -HIGH, HIGH).astype(np.int8), scale


@dataclass(frozen=True)
class Side:
    """One side of a matrix: the grid's `scale`, whether what passes it is clipped or in the shadow, and the
    `largest` magnitude seen; `alone`: the scale where a shadow is left out."""

    scale: float
    mode: str
    largest: float
    alone: float

    @property
    def importance(self) -> float:
        """How many steps of the grid the largest is; 0 for a side that clips."""
        return self.largest / self.scale if self.mode == "shadow" else 0.0


def side_of(largest: float, high: float, threshold: float, alone: float = 0.0) -> Side:
    """The side whose magnitudes reach `largest`, all but a few of them at most `high`; `alone`: see Side
    (0: as with the shadow)."""
    if high * threshold > largest or high <= 0.0:
        return Side(largest / HIGH or 1.0, "clip", largest, largest / HIGH or 1.0)
    return Side(high / HIGH, "shadow", largest, alone or high / HIGH)


# Shadow execution


def split(x: F32, scale: float) -> tuple[F32, F32]:
    """The integers that an integer processor sees, clip(r), and what they miss, r - clip(r): both as floats,
    of the shape of x."""
    r = np.rint(x / scale)
    seen = np.clip(r, LOW, HIGH)
    return seen, r - seen


def shadow_product(x: F32, codes: I8, scale: float, weight_scale: float, *, shadow: bool = True) -> F32:
    """x [n, columns] times the matrix `codes` [rows, columns], transposed, as the two processors make it: the
    clipped integers, and of every input that was clipped what that missed. Without `shadow`: the former."""
    seen, missed = split(x, scale)
    step = scale * weight_scale
    weights = codes.astype(x.dtype)
    found: F32 = (seen @ weights.T) * step
    if not shadow:
        return found
    for row, channel in np.argwhere(missed):
        found[row] += missed[row, channel] * step * weights[:, channel]
    return found


def hot_channels(counts: I64) -> I32:
    """The fewest channels that hold `HOT_COVER` of the outliers `counts` [columns], rising; at most
    `HOT_MOST` of all channels, and one at least where there are any outliers."""
    total = int(counts.sum())
    if total == 0:
        return np.empty(0, np.int32)
    order = np.argsort(-counts, kind="stable")
    enough = int(np.searchsorted(np.cumsum(counts[order]), HOT_COVER * total)) + 1
    most = max(1, int(HOT_MOST * len(counts)))
    return np.sort(order[: min(enough, most)]).astype(np.int32)


def kept_shadows(importances: Mapping[str, float], share: float) -> frozenset[str]:
    """The matrices whose shadows stay: the `share` of all with the largest importance, above 0."""
    count = int(np.ceil(share * len(importances)))
    ranked = sorted(importances, key=lambda name: -importances[name])
    return frozenset(name for name in ranked[:count] if importances[name] > 0)


# Profiles and packs


@dataclass
class Profile:
    """What calibration text showed of one matrix: its `inputs` and `outputs`, and outliers by channel."""

    inputs: Side
    outputs: Side
    channels: I64

    @property
    def hot(self) -> I32:
        """See `hot_channels`."""
        return hot_channels(self.channels)

    def importance(self, rounds: bool) -> float:
        """Of the side that is more important; of the inputs, unless the outputs are rounded as well."""
        return max(self.inputs.importance, self.outputs.importance if rounds else 0.0)


@dataclass(frozen=True)
class StoredShadow:
    """How a matrix is stored: int8, and at most `HOT_MOST` of its inputs once more."""

    keep: float
    kind: str = "int8"
    group: int | None = None

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of a stored matrix [rows, columns]; how many inputs are hot is known when it is profiled."""
        hot = round(self.keep * max(1, int(HOT_MOST * columns)))
        return StoredKind("int8").nbytes(rows, columns) + hot * (rows + 4)


@dataclass(frozen=True)
class Shadowed:
    """A matrix with the grids of its two sides; see run/forms/shadow.py."""

    codes: Quantized
    profile: Profile
    kept: bool
    rounds: bool

    @property
    def kind(self) -> StoredKind:
        return self.codes.kind

    @property
    def form(self) -> dict[str, Any]:
        """See Formed."""
        inputs, outputs = self.profile.inputs, self.profile.outputs
        return {
            "form": "shadow",
            "scale": inputs.scale if self.kept else inputs.alone,
            "inputs": inputs.mode,
            "out_scale": (outputs.scale if self.kept else outputs.alone) if self.rounds else 0.0,
            "outputs": outputs.mode if self.rounds else "clip",
            "kept": self.kept,
            "hot": len(self._hot),
            "importance": round(self.profile.importance(self.rounds), 3),
        }

    @property
    def _hot(self) -> I32:
        return self.profile.hot if self.kept else np.empty(0, np.int32)

    def parts(self) -> dict[str, Any]:
        """See Formed."""
        hot = self._hot
        if not len(hot):
            return {"codes": self.codes}
        rows = np.ascontiguousarray(self.codes.codes[:, hot].T)
        return {
            "codes": self.codes,
            "hot": (rows.astype(np.int16) + 128).astype(np.uint8),
            "hot_channels": hot,
        }


@dataclass(frozen=True)
class MllmNpu(Method):
    name = "mllm-npu"
    stage = "shrink"
    slot = "precision"
    paper = "Xu et al., Fast On-device LLM Inference with NPUs (ASPLOS 2025; arXiv 2407.05858)"
    summary = "int8 with one scale a matrix and static inputs; outliers are added in floats."
    system = 36
    provides = frozenset({"weight-type:int8", "weight-layout:rows16-1", "activation-type:int8-static"})
    needs: ClassVar[frozenset[str]] = frozenset()
    passes: ClassVar[float] = 3.0

    bits: int = parameter(8, allowed=(8,), help="bits a weight")
    beyond: float = parameter(
        0.001, allowed=(0.001, 0.003, 0.01, 0.03), help="share of the magnitudes that may pass a grid"
    )
    threshold: float = parameter(
        5.0, allowed=(2.0, 5.0, 16.0, 64.0), help="times that magnitude: outliers are larger than this"
    )
    keep: float = parameter(
        0.15, allowed=(0.0, 0.15, 0.3, 1.0), help="share of the matrices whose shadows are executed"
    )
    sides: str = parameter(
        "profiled", allowed=("profiled", "clip"), help="clip: every side at its largest, without shadows"
    )
    alone: str = parameter(
        "searched",
        allowed=("searched", "percentile"),
        help="grid of a side whose shadow is left out: of the least error, or as with its shadow",
    )
    outputs: str = parameter(
        "int8", allowed=("int8", "f32"), help="products rounded to a grid of their own, or left as they are"
    )

    def stored(self, rows: int, columns: int) -> StoredKind:
        """Kind of a matrix outside the blocks."""
        return StoredKind("int8")

    def stored_as(self, name: str, rows: int, columns: int) -> StoredShadow:
        """How the matrix `name` of a block is stored."""
        return StoredShadow(self.keep)

    def noise(self) -> float:
        """Expected squared weight error over the weights' mean square: all rows share a scale."""
        return expected_noise(8, 1024, "largest")

    def working_nbytes(self, walk: Any) -> int:
        """Histograms of a block's matrices, and the outputs of the widest for a text of 512."""
        from haversack.shrink.precision._mllm_npu_profile import BINS

        blocks = [[n for group in walk.products(b) for n in group] for b in range(walk.blocks)]
        widest = max((walk.shape(name)[0] for names in blocks for name in names), default=0)
        return 3 * 8 * BINS * max(map(len, blocks), default=0) + 3 * 4 * 512 * widest

    def refused(self, walk: Any) -> dict[str, str]:
        """The matrices of experts, whose inputs are those of few tokens."""
        experts = getattr(walk, "experts", lambda block: ())
        mixed = [block for block in range(walk.blocks) if experts(block)]
        names = [name for block in mixed for group in walk.products(block) for name in group]
        return dict.fromkeys(names, "a mixture of experts has no static grids")

    def learn(self, source: Any, walk: Any, texts: I32) -> Profiled:
        """The model profiled on `texts` i32 [pieces, length], as a precision method of its blocks.

        Raises UserError for what is no decoder.
        """
        if not isinstance(getattr(walk, "architecture", None), Architecture):
            raise UserError(
                "mllm-npu takes decoders; this model is none.",
                field="precision",
                given="mllm-npu",
                nearest="smoothquant",
            )
        from haversack.shrink.precision._mllm_npu_profile import profile

        if self.refused(walk):
            return Profiled(self, {})
        return Profiled(self, profile(source, walk, texts, self))

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> Mapping[str, Any]:
        """Refused: scales belong to a profile of the whole model."""
        raise UserError(
            "mllm-npu profiles all matrices of a model together; it goes with no structure and quantizes no "
            "matrix alone.",
            field="structure",
            nearest="none",
        )


class Profiled:
    """A profiled model as the precision method of its own blocks."""

    name = MllmNpu.name
    needs: frozenset[str] = frozenset()

    def __init__(self, method: MllmNpu, profiles: Mapping[str, Profile]) -> None:
        self.method, self.profiles = method, profiles
        importances = {name: found.importance(method.outputs == "int8") for name, found in profiles.items()}
        self.kept = kept_shadows(importances, method.keep)

    def stored(self, rows: int, columns: int) -> StoredKind:
        """See Precision."""
        return self.method.stored(rows, columns)

    def stored_as(self, name: str, rows: int, columns: int) -> StoredShadow:
        """See Precision."""
        return self.method.stored_as(name, rows, columns)

    def noise(self) -> float:
        """See Precision."""
        return self.method.noise()

    def refused(self, walk: Any) -> dict[str, str]:
        """See MllmNpu."""
        return self.method.refused(walk)

    def quantize(self, weights: Mapping[str, F32], inputs: InputStatistics | None) -> dict[str, Shadowed]:
        """Every matrix of `weights` in int8, with its profiled grids."""
        found = {}
        for name, weight in weights.items():
            codes, scale = weight_codes(weight)
            scales = np.full((len(codes), 1), scale, np.float32)
            packed = Quantized(StoredKind("int8"), codes, scales)
            rounds = self.method.outputs == "int8"
            found[name] = Shadowed(packed, self.profiles[name], name in self.kept, rounds)
        return found
