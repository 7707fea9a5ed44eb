"""Low rank as mathematics: ranks, factors and what they lose, against brute force and the paper's numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from haversack.core import index
from haversack.core.errors import UserError
from haversack.shrink.structure import low_rank
from haversack.shrink.structure._energy import energies, energy_ranks
from haversack.shrink.structure.low_rank import Shape, factor, relative_error

RNG = np.random.default_rng(7)
SOLVERS = ("svd", "random", "snmf")


def decaying(rows: int, columns: int, steepness: float = 4.0) -> np.ndarray[Any, Any]:
    """A matrix whose singular values fall like those of a trained layer's update."""
    small = min(rows, columns)
    left = np.linalg.qr(RNG.standard_normal((rows, small)))[0]
    right = np.linalg.qr(RNG.standard_normal((columns, small)))[0]
    return ((left * np.exp(-steepness * np.arange(small) / small)) @ right.T).astype(np.float32)


def test_limits_and_counts_of_the_paper() -> None:
    assert Shape(768, 768).limit() == 384
    assert Shape(768, 3072).limit() == 614
    assert Shape(768, 768).factored(256) == 393_216
    assert Shape(768, 3072).factored(256) == 983_040
    assert Shape(768, 3072).rank(0.4) == 245
    assert Shape(768, 768).rank(384) is None, "at the limit nothing is saved"
    assert Shape(768, 768).rank(383) == 383
    assert Shape(4, 4).rank(0.2) is None, "a share that comes to nothing leaves the layer"


def test_limit_of_convolutions_without_and_with_the_kernel() -> None:
    shape = Shape(64, 64, 9)
    assert shape.limit() == 32
    assert shape.limit("kernel") == 57
    assert shape.factored(57) < shape.dense <= shape.factored(58)


@given(
    some.integers(1, 40), some.integers(1, 40), some.sampled_from([1, 9]), some.sampled_from([1, 2, 4]),
    some.one_of(some.floats(0.01, 0.99), some.integers(1, 60)),
)  # fmt: skip
def test_a_rank_divides_into_groups_and_stays_below_the_limit(
    inputs: int, outputs: int, kernel: int, groups: int, rank: float
) -> None:
    shape = Shape(inputs * groups, outputs * groups, kernel, groups)
    found = shape.rank(rank, "kernel")
    if found is not None:
        assert found % groups == 0
        assert shape.factored(found) < shape.dense
        if rank >= 1:
            assert 0 <= found - rank < groups


@pytest.mark.parametrize("rank", [0, -1, -0.5, math.nan, math.inf, 2.5, True])
def test_what_is_no_rank_is_refused(rank: float) -> None:
    with pytest.raises(UserError) as caught:
        Shape(64, 64).rank(rank)
    assert caught.value.field == "rank"


def test_bad_ranks_of_the_method_are_refused_on_the_command_line() -> None:
    for text in ("0", "-3", "nan", "inf", "1.5"):
        with pytest.raises(UserError):
            index.create("shrink", "structure", f"low-rank:rank={text}")


@pytest.mark.parametrize(
    ("rows", "columns", "rank"), [(48, 64, 8), (64, 48, 20), (200, 300, 16), (30, 30, 30)]
)
def test_svd_loses_exactly_the_dropped_singular_values(rows: int, columns: int, rank: int) -> None:
    weight = decaying(rows, columns)
    best = math.sqrt(float(energies(weight)[rank:].sum()))
    u, v = factor(weight, rank, "svd")
    assert u.shape == (rows, rank) and v.shape == (rank, columns)
    assert np.linalg.norm(weight - u @ v) == pytest.approx(best, rel=1e-3, abs=1e-5)
    np.testing.assert_allclose(v @ v.T, np.eye(rank), atol=1e-4, err_msg="the scale sits in the first factor")


def test_power_iterations_bring_the_sketch_to_the_optimum() -> None:
    weight = decaying(400, 500, steepness=1.0)
    best = math.sqrt(float(energies(weight)[20:].sum()) / float(energies(weight).sum()))
    errors = [relative_error(weight, *factor(weight, 20, "svd", n_iter)) for n_iter in (0, 2, 10)]
    assert errors[0] > errors[1] > errors[2] >= best * (1 - 1e-6)
    assert errors[0] > 1.01 * best and errors[2] < 1.002 * best


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_full_rank_is_the_layer(shape: tuple[int, int]) -> None:
    weight = RNG.standard_normal(shape).astype(np.float32)
    u, v = factor(weight, min(shape), "svd")
    np.testing.assert_allclose(low_rank.merge(u, v), weight, atol=1e-5)


@pytest.mark.parametrize("rank", [4, 16])
def test_no_solver_loses_less_than_svd(rank: int) -> None:
    weight = decaying(60, 40)
    errors = {solver: relative_error(weight, *factor(weight, rank, solver, 50)) for solver in SOLVERS}
    assert errors["svd"] < errors["snmf"] < errors["random"]


def test_semi_nmf_keeps_its_signs_and_gets_better() -> None:
    weight = decaying(50, 60)
    before, after = (factor(weight, 10, "snmf", n_iter) for n_iter in (1, 40))
    assert (after[1] >= 0).all() and (after[0] < 0).any()
    assert relative_error(weight, *after) < relative_error(weight, *before)


def test_nmf_takes_what_is_not_negative_and_nothing_else() -> None:
    weight = np.abs(decaying(50, 60))
    before, after = (factor(weight, 10, "nmf", n_iter) for n_iter in (1, 40))
    assert (after[0] >= 0).all() and (after[1] >= 0).all()
    assert relative_error(weight, *after) < relative_error(weight, *before) < 1
    with pytest.raises(UserError, match="snmf"):
        factor(decaying(50, 60), 10, "nmf")


def test_random_factors_leave_the_size_of_the_output() -> None:
    weight = (0.3 * RNG.standard_normal((200, 300))).astype(np.float32)
    u, v = factor(weight, 50, "random")
    x = RNG.standard_normal((500, 200)).astype(np.float32)
    assert np.std(x @ u @ v) == pytest.approx(np.std(x @ weight), rel=0.1)


def test_whitened_factors_are_the_best_on_their_inputs() -> None:
    weight = decaying(40, 50)
    x = (RNG.standard_normal((300, 40)) * np.exp(-np.arange(40) / 8)).astype(np.float64)
    hessian = x.T @ x / len(x)

    def lost(u: Any, v: Any) -> float:
        return float(np.linalg.norm(x @ (weight - u @ v)))

    u, v = low_rank.whitened(weight, hessian, 6, damping=1e-9)
    assert lost(u, v) < 0.8 * lost(*factor(weight, 6, "svd"))
    assert lost(u, v) == pytest.approx(
        math.sqrt(float(np.square(np.linalg.svd(x @ weight, compute_uv=False)[6:]).sum())), rel=1e-3
    )
    flat = low_rank.whitened(weight, np.eye(40), 6, damping=1e-9)
    assert relative_error(weight, *flat) == pytest.approx(
        relative_error(weight, *factor(weight, 6, "svd")), rel=1e-3
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_weights_that_are_not_finite_are_refused(solver: str) -> None:
    weight = decaying(20, 20)
    weight[3, 4] = np.nan
    with pytest.raises(UserError, match="finite"):
        factor(weight, 4, solver)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_every_time(solver: str) -> None:
    weight = decaying(30, 40)
    for one, two in zip(factor(weight, 5, solver, seed=3), factor(weight, 5, solver, seed=3), strict=True):
        np.testing.assert_array_equal(one, two)


LAYERS = {"steep": (Shape(40, 60), 9.0), "flat": (Shape(60, 40), 1.0), "wide": (Shape(30, 90), 4.0)}


def spectra() -> tuple[dict[str, Any], dict[str, Shape]]:
    shapes = {name: shape for name, (shape, _) in LAYERS.items()}
    drawn = {name: energies(decaying(s.inputs, s.outputs, steep)) for name, (s, steep) in LAYERS.items()}
    return drawn, shapes


@pytest.mark.parametrize("energy", [0.5, 0.8, 0.95])
def test_energy_takes_the_smallest_rank_that_keeps_it(energy: float) -> None:
    drawn, shapes = spectra()
    ranks = energy_ranks(drawn, shapes, energy=energy)
    for name, values in drawn.items():
        shares = np.cumsum(values) / values.sum()
        smallest = int(np.searchsorted(shares, energy) + 1)
        dense = shapes[name].factored(smallest) >= shapes[name].dense
        assert ranks[name] == (None if dense else smallest)


def test_a_budget_is_kept_and_spent_where_it_keeps_most() -> None:
    drawn, shapes = spectra()
    ranks = energy_ranks(drawn, shapes, parameters=2500)
    spent = sum(
        shapes[name].dense if rank is None else shapes[name].factored(rank) for name, rank in ranks.items()
    )
    assert spent <= 2500
    assert 2500 - spent < max(shape.per_rank for shape in shapes.values())
    assert ranks["steep"] is not None and ranks["flat"] is not None

    def missed(given: dict[str, int | None]) -> float:
        return sum(float(drawn[n][r:].sum() / drawn[n].sum()) for n, r in given.items() if r is not None)

    found = missed(ranks)
    brute = min(
        missed({"steep": a, "flat": b, "wide": c})
        for a in range(1, 24)
        for b in range(1, 24)
        for c in range(1, 20)
        if 100 * a + 100 * b + 120 * c <= 2500
    )
    assert found <= brute + 0.05


def test_impossible_budgets_are_refused_with_the_least_that_works() -> None:
    drawn, shapes = spectra()
    with pytest.raises(UserError) as caught:
        energy_ranks(drawn, shapes, parameters=100)
    assert caught.value.nearest == 320
    energy_ranks(drawn, shapes, parameters=320)
    for energy in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(UserError):
            energy_ranks(drawn, shapes, energy=energy)


def test_the_method_factors_matrices_as_the_engine_stores_them() -> None:
    method = index.create("shrink", "structure", "low-rank:rank=8")
    weight = decaying(60, 40).astype(np.float32)
    b, a = method.factors(weight)  # type: ignore[attr-defined]
    assert b.shape == (60, 8) and a.shape == (8, 40)
    best = math.sqrt(float(energies(weight)[8:].sum()))
    assert np.linalg.norm(weight - b @ a) == pytest.approx(best, rel=1e-3)
    assert index.create("shrink", "structure", "low-rank:rank=30").factors(weight) is None  # type: ignore[attr-defined]
