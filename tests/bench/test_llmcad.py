"""The bench of token trees: how it counts, and what it takes for chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from haversack.bench.llmcad import bench
from haversack.bench.llmcad.costs import Count, Counted
from haversack.bench.llmcad.exactness import tail


def test_a_pass_and_its_drafts_are_counted_alike_for_all() -> None:
    plain, tree = Count(tokens=12, passes=12), Count(tokens=12, passes=3, steps=15, drafted=20)
    assert plain.cost(50, 0.5) == 600
    assert tree.cost(50, 0.5) == 150 + 15 + 10


def test_drafting_beside_a_pass_takes_no_longer_than_the_pass() -> None:
    class Held:
        top: Any = None

        def weights(self, block: int, names: Any = ()) -> int:
            return block

    held = Counted(Held(), 5)
    left = [7, 0]
    held.meanwhile = lambda seconds: left.__setitem__(0, left[0] - 1) or left[0] >= 0
    assert held.weights(1) == 1 and held.beside == 0
    assert held.weights(0) == 0 and held.beside == 5
    assert held.weights(0) == 0 and held.beside == 7


@pytest.mark.parametrize(("value", "degrees", "p"), [(3.841, 1, 0.05), (11.07, 5, 0.05), (21.67, 9, 0.01)])
def test_the_tail_of_chi_square(value: float, degrees: int, p: float) -> None:
    assert tail(value, degrees) == pytest.approx(p, rel=0.06)


def test_every_bar_of_the_specification_has_a_row_at_both_ratios() -> None:
    bars = {row.id: row.bar.value for row in bench.rows if row.bar is not None}
    for ratio in (50, 200):
        assert bars[f"clock-{ratio}"] == bars[f"counted-{ratio}"] == 2.3
        assert bars[f"clock-linear-{ratio}"] == bars[f"counted-linear-{ratio}"] == 1.05
        assert bars[f"clock-beside-{ratio}"] == bars[f"counted-beside-{ratio}"] == 1.1
        assert (bars[f"passes-{ratio}"], bars[f"counted-fixed-{ratio}"]) == (2.5, 0.9)
    assert (bars["same-tokens"], bars["same-draws"], bars["memory"]) == (1.0, 1.0, 1.0)
    assert {row.kind for row in bench.rows if row.quick} == {"quality", "time", "memory", "bytes"}
    assert np.isclose(bars["distribution"], 0.01)
