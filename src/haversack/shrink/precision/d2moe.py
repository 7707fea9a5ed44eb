"""D2MoE, nested bits: every expert once, its 2-bit matrix inside its 3-bit one inside its 4-bit one, and a
small router that says how many bits a token reads.

Paper: Wang et al., "D2MoE: Dual Routing and Dynamic Scheduling for Efficient On-Device MoE-based LLM Serving"
(2025).
What is here: Matryoshka weight quantization. The base of an expert's matrix has `base` bits, asymmetric, with
a scale and a zero for each group of inputs; each of `planes` more bits is the sign of what is left, times a
scale: W_k = W_(k-1) + s_k sign(W - W_(k-1)). Scales are the minima of what errors cost on calibration text,
and the error of one level is spread over the inputs that are not rounded yet, as in GPTQ. Planes lie apart in
the expert store, each one aligned read. With `target_bits` a bit router is trained for every expert
(shrink/_bit_routers.py) and kept beside the pack: it chooses the level for each token and expert, to a mean
of so many bits. What is no expert stays in f16.
What we changed: all levels of a group are rounded together and the error of the widest is spread
(`compensate=top`); the paper's listing runs level by level, which spreads the narrowest's and makes wider
levels worse than none [inferred]. The error is spread after each input, the paper spreads it after a block
without corrections inside. The base's grid is, of several clipped ones, the one that suits the level whose
error is spread; an input's error counts by what is left of it once later inputs made good.
Cost: as GPTQ, with a Hessian for each expert. Training bit routers needs PyTorch and all experts in f32.
Limits: 2 + 1 + 1 bits in groups of 128 take 4.5 bits a weight; f32 activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError, not_allowed
from haversack.core.method import Method, parameter
from haversack.kernels.nested import MOST_BITS, pack_base, pack_signs
from haversack.shrink._precision import Compressed, InputStatistics, StoredKind, expected_noise
from haversack.shrink._rounding import CLIPPING, F32, divide, storable
from haversack.shrink.precision._nested import NestedTensor
from haversack.shrink.precision.gptq import damped

F64 = NDArray[np.float64]
COMPENSATIONS = ("none", "bottom", "middle", "top")
BLOCK = 1
"""Columns that are rounded together before their error is spread."""


def base_grid(values: F32, bits: int, share: float = 1.0) -> tuple[F32, F32]:
    """Scales and zeros f32 [rows] of groups `values` f32 [rows, group]: 2^bits levels over `share` of the
    span from the smallest value to the largest, zero included; exact in f16.

    >>> base_grid(np.array([[0, 1, 2, 3]], np.float32), 2)
    (array([1.], dtype=float32), array([-0.], dtype=float32))
    """
    low = np.minimum(values.min(axis=1), 0) * np.float32(share)
    high = np.maximum(values.max(axis=1), 0) * np.float32(share)
    scales = storable((high - low) / ((1 << bits) - 1), half=True)
    return scales, storable(divide(-low, scales), half=True)


def base_codes(values: F32, scales: F32, zeros: F32, bits: int) -> F32:
    """Q = round(w / s + z) within 0 to 2^bits - 1, still as f32 [rows, group]."""
    codes = np.rint(divide(values, scales[:, None]) + zeros[:, None])
    return codes.clip(0, (1 << bits) - 1).astype(np.float32)


def residual_level(residual: F32, costs: F64 | None = None) -> tuple[NDArray[np.bool_], F32]:
    """Signs (True: plus) bool [rows, group] and scales f32 [rows] of one more bit for `residual` f32 [rows,
    group]: Q = sign(R), s the minimum of the squared R - s Q times the columns' `costs` f64 [group], which is
    the mean |R| where all cost alike.

    >>> residual_level(np.array([[0.4, -0.2, 0.1, -0.5]], np.float32))[1].round(3)
    array([0.3], dtype=float32)
    """
    size = np.abs(residual)
    scales = size.mean(axis=1) if costs is None else size @ costs / costs.sum()
    return residual >= 0, storable(scales.astype(np.float32), half=True)


def upper_of_inverse(hessian: F64, damping: float) -> F64:
    """U, upper triangular, with (H + damping of its mean diagonal)^-1 = U^T U; `hessian` is overwritten."""
    inverse = np.linalg.inv(damped(hessian, damping))
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, np.float64)


def group_scales(values: F32, bits: Sequence[int], level: int, costs: F64 | None) -> F32:
    """What the numbers of one group `values` f32 [rows, group] are scaled by: of the base, its zeros, and of
    each plane, f32 [levels + 1, rows].

    Of several clipped grids of the base each row takes the one whose level number `level` misses it least, by
    the columns' `costs` f64 [group].
    """
    best = np.zeros((len(bits) + 1, len(values)), np.float32)
    least = np.full(len(values), np.inf)
    for share in CLIPPING:
        scales, zeros = base_grid(values, bits[0], share)
        codes = base_codes(values, scales, zeros, bits[0])
        found, residual = [scales, zeros], values - (codes - zeros[:, None]) * scales[:, None]
        reached = residual
        for number in range(1, len(bits)):
            plus, scales = residual_level(residual, costs)
            found.append(scales)
            residual = residual - np.where(plus, scales[:, None], -scales[:, None])
            reached = residual if number <= level else reached
        missed = np.square(reached)
        error = missed.sum(axis=1) if costs is None else missed @ costs
        better = error < least
        best[:, better] = np.stack(found)[:, better]
        least = np.minimum(least, error)
    return best


def nest(values: F32, scales: F32, bits: int, level: int) -> tuple[F32, NDArray[np.bool_], F32]:
    """Columns `values` f32 [rows, n] under the `scales` of their group (see `group_scales`): codes of the
    base of `bits` bits, the planes' signs bool [planes, rows, n], and the values of level number `level`."""
    codes = base_codes(values, scales[0], scales[1], bits)
    value = (codes - scales[1][:, None]) * scales[0][:, None]
    reached, signs = value, []
    for number, step in enumerate(scales[2:], 1):
        plus = values >= value
        value = value + np.where(plus, step[:, None], -step[:, None])
        signs.append(plus)
        reached = value if number <= level else reached
    return codes, np.array(signs, np.bool_).reshape(len(signs), *values.shape), reached


def check_widths(bits: Sequence[int]) -> None:
    """Raises UserError for widths that do not follow one another."""
    ascending = list(range(bits[0], bits[0] + len(bits))) if bits else [0]
    if list(bits) != ascending or not 1 <= bits[0] <= bits[-1] <= MOST_BITS:
        raise UserError(
            f"bits={tuple(bits)} cannot be nested: each width is one more than the one before, within 1 to "
            f"{MOST_BITS}; use (2, 3, 4).",
            field="bits",
            given=list(bits),
            nearest=[2, 3, 4],
        )


def mwq_quantize(
    weight: F32,
    inputs: F32 | None = None,
    bits: Sequence[int] = (2, 3, 4),
    group: int = 128,
    compensate: str = "top",
    damp: float = 0.01,
    *,
    hessian: F64 | None = None,
    block: int = BLOCK,
    pad: bool = False,
) -> NestedTensor:
    """`weight` f32 [rows, columns] as nested planes of widths `bits`, a scale for each `group` of columns.

    `inputs` f32 [n, columns], or their mean x x^T `hessian` f64 [columns, columns], say what errors cost
    (neither: all columns alike, and nothing is compensated). Columns are taken group by group; each group
    gets its base and all its planes, and the error of the level `compensate` names is spread over the groups
    after it (none; bottom, middle, top: of the narrowest, the middle and the widest width). `pad`: the last
    group may be shorter. Raises UserError for widths that are not consecutive, a group that does not divide
    the columns, weights that are not finite.
    """
    check_widths(bits)
    if compensate not in COMPENSATIONS:
        raise not_allowed("compensate", compensate, COMPENSATIONS)
    if weight.shape[1] % group and not pad:
        raise UserError(
            f"group={group} does not divide the {weight.shape[1]} inputs of the matrix; choose one that "
            "does, or pad=True, which makes the last group shorter.",
            field="group",
            given=group,
        )
    if not np.isfinite(weight).all():
        raise UserError("the weights hold numbers that are not finite; the checkpoint is damaged.", field="W")
    if hessian is None and inputs is not None:
        wide = inputs.astype(np.float64)
        hessian = wide.T @ wide / max(1, len(wide))
    upper, costs = None, None if hessian is None else np.diagonal(hessian).copy()
    if hessian is not None and compensate != "none":
        upper = upper_of_inverse(hessian, damp)
        costs = 1 / np.square(np.diagonal(upper))  # what is left of an error once later inputs made good
    spread = {"none": 0, "bottom": 0, "middle": (len(bits) - 1) // 2, "top": len(bits) - 1}[compensate]
    rows, columns = weight.shape
    groups = -(-columns // group)
    left = np.array(weight, np.float32)
    codes = np.zeros((rows, columns), np.uint8)
    plus = np.zeros((len(bits) - 1, rows, columns), np.bool_)
    scales = np.zeros((len(bits) + 1, rows, groups), np.float32)  # of the base, its zeros, of the planes
    for g in range(groups):
        inside = slice(g * group, min((g + 1) * group, columns))
        own = None if costs is None else costs[inside]
        scales[:, :, g] = group_scales(left[:, inside], bits, spread, own)
        step = group if upper is None else min(block, group)
        errors = np.zeros((rows, inside.stop - inside.start))
        for start in range(inside.start, inside.stop, step):
            part = slice(start, min(start + step, inside.stop))
            codes[:, part], plus[:, :, part], value = nest(left[:, part], scales[:, :, g], bits[0], spread)
            if upper is not None:
                miss = (left[:, part] - value).astype(np.float64)
                error = np.linalg.solve(upper[part, part].T, miss.T).T
                errors[:, start - inside.start : part.stop - inside.start] = error
                left[:, part.stop : inside.stop] -= error @ upper[part, part.stop : inside.stop]
        if upper is not None and inside.stop < columns:
            left[:, inside.stop :] -= errors @ upper[inside, inside.stop :]
    base = pack_base(codes, scales[0], scales[1], bits[0], group)
    planes = (pack_signs(plus[k], scales[k + 2], group) for k in range(len(bits) - 1))
    return NestedTensor((base, *planes), tuple(bits))


def copies_quantize(
    weight: F32,
    bits: Sequence[int] = (2, 3, 4),
    group: int = 128,
    damp: float = 0.01,
    *,
    hessian: F64 | None = None,
) -> NestedTensor:
    """A matrix of its own for every width, each compensated by itself: what nesting is compared with."""
    check_widths(bits)
    bases = [
        mwq_quantize(weight, bits=(width,), group=group, damp=damp, hessian=_copy(hessian), pad=True).planes[
            0
        ]
        for width in bits
    ]
    return NestedTensor(tuple(bases), tuple(bits), copies=True)


def _copy(hessian: F64 | None) -> F64 | None:
    return None if hessian is None else hessian.copy()


@dataclass(frozen=True)
class D2Moe(Method):
    name = "d2moe"
    stage = "shrink"
    slot = "precision"
    paper = (
        "Wang et al., D2MoE: Dual Routing and Dynamic Scheduling for On-Device MoE-based LLM Serving (2025)"
    )
    summary = "Experts in nested bits, as many of which are read as a bit router gives each token; else f16."
    system = 27
    provides = frozenset(
        {
            "weight-type:f32",
            "weight-type:f16",
            "weight-type:int8",
            "weight-type:nested",
            "weight-layout:rows-1",
        }
    )
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    base: int = parameter(2, allowed=(2, 3, 4, 5), help="bits of the narrowest level")
    planes: int = parameter(2, allowed=(0, 1, 2, 3), help="levels above it, of one more bit each")
    group: int = parameter(
        128, allowed=(32, 64, 128), help="inputs that share a scale; the last may be fewer"
    )
    compensate: str = parameter(
        "top",
        allowed=("none", "bottom", "middle", "top"),
        help="the level whose error is spread over inputs not rounded yet",
    )
    damping: float = parameter(
        0.01, allowed=(0.001, 0.003, 0.01, 0.03, 0.1), help="share of the mean diagonal added"
    )
    layout: str = parameter(
        "nested", allowed=("nested", "copies"), help="copies: a matrix of its own for every level"
    )
    rest: str = parameter("f16", allowed=("f16", "f32"), help="kind of all matrices but the experts'")
    target_bits: float = parameter(
        0.0, help="mean bits that trained bit routers choose; 0: no routers, all bits are read"
    )
    capacity: str = parameter(
        "", help="share of a step's tokens that may take each level while routers are trained, as .3/.4/.3"
    )
    alpha: float = parameter(
        0.0, help="weight of the mean bits in the routers' loss; 0: found for target_bits"
    )
    steps: int = parameter(300, help="steps of 1,024 tokens that routers are trained for")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base + self.planes > MOST_BITS:
            raise UserError(
                f"{self.base} bits and {self.planes} planes are more than {MOST_BITS} bits.",
                field="planes",
                given=self.planes,
                nearest=MOST_BITS - self.base,
            )
        if self.target_bits and not self.base < self.target_bits < self.base + self.planes:
            raise UserError(
                f"target_bits={self.target_bits} is not between the {self.base} and "
                f"{self.base + self.planes} bits of the levels.",
                field="target_bits",
                given=self.target_bits,
                nearest=self.base + self.planes / 2,
            )
        if self.steps < 1:
            raise UserError(f"steps={self.steps} trains nothing.", field="steps", given=self.steps, nearest=1)
        self.capacities()

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths."""
        return tuple(range(self.base, self.base + self.planes + 1))

    def capacities(self) -> tuple[float, ...]:
        """The capacity of each level; () where none is given. Raises UserError for shares that cannot be."""
        from haversack.shrink._bit_routers import checked_capacity

        if not self.capacity:
            return ()
        try:
            shares = tuple(float(part) for part in self.capacity.split("/"))
        except ValueError:
            shares = ()
        return checked_capacity(shares, self.capacity, len(self.widths))

    def for_walk(self, walk: Any) -> Any:
        """The method for a model that has experts."""
        from haversack.shrink.precision._nested import ForModel

        experts = getattr(walk, "all_experts", None)
        return self if experts is None else ForModel(self, experts)

    def refused(self, walk: Any) -> Mapping[str, str]:
        """Every matrix of a model without experts."""
        if getattr(walk, "all_experts", None) is not None:
            return {}
        inside = (name for block in range(walk.blocks) for name in walk.names(block))
        return {name: "the model has no experts" for name in inside if walk.is_matrix(name)}

    def stored(self, rows: int, columns: int) -> StoredKind:
        """How a matrix that is no expert's is stored."""
        return StoredKind(self.rest)

    def noise(self) -> float:
        """Expected squared error over the weights' mean square, of experts at all their bits: that of the
        base, of which each plane leaves about a quarter, less what the method makes good."""
        return 0.6 * expected_noise(self.base, self.group, "searched") * 0.25**self.planes

    def quantize(
        self, weights: Mapping[str, F32], inputs: InputStatistics | None
    ) -> Mapping[str, Compressed]:
        """Without a model's experts (see `for_walk`) there is nothing to nest."""
        raise UserError(
            "d2moe nests the bits of experts, and the model has none; use round-to-nearest.",
            field="precision",
            given=self.name,
            nearest="round-to-nearest",
        )
