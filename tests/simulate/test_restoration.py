"""The simulated restoration: the paper's known schedule, its bound, and what it says of larger boards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from haversack.run.residency.sealed import Stages, bound_s, unpipelined_s
from haversack.simulate.restoration import MODELS, Board, compared, first_token_s

time = some.floats(0.01, 5.0)


def test_the_known_schedule() -> None:
    layers = [Stages(1, 2, 1, 3)] * 4
    assert first_token_s(layers) == 16
    assert first_token_s(layers, kept=2) == 12
    assert first_token_s(layers, kept=4) == 12


@given(some.lists(some.builds(Stages, time, time, time, time), min_size=1, max_size=8), some.integers(1, 3))
def test_between_the_bound_and_no_overlap_at_all(layers: list[Stages], workers: int) -> None:
    took = first_token_s(layers, workers=workers)
    assert bound_s(layers, workers) <= took + 1e-9
    assert took <= unpipelined_s(layers) + 1e-9


@given(some.lists(some.builds(Stages, time, time, time, time), min_size=1, max_size=8))
def test_keeping_more_is_never_slower_by_the_bound(layers: list[Stages]) -> None:
    bounds = [bound_s(layers, kept=kept) for kept in range(len(layers) + 1)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == pytest.approx(sum(one.compute for one in layers))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_paper_s_models(model: object) -> None:
    shown = compared(model)  # type: ignore[arg-type]
    assert 0.70 <= shown.reduction <= 0.92
    assert shown.pipelined < shown.pipelined_by_processors < shown.unpipelined


def test_a_longer_prompt_hides_the_restoration() -> None:
    board, model = Board(), MODELS[-1]
    slow = [compared(model, tokens, board) for tokens in (32, 128, 512)]
    assert slow[0].pipelined <= slow[1].pipelined <= slow[2].pipelined
    compute = sum(one.compute for one in board.stages(model, 512, accelerated=False))
    assert compute / slow[2].pipelined_by_processors > 0.9
