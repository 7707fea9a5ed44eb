"""A tick of the C controller on one core of this machine, and what it computes.

A Cortex-M4F at 64 to 80 MHz is taken to be 200 times slower than one core here: some 40 times in clock, and
five in what a superscalar core with wide registers does a cycle. So 42 microseconds here are 1/120 s there.
It is a factor, not a measurement; the operations and modelled cycles of a tick stand beside.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.smart_composites_nn4mc._bench import bench, model_of

PLANTS = ("tendon", "plate")
SLOWER = 200
CLOCK_HZ = 64e6


def rows() -> list[Row]:
    found = []
    for name in PLANTS:
        found += [
            Row(
                f"tick-{name}",
                f"a tick of the C controller of the {name}, GRU(10): below 42 us here (x {SLOWER} < 1/120 s)",
                "us",
                "time",
                Bar("<=", 42.0),
                judged="ours",
                published=">= 120 Hz on the chip",
                quick=name == "tendon",
            ),
            Row(f"operations-{name}", f"floating-point operations of a tick, {name}", "operations", "time"),
            Row(
                f"cycles-{name}",
                f"modelled rate of the {name} on a Cortex-M4F at 64 MHz: two cycles an operation",
                "Hz",
                "time",
                published=">= 120 Hz",
            ),
            Row(
                f"parity-{name}",
                f"inputs of the C controller of the {name} beside the numpy one's, as a share of their range",
                "share",
                "quality",
                Bar("<=", 1e-3),
                judged="ours",
                quick=name == "tendon",
            ),
        ]
    return found


def recorder(seen: list[tuple[Any, Any]]) -> Callable[[Any, Any, Any], None]:
    """What notes a loop's ticks."""
    return lambda measurement, ahead, u: seen.append((measurement, ahead))


@bench.measure(*rows(), seconds=60, quick_seconds=20)
def ticks(run: Run) -> Outcomes:
    from haversack.core.errors import UserError
    from haversack.embed._host import tool
    from haversack.embed.control import PRESETS, settings_of
    from haversack.embed.controller_c import build_controller, costs, emit_controller, microseconds, replay
    from haversack.embed.plants import plant
    from haversack.embed.predictive_control import Controller
    from haversack.embed.targets import TARGETS
    from haversack.embed.tracking import close_loop, reference

    try:
        tool("gcc", "gcc")
    except UserError as error:
        raise Unavailable(str(error)) from error
    found: dict[str, Outcome] = {}
    for name in PLANTS[: 1 if run.quick else 2]:
        which = plant(name)
        fit = model_of(name, run.seed % 1000 if run.quick else 0)
        controller = Controller(fit.model, settings_of(which, PRESETS[name]), which.measured)
        seen: list[tuple[Any, Any]] = []
        track = close_loop(
            *(which, controller, reference("figure-eight", which, laps=1)),
            horizon=controller.settings.N2,
            seed=1,
            each=recorder(seen),
        )
        with tempfile.TemporaryDirectory() as place:
            emit_controller(controller, Path(place), tick_s=which.tick_s)
            program = build_controller(Path(place))
            low, high = which.limits
            gap = float(np.abs(replay(program, seen) - track.inputs).max() / (high - low))
            taken = tuple(microseconds(program, seen) for _ in range(MIN_PAIRS))
        spent = costs(controller)
        cycles = spent.operations * TARGETS["cortex-m4f"].float_cycles / 2
        found |= {
            f"tick-{name}": Outcome(
                Side("C, gcc -O2", taken), note=f"{spent.network_steps} network steps a tick"
            ),
            f"operations-{name}": Outcome.single(float(spent.operations), name="counted"),
            f"cycles-{name}": Outcome.single(
                CLOCK_HZ / cycles, name="modelled", note="a model, not a measurement"
            ),
            f"parity-{name}": Outcome.single(gap, name="C, 32-bit floats", note=f"{len(seen)} ticks"),
        }
    return found
