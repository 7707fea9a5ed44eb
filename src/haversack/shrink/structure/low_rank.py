"""Low rank: a linear or convolution layer as two thinner ones, before, during or after training.

Paper: Cahyawijaya, "Greenformers: Improving Computation and Memory Efficiency in Transformer Models via
Low-Rank Approximation" (2021); the factored transformer is in Winata et al., "Lightweight and Efficient
End-to-End Speech Recognition Using Low-Rank Transformer" (2020).
What is here: W [inputs, outputs] ~ U V with U [inputs, r] and V [r, outputs], so y = (x U) V + b, nothing in
the middle. A convolution is W reshaped to [outputs, inputs * kernel], factored transposed: a convolution to
r channels with the old kernel, then one of size 1. The rank is a number (1 or more) or a share of the limit
floor(in * out / (in + out)) at which nothing is saved; layers at or above the limit stay. Solvers: `svd`
(randomized, with power iterations; the scale sits in U), `snmf` (V non-negative), `nmf`, `random` (for
training from the start), and `whitened`, the best product on calibration inputs. `energy_ranks` chooses a
rank for each layer by the squared singular values it keeps. On PyTorch modules `factorize` does it; for
packs `--structure low-rank:rank=0.5,solver=whitened`, whose factors are stored by any precision method
(_packed.py), matrix by matrix, the second factor fitted to the first as it is stored; what saves no bytes
stays, and the report lists the error of every matrix.
What we changed: the published limit of a convolution leaves out its kernel; `limit="kernel"` counts it and
saves where the other stops. Grouped convolutions are factored group by group, the only product that a
grouped convolution can hold. The random start keeps the layer's output as large as it was. `whitened` is of
Wang et al., "SVD-LLM" (2024). The sketch has eight columns more than the rank, and gives way to the whole
SVD where that costs less.
Cost: 4 in * out * r operations for each power iteration; a pass is r (in + out) in place of in * out.
Limits: trained dense weights are far from low rank, so without fine-tuning much is lost; two thin products
at small widths can be slower than one. Read the error of each layer, and time the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError, not_allowed
from haversack.core.method import Method, parameter

Array = NDArray[Any]  # f32 or f64; results have the type of the weights

SOLVERS = ("svd", "random", "snmf", "nmf")
OVERSAMPLING = 8
TINY = 1e-9


@dataclass(frozen=True)
class Shape:
    """A layer: W [inputs, outputs], `kernel` the product of a convolution's kernel sizes."""

    inputs: int
    outputs: int
    kernel: int = 1
    groups: int = 1

    @property
    def dense(self) -> int:
        """Weights of the layer as it is, the bias not counted."""
        return self.inputs // self.groups * self.kernel * self.outputs

    @property
    def per_rank(self) -> int:
        """Weights that one more rank costs in all groups together, over the groups."""
        return (self.inputs * self.kernel + self.outputs) // self.groups

    def factored(self, rank: int) -> int:
        """Weights of the two layers of rank `rank` (over all groups)."""
        return rank * self.per_rank

    def limit(self, rule: str = "published") -> int:
        """The rank at which factors are as large as the layer: `published` leaves the kernel out."""
        if rule == "kernel":
            inputs, outputs = self.inputs * self.kernel, self.outputs
        else:
            inputs, outputs = self.inputs, self.outputs // self.groups
        return inputs * outputs // (inputs + outputs)

    def rank(self, rank: float, rule: str = "published") -> int | None:
        """The rank that `rank` (1 and more: a number; less: a share of the limit) means; None: stays dense.

        Raises UserError for a rank that is not a positive number.
        """
        check_rank(rank)
        limit = self.limit(rule)
        found = math.floor(limit * rank) if rank < 1 else int(rank)
        found = -(-found // self.groups) * self.groups
        return found if 0 < found < limit else None


def check_rank(rank: float) -> None:
    """Raises UserError unless `rank` is a whole number from 1 or a share between 0 and 1."""
    real = isinstance(rank, int | float) and not isinstance(rank, bool) and math.isfinite(rank)
    if not real or rank <= 0 or (rank > 1 and rank != int(rank)):
        raise UserError(
            f"rank={rank} is no rank; give a whole number from 1, or a share of the limit between 0 and 1.",
            field="rank",
            given=str(rank),
            nearest=max(1, round(rank)) if real and rank > 1 else 0.5,
        )


# Solvers: W [inputs, outputs] -> U [inputs, r], V [r, outputs]


def randomized_svd(weight: Array, rank: int, n_iter: int = 10, seed: int = 0) -> tuple[Array, Array]:
    """U * S and V^T of the largest `rank` singular values, from a random sketch of the range.

    Each of `n_iter` power iterations multiplies with W^T and W, so that large values outgrow small ones.
    Where the sketch would be a quarter of W or more, all singular values cost less and are computed.
    """
    columns = min(rank + OVERSAMPLING, *weight.shape)
    if 4 * columns >= min(weight.shape):
        left, values, right = np.linalg.svd(weight, full_matrices=False)
        return left[:, :rank] * values[:rank], right[:rank]
    draw = np.random.default_rng(seed).standard_normal((weight.shape[1], columns))
    basis = np.linalg.qr(weight @ draw.astype(weight.dtype))[0]
    for _ in range(n_iter):
        basis = np.linalg.qr(weight.T @ basis)[0]
        basis = np.linalg.qr(weight @ basis)[0]
    left, values, right = np.linalg.svd(basis.T @ weight, full_matrices=False)
    return (basis @ left[:, :rank]) * values[:rank], right[:rank]


def semi_nmf(weight: Array, rank: int, n_iter: int = 10, seed: int = 0) -> tuple[Array, Array]:
    """W ~ F G^T with G non-negative: F by least squares, G by the multiplicative update, in turn."""
    generator = np.random.default_rng(seed)
    g = np.abs(generator.standard_normal((weight.shape[1], rank))).astype(weight.dtype)
    f = _least_squares(weight, g)
    for _ in range(n_iter):
        cross, gram = weight.T @ f, f.T @ f
        above = _positive(cross) + g @ _negative(gram)
        below = _negative(cross) + g @ _positive(gram)
        g = g * np.sqrt(above / np.maximum(below, TINY))
        f = _least_squares(weight, g)
    return f, g.T


def _least_squares(weight: Array, g: Array) -> Array:
    """F = W G (G^T G)^-1."""
    return np.linalg.lstsq(g, weight.T, rcond=None)[0].T.astype(weight.dtype)


def _positive(x: Array) -> Array:
    return np.maximum(x, 0)


def _negative(x: Array) -> Array:
    return np.maximum(-x, 0)


def nmf(weight: Array, rank: int, n_iter: int = 10, seed: int = 0) -> tuple[Array, Array]:
    """W ~ U V, all non-negative, by multiplicative updates. Raises UserError for weights below zero."""
    if float(weight.min(initial=0.0)) < 0:
        raise UserError(
            "nmf needs weights that are not negative, and this layer has some; use solver=snmf.",
            field="solver",
            given="nmf",
            nearest="snmf",
        )
    generator = np.random.default_rng(seed)
    size = math.sqrt(float(weight.mean()) / rank)
    u = (size * np.abs(generator.standard_normal((weight.shape[0], rank)))).astype(weight.dtype)
    v = (size * np.abs(generator.standard_normal((rank, weight.shape[1])))).astype(weight.dtype)
    for _ in range(n_iter):
        u = u * (weight @ v.T) / np.maximum(u @ (v @ v.T), TINY)
        v = v * (u.T @ weight) / np.maximum((u.T @ u) @ v, TINY)
    return u, v


def random_factors(weight: Array, rank: int, n_iter: int = 10, seed: int = 0) -> tuple[Array, Array]:
    """Normal draws whose product has the mean square of `weight`: only that and the shape are used."""
    generator = np.random.default_rng(seed)
    inputs, outputs = weight.shape
    deviation = math.sqrt(float(np.square(weight).mean())) or (3 * inputs) ** -0.5
    u = generator.standard_normal((inputs, rank)) * inputs**-0.5
    v = generator.standard_normal((rank, outputs)) * deviation * math.sqrt(inputs / rank)
    return u.astype(weight.dtype), v.astype(weight.dtype)


def whitened(weight: Array, hessian: Array, rank: int, damping: float = 0.01) -> tuple[Array, Array]:
    """The U V of rank `rank` with the least ||X (W - U V)||, where `hessian` [inputs, inputs] is mean X^T X.

    With X^T X = L L^T the error is ||L^T W - L^T U V||, whose optimum is L^T W projected on its first `rank`
    singular vectors of either side; those of the shorter side come from its square, in double precision.
    `damping` is the share of the mean diagonal that is added to the diagonal.
    """
    size = float(np.trace(hessian)) / len(hessian)
    damped = hessian + np.eye(len(hessian)) * (damping * size or 1.0)
    lower = np.linalg.cholesky(damped)
    seen = lower.T @ weight
    if len(weight) <= weight.shape[1]:
        left = np.linalg.eigh(seen @ seen.T)[1][:, : -rank - 1 : -1]
        u, v = np.linalg.solve(lower.T, left), left.T @ seen
    else:
        right = np.linalg.eigh(seen.T @ seen)[1][:, : -rank - 1 : -1]
        u, v = np.linalg.solve(lower.T, seen @ right), right.T
    return u.astype(weight.dtype), v.astype(weight.dtype)


_SOLVERS = {"svd": randomized_svd, "snmf": semi_nmf, "nmf": nmf, "random": random_factors}


def factor(
    weight: Array, rank: int, solver: str = "svd", n_iter: int = 10, seed: int = 0
) -> tuple[Array, Array]:
    """U [inputs, r], V [r, outputs] of W [inputs, outputs] by one of SOLVERS.

    Raises UserError for an unknown solver and for weights that are not finite.
    """
    if solver not in _SOLVERS:
        raise not_allowed("solver", solver, SOLVERS)
    if not np.isfinite(weight).all():
        raise UserError(
            "these weights are not all finite, so they have no factors.", field="model", given="weights"
        )
    return _SOLVERS[solver](weight, rank, n_iter, seed)


def merge(u: Array, v: Array) -> Array:
    """The dense W = U V."""
    return u @ v


def relative_error(weight: Array, u: Array, v: Array) -> float:
    """||W - U V|| / ||W|| (Frobenius); 0 for a W of zeros that is met."""
    missed = float(np.linalg.norm(weight - u @ v))
    size = float(np.linalg.norm(weight))
    return missed / size if size else missed


# Ranks from what they keep


@dataclass(frozen=True)
class LowRank(Method):
    name = "low-rank"
    stage = "shrink"
    slot = "structure"
    paper = "Cahyawijaya, Greenformers: low-rank approximation of transformer models (2021)"
    summary = (
        "Each matrix as the product of two thin ones, chosen by singular values or learned from the start."
    )
    system = 38
    provides = frozenset({"weight-type:low-rank"})

    rank: int | float = parameter(
        0.4, help="1 and more: the rank; less: share of the limit where nothing is saved"
    )
    solver: str = parameter(
        "svd",
        allowed=("svd", "whitened", "snmf", "nmf", "random"),
        help="how factors are found; whitened needs calibration text, random is for training from the start",
    )
    energy: float = parameter(
        0.0, help="share of the squared singular values to keep, ranks differing by matrix; 0: rank says"
    )
    weights: float = parameter(
        1.0, help="with energy: most weights that the factors may have, as a share of the matrices'"
    )
    n_iter: int = parameter(10, allowed=range(0, 201), help="power iterations of svd, updates of snmf")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank)
        for name, least in (("energy", 0.0), ("weights", TINY)):
            share = getattr(self, name)
            if not least <= share <= 1:
                raise UserError(
                    f"{name}={share} is no share; give a number above 0 and up to 1.",
                    field=name,
                    given=str(share),
                    nearest=0.9,
                )

    @property
    def needs(self) -> frozenset[str]:
        """The statistics of calibration text that it asks for, as a precision method says it."""
        return frozenset({"hessian"}) if self.solver == "whitened" else frozenset()

    def rank_of(self, rows: int, columns: int) -> int | None:
        """The rank of a matrix [rows, columns] by `rank`; None: it stays as it is."""
        return Shape(columns, rows).rank(self.rank)

    def factors(
        self, weight: Array, hessian: Array | None = None, rank: int | None = None
    ) -> tuple[Array, Array] | None:
        """(B [rows, r], A [r, columns]) with `weight` [rows, columns] ~ B A, or None where it stays dense; r
        is `rank`, or what the method's own gives.
        """
        rank = rank or self.rank_of(*weight.shape)
        if rank is None:
            return None
        if self.solver == "whitened":
            assert hessian is not None
            u, v = whitened(weight.T, hessian, rank)
        else:
            u, v = factor(weight.T, rank, self.solver, self.n_iter)
        return np.ascontiguousarray(v.T), np.ascontiguousarray(u.T)
