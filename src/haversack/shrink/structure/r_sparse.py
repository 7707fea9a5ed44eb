"""R-Sparse: each token reads the weights of the inputs that matter for it; a low-rank product stands in for
the rest.

Paper: Zhang et al., "R-Sparse: Rank-Aware Activation Sparsity for Efficient LLM Inference" (2025). TEAL (Liu
et al., 2024) is the special case alpha = 1: no low-rank product, thresholds of plain |x|.
What is here: for every matrix of the blocks, W [outputs, inputs] = U diag(S) V^T. Of the budget of outputs *
inputs * (1 - sparsity) weights a token, the share alpha goes to channels, the rest to a product of rank r.
Input j is active where |x_j| scale_j > t, with scale_j = ||(V diag(S))_j|| = ||W_:j|| and t the quantile 1 -
(1 - sparsity) alpha of these numbers on calibration text; alpha = 1 takes plain |x_j|. Then y = W (x m) +
U_r diag(S_r) V_r^T (x (1 - m)). A pack holds W by columns, so that a skipped channel is not read. `alpha` is
one number, `search`, or a `recipe` of two numbers (alpha, sparsity) a matrix.
What we changed: true shapes of key and value matrices go into their budgets (the released code takes the
hidden width). Thresholds are found block after block, on inputs that come through the compressed blocks
before, so that the sparsity asked for is the sparsity met. Rows whose largest input is 50 times the median
row's are left out of the quantile: the first token's, where a model makes a sink of it [inferred]. The search
is evolutionary as in the paper (population 32, 5 generations; the operators are [inferred]), and group-wise:
the matrices of one block at a time, judged by the squared error of the block's output on calibration text,
where the paper takes the loss of the whole model. Every position is sparse, or every one behind the prompt:
see run/forms/row_sparse.py.
Cost: one singular value decomposition a matrix; the search runs a block 32 + 5 * 30 times over SEARCH_TOKENS
tokens. A product reads channels * outputs + rank * (inputs + outputs) weights, about.
Limits: what is stored grows by the factors. With several rows a call (serving, drafts) the union of their
channels is read, and the gain is gone. Thresholds of one domain drift in another: the engine's statistics
tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

FEWEST_TOKENS = 64
SINK = 50.0
LARGEST = float(np.finfo(np.float32).max)
SEARCH = "search"
MATRICES = 7  # of a layer, in a recipe: query, key, value, output, gate, up, down


class Budget(NamedTuple):
    """How a matrix's budget is split: active `channels`, `rank` of the low-rank product, and the `quantile`
    of the threshold."""

    channels: int
    rank: int
    quantile: float


def split_budget(rows: int, columns: int, sparsity: float, alpha: float) -> Budget:
    """The budget of a matrix [rows, columns] of which the share `sparsity` is skipped. The rank is at least
    1, whatever is left; alpha = 1 does not use it."""
    channels = max(int(columns * (1 - sparsity) * alpha), 1)
    left = rows * columns * (1 - sparsity) - channels * rows
    return Budget(channels, max(int(left / (rows + columns)), 1), 1 - (1 - sparsity) * alpha)


def channel_scales(weight: F32) -> F32:
    """||W_:j|| of every input j, which is ||(V diag(S))_j||: f32 [columns]."""
    found: F32 = np.sqrt(np.einsum("rc,rc->c", weight, weight, dtype=np.float64)).astype(np.float32)
    return found


def threshold(inputs: F32, scales: F32 | None, quantile: float) -> float:
    """The `quantile` of |x_j| scale_j over all rows and channels of `inputs` f32 [tokens, columns] (scales
    None: of |x_j|).

    Raises UserError for fewer than 64 rows and for inputs that are not finite.
    """
    if len(inputs) < FEWEST_TOKENS:
        raise UserError(
            f"{len(inputs)} tokens are too few to find thresholds on; give at least {FEWEST_TOKENS}.",
            field="calibration",
            given=len(inputs),
            nearest=FEWEST_TOKENS,
        )
    if not np.isfinite(inputs).all():
        raise UserError(
            "calibration text gives inputs that are not finite, which have no quantile; the model cannot be "
            "calibrated on it.",
            field="calibration",
            given="not finite",
        )
    return sorted_quantile(sorted_sizes(inputs, scales), quantile)


def sorted_sizes(inputs: F32, scales: F32 | None) -> F32:
    """|x_j| scale_j of all rows but sinks, f32 [numbers], smallest first."""
    size = np.abs(without_sinks(inputs))
    found: F32 = np.sort(size if scales is None else size * scales, axis=None)
    return found


def sorted_quantile(numbers: F32, quantile: float) -> float:
    """The `quantile` of `numbers` that are in order, between two of them where it falls there."""
    place = quantile * (len(numbers) - 1)
    below = int(place)
    above = min(below + 1, len(numbers) - 1)
    return float(numbers[below] + (float(numbers[above]) - float(numbers[below])) * (place - below))


def without_sinks(inputs: F32) -> F32:
    """The rows of `inputs` but those whose largest number is SINK times that of the median row."""
    largest = np.abs(inputs).max(axis=1)
    kept = largest <= SINK * max(float(np.median(largest)), 1e-30)
    return inputs[kept]


def limits_of(found: float, scales: F32 | None, columns: int) -> F32:
    """|x_j| above which input j is active, f32 [columns]: threshold over scale."""
    if scales is None:
        return np.full(columns, found, np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        limits = np.where(scales > 0, found / scales.astype(np.float64), LARGEST)
    return np.minimum(limits, LARGEST).astype(np.float32)


def decomposed(weight: F32) -> tuple[F32, F32]:
    """`down` = diag(S) V^T [least, columns] and `up` = U [rows, least]: their first r rows and columns are
    the best approximation of rank r."""
    u, s, v = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    return (s[:, None] * v).astype(np.float32), np.ascontiguousarray(u, np.float32)


def product(weight: F32, x: F32, active: NDArray[np.bool_], down: F32 | None, up: F32 | None) -> F32:
    """The definition: W (x m) + up down (x (1 - m)) of x f32 [n, columns], `active` = m bool [n, columns]."""
    dense: F32 = (x * active) @ weight.T
    if down is None or up is None:
        return dense
    return (dense + ((x * ~active) @ down.T) @ up.T).astype(np.float32)


# Which alpha


def read_recipe(text: str, matrices: int) -> list[tuple[float, float]]:
    """(alpha, sparsity) of each of `matrices` matrices, in order of use, from numbers apart by white space:
    query, key, value, output, gate, up and down of every layer, two numbers each.

    Raises UserError for another count and for what is no number or no share.
    """
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError as error:
        raise UserError(f"the recipe holds what is no number ({error}).", field="recipe") from error
    if len(numbers) != 2 * matrices:
        raise UserError(
            f"the recipe has {len(numbers)} numbers; this model needs {2 * matrices}: alpha and sparsity of "
            f"{matrices} matrices.",
            field="recipe",
            given=len(numbers),
            nearest=2 * matrices,
        )
    pairs = [(alpha, sparsity) for alpha, sparsity in zip(numbers[::2], numbers[1::2], strict=True)]
    for alpha, sparsity in pairs:
        check_shares(sparsity, alpha)
    return pairs


def check_shares(sparsity: float, alpha: float) -> None:
    """Raises UserError for a sparsity outside [0, 1) or an alpha outside [0, 1]."""
    if not (math.isfinite(sparsity) and 0 <= sparsity < 1):
        raise UserError(
            f"sparsity={sparsity} is no share that leaves something; give a number from 0 to below 1.",
            field="sparsity",
            given=str(sparsity),
            nearest=0.5,
        )
    if not (math.isfinite(alpha) and 0 <= alpha <= 1):
        raise UserError(
            f"alpha={alpha} is no share; give a number from 0 to 1.",
            field="alpha",
            given=str(alpha),
            nearest=min(max(alpha, 0.0), 1.0) if math.isfinite(alpha) else 0.95,
        )


def check_rank(rank: int, rows: int, columns: int) -> None:
    """Raises UserError for a rank above min(rows, columns)."""
    if rank > min(rows, columns):
        raise UserError(
            f"rank={rank} is above what a matrix of {rows} x {columns} has.",
            field="rank",
            given=rank,
            nearest=min(rows, columns),
        )


def evolved(
    fitness: Callable[[F64], float],
    genes: int,
    seed: int,
    *,
    population: int = 32,
    generations: int = 5,
    parents: int = 8,
    elite: int = 2,
    starts: Sequence[float] = (1.0, 0.95),
) -> tuple[F64, float]:
    """The vector of `genes` numbers in [0, 1] with the least `fitness` that was met, and that fitness.

    The first population is U(.5, 1) and one individual for each of `starts`, all its genes alike; parents are
    the best 8, children cross uniformly, mutate with probability .1 by a normal step of .1, clipped; the best
    2 live on.
    """
    rng = np.random.default_rng(seed)
    people = [np.full(genes, start) for start in starts]
    people += [rng.uniform(0.5, 1.0, genes) for _ in range(population - len(people))]
    scored = sorted(((fitness(one), order) for order, one in enumerate(people)))
    people = [people[order] for _, order in scored]
    scores = [score for score, _ in scored]
    for _ in range(generations):
        children = []
        for _ in range(population - elite):
            one, two = rng.choice(parents, 2, replace=False)
            child = np.where(rng.random(genes) < 0.5, people[one], people[two])
            step = rng.normal(0.0, 0.1, genes) * (rng.random(genes) < 0.1)
            children.append(np.clip(child + step, 0.0, 1.0))
        everyone = people[:elite] + children
        judged = scores[:elite] + [fitness(child) for child in children]
        order = sorted(range(population), key=judged.__getitem__)
        people, scores = [everyone[i] for i in order], [judged[i] for i in order]
    return people[0], scores[0]


@dataclass(frozen=True)
class RSparse(Method):
    name = "r-sparse"
    stage = "shrink"
    slot = "structure"
    paper = "Zhang et al., R-Sparse: Rank-Aware Activation Sparsity for Efficient LLM Inference (2025)"
    summary = (
        "Each token reads the weights of the inputs that matter for it; a low-rank product stands in for the "
        "rest."
    )
    system = 45
    provides = frozenset({"weight-type:row-sparse", "weight-layout:columns-1"})

    sparsity: float = parameter(0.5, help="share of the weights that a token skips: 0 to below 1")
    alpha: float | str = parameter(
        0.95, help="share of the budget that goes to channels, the rest to a low-rank product; or: search"
    )
    recipe: str = parameter("", help="a text file of two numbers, alpha and sparsity, for every matrix")
    seed: int = parameter(0, help="of the search")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.alpha, str) and self.alpha != SEARCH:
            raise UserError(
                f"alpha={self.alpha} is no share; give a number from 0 to 1, or search.",
                field="alpha",
                given=self.alpha,
                nearest=SEARCH,
            )
        check_shares(self.sparsity, 1.0 if isinstance(self.alpha, str) else self.alpha)

    @property
    def full_name(self) -> str:
        """`r-sparse:...` with what says what a pack is, even at its default."""
        share = f"{self.alpha:g}" if isinstance(self.alpha, float | int) else self.alpha
        told = f"recipe={self.recipe}" if self.recipe else f"sparsity={self.sparsity:g},alpha={share}"
        return f"{self.name}:{told}" + (f",seed={self.seed}" if self.seed and self.searches else "")

    @property
    def searches(self) -> bool:
        """True when alpha is found for each matrix."""
        return self.alpha == SEARCH and not self.recipe

    def shares(self, names: Sequence[str]) -> Mapping[str, tuple[float, float]]:
        """Matrix -> (alpha, sparsity) before a search. Raises UserError for a recipe that does not fit."""
        if self.recipe:
            try:
                text = Path(self.recipe).read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"the recipe {self.recipe} cannot be read ({error}).", field="recipe", given=self.recipe
                ) from error
            return dict(zip(names, read_recipe(text, len(names)), strict=True))
        alpha: Any = 0.95 if self.alpha == SEARCH else self.alpha
        return dict.fromkeys(names, (float(alpha), self.sparsity))
