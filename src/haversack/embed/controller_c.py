"""A model and its predictive controller as one readable C99 file, without malloc.

Paper: Toward smart composites (arXiv 2205.10940): the prediction and control loop runs inside the material.
The file holds what `predictive_control` computes, line by line in the same order, in 32-bit floats
(`dtype="f64"` writes doubles: both are compared with the numpy one, the doubles to rounding). All memory is
static; the largest arrays on the stack are windows and hidden states of one forecast.

Every probe rolls the whole horizon from copies of the hidden state, so derivative probes never advance it
(the `store_state` flag of the published controller). Functions of the standard math library only: expf,
tanhf, sqrtf.

Limits: derivatives are finite differences (the numpy controller also has analytic ones).
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core import _files
from haversack.core.errors import UserError
from haversack.embed._c import array, literal, rendered
from haversack.embed._host import compiled, run
from haversack.embed._layers import NUMPY, stack
from haversack.embed.predictive_control import Controller

Array = npt.NDArray[Any]
SYSTEM = 18


@dataclass(frozen=True)
class Costs:
    """What a controller costs: parameters, bytes of constants and of static memory, network steps and
    floating-point operations (a multiply and an add count two) a tick."""

    parameters: int
    flash_bytes: int
    ram_bytes: int
    network_steps: int
    operations: int


def costs(controller: Controller) -> Costs:
    """Counted from the shapes; `ram_bytes` in 32-bit floats."""
    model, settings = controller.model, controller.settings
    parts = stack(model.layers)
    free, outs = settings.Nu * model.inputs, settings.N2 * model.outputs
    probes = 2 * free + 1
    if settings.hessian == "newton":
        probes += 2 * free * (free + 1)
    steps = settings.newton_steps * probes * settings.N2 + 1
    products = outs * free + free * (free + 1) // 2 * outs * model.outputs + free**3 // 3
    kept = parts.state + model.inputs * model.input_delays + model.output_delays * model.outputs
    newton = 4 * outs + free * outs + 2 * free * free
    tick = 2 * free + model.width + parts.state + model.outputs
    constants = parts.parameters + model.outputs**2 + model.inputs**2
    return Costs(
        parts.parameters,
        4 * constants,
        4 * (kept + newton + tick),
        steps,
        2 * parts.macs * steps + 2 * products * settings.newton_steps,
    )


def emit_controller(
    controller: Controller,
    folder: Path,
    *,
    tick_s: float,
    dtype: str = "f32",
    ticks: int = 2000,
    title: str = "",
) -> list[Path]:
    """Write `control.c`, `control.h` and `main.c`, which replays ticks, into `folder`; returns them.

    Raises UserError for analytic derivatives and for a controller whose hidden state leaks.
    """
    model, settings = controller.model, controller.settings
    if settings.derivative != "differences" or settings.leak:
        raise UserError(
            "the C controller takes its derivatives by differences from a kept hidden state; use "
            "derivative=differences and leak=False.",
            field="derivative",
            given=settings.derivative,
            nearest="differences",
        )
    title = title or f"predictive control of {model.inputs} inputs by a learned forward model"
    parts, spent = stack(model.layers, dtype), costs(controller)
    kind = NUMPY[dtype]

    def number(value: float) -> str:
        return literal(value, kind.__name__)

    sharpness, span, offset = settings.barrier
    shared = {"header": "control.h", "title": title}
    header = rendered(
        "control.h.j2",
        dtype,
        title=title,
        guard="HAVERSACK_CONTROL_H",
        inputs=model.inputs,
        outputs=model.outputs,
        measured=model.outputs if controller.measured else model.sensors,
        measures="the position" if controller.measured else "the sensors",
        n2=settings.N2,
        tick_s=f"{tick_s:g}",
    )
    source = rendered(
        "control.c.j2",
        dtype,
        **shared,
        parameters=spent.parameters,
        flash=spent.flash_bytes,
        ram=spent.ram_bytes,
        steps=spent.network_steps,
        sensors=0 if controller.measured else model.sensors,
        input_delays=model.input_delays,
        output_delays=model.output_delays,
        first=max(settings.N1, 1) - 1,
        nu=settings.Nu,
        state=parts.state,
        newton_steps=settings.newton_steps,
        low=number(settings.limits[0]),
        high=number(settings.limits[1]),
        step=number(settings.step),
        sharpness=number(sharpness),
        span=number(span),
        offset=number(offset),
        q=array("Q", settings.Q.astype(kind), about="weighs errors"),
        l=array("L", settings.L.astype(kind), about="weighs moves"),
        weights=parts.weights,
        kernels=parts.kernels,
        scratch=parts.scratch,
        calls=parts.calls,
        hessian=settings.hessian,
        takes_position=controller.measured,
    )
    main = rendered("control_main.c.j2", dtype, **shared, ticks=ticks)
    with _files.explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in (("control.h", header), ("control.c", source), ("main.c", main)):
        _files.write_atomically(folder / name, text.encode())
        written.append(folder / name)
    return written


def build_controller(folder: Path, *flags: str, name: str = "control") -> Path:
    """The replay program of an emitted folder, by this machine's gcc with warnings as errors."""
    return compiled([folder / "control.c", folder / "main.c"], folder / name, *(flags or ("-O2",)))


def replay(program: Path, ticks: Sequence[tuple[Array, Array]]) -> Array:
    """The inputs (ticks, m) that the C controller gives for measurements and wishes, from the neutral
    posture."""
    out = run([program], _as_text(ticks))
    return np.array([[float(cell) for cell in line.split()] for line in out.splitlines()])


def microseconds(program: Path, ticks: Sequence[tuple[Array, Array]], repeat: int = 20) -> float:
    """Mean microseconds of one tick of the C controller on one core of this machine."""
    return float(run([program, str(repeat)], _as_text(ticks)))


def code_bytes(source: Path, *flags: str, compiler: str = "gcc") -> tuple[int, int]:
    """Bytes of code with constants, and of static memory, of one compiled file, as `size` counts them."""
    goal = source.with_suffix(".o")
    subprocess.run([compiler, "-std=c99", *flags, "-c", str(source), "-o", str(goal)], check=True)
    prefix = compiler.removesuffix("gcc")
    line = run([f"{prefix}size", goal]).splitlines()[1].split()
    goal.unlink()
    return int(line[0]), int(line[1]) + int(line[2])


def _as_text(ticks: Sequence[tuple[Array, Array]]) -> str:
    lines = [np.concatenate([measurement, wish.ravel()]) for measurement, wish in ticks]
    return "\n".join(" ".join(repr(float(cell)) for cell in line) for line in lines) + "\n"
