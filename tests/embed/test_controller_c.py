"""The controller as C computes what the numpy one does: doubles to rounding, floats closely; clean under
sanitizers."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.embed._host import SANITIZED
from haversack.embed.controller_c import build_controller, code_bytes, costs, emit_controller, replay
from haversack.embed.forward_model import ForwardModel, draw
from haversack.embed.predictive_control import Controller, Settings

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


def controller(kind: str, hessian: str, **changed: int) -> Controller:
    rng = np.random.default_rng(4)
    model = ForwardModel(draw(kind, 2 * 2 + 2 * 3 + 4, 3, rng), 2, 3, 4)
    settings = Settings(
        np.diag([30.0, 20.0, 10.0]),
        np.array([[0.5, 0.1], [0.1, 0.3]]),
        (-1.0, 0.8),
        hessian=hessian,
        **changed,
    )
    return Controller(model, settings)


def loop(one: Controller, count: int = 40) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    rng = np.random.default_rng(0)
    ticks = [(rng.normal(size=4), rng.normal(0, 0.5, (one.settings.N2, 3))) for _ in range(count)]
    return ticks, np.array([one.step(*tick) for tick in ticks])


@pytest.mark.parametrize(
    ("kind", "hessian", "changed"),
    [
        ("gru5-dense5", "gauss-newton", {"N2": 3, "Nu": 2, "newton_steps": 2}),
        ("gru10", "newton", {"N2": 2, "Nu": 2, "N1": 2}),
        ("dense", "scalar", {"N2": 3, "Nu": 3}),
    ],
)
def test_doubles_agree_to_rounding_and_floats_closely(
    kind: str, hessian: str, changed: dict[str, int], tmp_path: Path
) -> None:
    one = controller(kind, hessian, **changed)
    ticks, wanted = loop(one)
    for dtype, tolerance, flags in (("f64", 1e-9, SANITIZED), ("f32", 2e-2, ("-O2",))):
        emit_controller(one, tmp_path / dtype, tick_s=0.01, dtype=dtype)
        found = replay(build_controller(tmp_path / dtype, *flags), ticks)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


def test_the_file_allocates_nothing_and_its_costs_are_counted(tmp_path: Path) -> None:
    one = controller("gru5", "gauss-newton")
    emit_controller(one, tmp_path, tick_s=0.01)
    text = (tmp_path / "control.c").read_text(encoding="utf-8")
    assert not re.search(r"\b(malloc|calloc|realloc|free)\s*\(", text)
    spent = costs(one)
    assert spent.parameters == 14 * 15 + 5 * 15 + 30 + 18
    assert spent.network_steps == 2 * 2 + 1 + 1
    code, memory = code_bytes(tmp_path / "control.c", "-Os")
    assert 0 < code - spent.flash_bytes < 30_000
    assert memory >= spent.ram_bytes


def test_derivatives_that_c_does_not_have_are_refused(tmp_path: Path) -> None:
    one = controller("gru5", "gauss-newton")
    one.settings = replace(one.settings, derivative="analytic")
    with pytest.raises(UserError, match="differences"):
        emit_controller(one, tmp_path, tick_s=0.01)
