"""Structure methods on PyTorch modules: saved, loaded, applied, the same result, the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from haversack.core import index
from haversack.shrink.structure import factorize, load, save

SOLVERS = ("svd", "snmf", "random")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64)), nn.Linear(64, 5))


def test_every_method_of_the_slot_is_tested() -> None:
    assert {entry.name for entry in index.methods("shrink", "structure")} == {
        "cats",
        "low-rank",
        "r-sparse",
        "reglu",
    }


@pytest.mark.parametrize("solver", SOLVERS)
def test_low_rank_saved_loaded_applied_and_the_same_every_time(solver: str, tmp_path: Path) -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    one, report = factorize(net(), 0.4, solver)
    two, _ = factorize(net(), 0.4, solver)
    assert len(report.factored) == 2
    assert torch.equal(one(x), two(x))
    assert torch.equal(load(save(one, tmp_path / "a"), net())(x), one(x))
    other, _ = factorize(net(), 0.4, solver, seed=9)
    assert torch.equal(other(x), one(x)) == (solver == "svd"), "the SVD of so small a layer draws nothing"
