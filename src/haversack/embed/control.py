"""From a plant to a controller in C: a log, a learned model, a closed loop, one C file, its parity, a plot.

Paper: Toward smart composites (arXiv 2205.10940). `control` runs the whole chain on a simulated plant:
excites it, fits its forward model, follows a reference with the numpy controller, emits the C controller, has
gcc build it and replays the loop's measurements through it. Weights of the cost are the plant's own
[inferred]: those published (in PRESETS beside them) belong to units and rigs that are not told.

A reference is a shape by name or a CSV file of points in metres, one row a tick, a column a coordinate.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core import _files
from haversack.core.errors import UserError
from haversack.embed._plots import tracking_svg
from haversack.embed.controller_c import (
    Costs,
    build_controller,
    costs,
    emit_controller,
    microseconds,
    replay,
)
from haversack.embed.forward_model import EPOCHS, Fit, fit_forward_model
from haversack.embed.plants import Plant, excite, plant
from haversack.embed.predictive_control import Controller, Settings
from haversack.embed.tracking import SHAPES, Track, close_loop, outside, reference

Array = npt.NDArray[Any]
SYSTEM = 18


@dataclass(frozen=True)
class Preset:
    """How a plant is controlled unless told otherwise; `amplitude` is the share of its inputs' range that the
    training log is drawn from."""

    kind: str
    reference: str
    Q: float
    L: float
    N2: int
    Nu: int
    step: float
    amplitude: float
    epochs: int = EPOCHS


PRESETS = {
    "spring": Preset("dense", "sine", 1e3, 1e-1, 5, 3, 5e-2, 1.0, 150),
    "spring-cubic": Preset("dense", "sine", 1e3, 1e-2, 5, 3, 5e-2, 1.0, 150),
    # Published: Q = diag(1e3, 3e4, 5e3), L = I, N2 = Nu = 1, e = 5e-2 rad.
    "tendon": Preset("gru10", "figure-eight", 3e4, 1e-2, 1, 1, 5e-2, 0.6),
    # Published: Q = diag(3e4, 5e4, 5e4), L = I, N2 = 3, Nu = 1, e = 2/250.
    "plate": Preset("gru10", "figure-eight", 5e4, 1e-3, 1, 1, 5e-2, 0.6),
}


@dataclass(frozen=True)
class Controlled:
    """What `control` did. `difference` is the largest gap between inputs of the C and the numpy controller,
    as a share of the input's range, None without gcc; so is `tick_us`, on this machine."""

    plant: str
    reference: str
    fit: Fit
    track: Track
    costs: Costs
    difference: float | None
    tick_us: float | None
    warnings: tuple[str, ...]
    folder: Path

    def record(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "plant": self.plant,
            "reference": self.reference,
            "model": {"error_m": self.fit.error, "free_error_m": self.fit.free_error},
            "tracking": self.track.record(),
            "costs": asdict(self.costs),
            "c": {"difference": self.difference, "tick_us": self.tick_us},
            "warnings": list(self.warnings),
            "output": str(self.folder),
        }


def settings_of(which: Plant, preset: Preset, **changed: Any) -> Settings:
    """The preset as settings, with what is `changed`."""
    given: dict[str, Any] = {
        "Q": preset.Q * np.eye(which.outputs),
        "L": preset.L * np.eye(which.inputs),
        "limits": which.limits,
        "N2": preset.N2,
        "Nu": preset.Nu,
        "step": preset.step,
    }
    return Settings(**(given | changed))


def read_points(path: Path, outputs: int) -> Array:
    """A reference from a CSV file; a first row of names is skipped.

    Raises UserError for another number of columns, for what is no number, for no rows.
    """
    try:
        lines = [line for line in csv.reader(path.read_text(encoding="utf-8").splitlines()) if line]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as CSV: {error}.", field="reference", given=str(path)
        ) from error
    found = []
    for number, line in enumerate(lines):
        try:
            point = [float(cell) for cell in line]
        except ValueError as error:
            if number == 0:
                continue
            raise UserError(
                f"{path}, row {number + 1}: {error}; give metres.", field="reference", given=line
            ) from error
        if len(point) != outputs or not np.isfinite(point).all():
            raise UserError(
                f"{path}, row {number + 1} holds {len(point)} numbers {line}; the plant has {outputs} "
                f"coordinates.",
                field="reference",
                given=line,
            )
        found.append(point)
    if not found:
        raise UserError(f"{path} holds no points.", field="reference", given=str(path))
    return np.array(found)


def learned(name: str, *, kind: str | None = None, seconds: float = 60.0, seed: int = 0, **fit: Any) -> Fit:
    """The forward model of a plant, from a log of `seconds` drawn by `seed`."""
    which, preset = plant(name), PRESETS[plant(name).name]
    log = excite(which, seconds, seed, amplitude=preset.amplitude)
    given = {"epochs": preset.epochs, "seed": seed, "measured": which.measured} | fit
    return fit_forward_model(log, kind=kind or preset.kind, **given)


def control(
    name: str,
    folder: Path,
    *,
    wish: str | None = None,
    kind: str | None = None,
    seconds: float = 60.0,
    epochs: int | None = None,
    seed: int = 0,
    say: Callable[[float], None] = lambda share: None,
    **changed: Any,
) -> Controlled:
    """The whole chain into `folder`: C, `tracking.svg`, `report.json`. `changed` are fields of Settings."""
    which = plant(name)
    preset = PRESETS[name]
    settings = settings_of(which, preset, **changed)
    shape = wish or preset.reference
    drawn = shape in SHAPES or not Path(shape).exists()
    points = reference(shape, which) if drawn else read_points(Path(shape), which.outputs)
    fit = learned(name, kind=kind, seconds=seconds, seed=seed, epochs=epochs or preset.epochs, say=say)
    controller = Controller(fit.model, settings, which.measured)
    emit_controller(controller, folder, tick_s=which.tick_s, ticks=max(len(points), 1))
    ticks: list[tuple[Array, Array]] = []
    settle = 50 if drawn and which.outputs > 1 else 0
    track = close_loop(
        *(which, controller, points),
        horizon=settings.N2,
        seed=seed + 1,
        settle=settle,
        each=lambda measurement, ahead, u: ticks.append((measurement, ahead)),
    )
    difference = tick_us = None
    found = [warning for warning in (outside(points, fit.model.low, fit.model.high),) if warning]
    try:
        program = build_controller(folder)
    except UserError as error:
        found.append(f"the C was not compiled: {error}")
    else:
        low, high = which.limits
        difference = float(np.abs(replay(program, ticks) - track.inputs).max() / (high - low))
        tick_us = microseconds(program, ticks)
    done = Controlled(name, shape, fit, track, costs(controller), difference, tick_us, tuple(found), folder)
    svg = tracking_svg({"predictive control": track}, which.tick_s, f"{name}: {Path(shape).name}")
    _files.write_atomically(folder / "tracking.svg", svg.encode())
    _files.write_atomically(folder / "report.json", (json.dumps(done.record(), indent=1) + "\n").encode())
    return done
