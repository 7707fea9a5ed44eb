"""Closed loops on simulated plants: predictive control beside a tuned PID, paths of the released targets,
ablations.

The rigs are not here, so the plants stand in for them; every row says so by what it measures. The model
learns from 60 s of random input of the same plant; noise and seed of the loop are others. The PID is tuned on
the very references and the common cost, which favours it. Predictive control is told the references ahead, as
in the paper; a row without preview stands beside.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.smart_composites_nn4mc._bench import bench, model_of

SPRINGS = ("spring-cubic", "spring")
PATHS = ("figure-eight", "circle", "diagonal")
SEEDS = (1, 2, 3)


def tracked(name: str, shape: str, run: Run, loop_seed: int, *, preview: bool = True, **changed: Any) -> Any:
    """The track of the predictive controller on a plant's reference."""
    from haversack.embed.control import PRESETS, settings_of
    from haversack.embed.plants import plant
    from haversack.embed.predictive_control import Controller
    from haversack.embed.tracking import close_loop, reference

    which = plant(name)
    settings = settings_of(which, PRESETS[name], **changed)
    fit = model_of(name, run.seed % 1000 if run.quick else 0)
    wish = reference(shape, which, laps=1 if run.quick else 3)
    settle = 50 if which.outputs > 1 else 0
    controller = Controller(fit.model, settings, which.measured)
    return close_loop(
        *(which, controller, wish), horizon=settings.N2, seed=loop_seed, settle=settle, preview=preview
    )


def spring_rows() -> list[Row]:
    found = []
    for name in SPRINGS:
        for shape in ("sine", "steps"):
            judged = name == "spring-cubic"
            found.append(
                Row(
                    f"{name}-{shape}",
                    f"tracking error on the {'nonlinear' if judged else 'linear'} mass-spring-damper, "
                    f"{shape}: at "
                    f"most {'0.8 times ' if judged else ''}the tuned PID's",
                    "m (RMSE)",
                    "quality",
                    Bar("<=", 0.8) if judged else None,
                    quick=judged and shape == "steps",
                )
            )
            found.append(
                Row(
                    f"{name}-{shape}-effort",
                    f"mean square of the input's moves, {name}, {shape}",
                    "N^2",
                    "quality",
                )
            )
    found.append(
        Row("spring-cubic-sine-blind", "the sine without being told it ahead", "m (RMSE)", "quality")
    )
    return found


@bench.measure(*spring_rows(), seconds=90, quick_seconds=25)
def springs(run: Run) -> Outcomes:
    from haversack.embed.control import PRESETS
    from haversack.embed.plants import plant
    from haversack.embed.tracking import close_loop, reference, tune_pid

    found: dict[str, Outcome] = {}
    for name in SPRINGS[: 1 if run.quick else 2]:
        which, preset = plant(name), PRESETS[name]
        wishes = {shape: reference(shape, which, laps=1 if run.quick else 3) for shape in ("sine", "steps")}
        pid, _ = tune_pid(which, list(wishes.values()), preset.Q * np.eye(1), preset.L * np.eye(1))
        gains = ", ".join(f"{gain:.3g}" for gain in pid.gains)
        for shape, wish in wishes.items():
            ours = [tracked(name, shape, run, seed) for seed in SEEDS]
            theirs = [close_loop(which, dataclasses.replace(pid), wish, seed=seed) for seed in SEEDS]
            for suffix, value in (("", "rmse"), ("-effort", "effort")):
                found[f"{name}-{shape}{suffix}"] = Outcome(
                    Side("predictive", tuple(getattr(track, value) for track in ours)),
                    Side("PID", tuple(getattr(track, value) for track in theirs)),
                    f"gains {gains}; noise of 1 mm; median of {len(SEEDS)} noises",
                )
        if name == "spring-cubic" and not run.quick:
            blind = [tracked(name, "sine", run, seed, preview=False) for seed in SEEDS]
            found["spring-cubic-sine-blind"] = Outcome(
                Side("predictive, no preview", tuple(track.rmse for track in blind)),
                found["spring-cubic-sine"].baseline,
            )
    return found


def path_rows() -> list[Row]:
    found = []
    for shape in PATHS:
        quick = shape == "figure-eight"
        found += [
            Row(
                f"tendon-{shape}-max",
                f"largest error of the simulated tendon segment on the {shape}: at most 2 mm",
                "mm",
                "quality",
                Bar("<=", 2.0),
                judged="ours",
                published="<= 2 mm, measured on the rig",
                quick=quick,
            ),
            Row(
                f"tendon-{shape}-mean",
                f"mean error of the simulated tendon segment on the {shape}: at most 1 mm",
                "mm",
                "quality",
                Bar("<=", 1.0),
                judged="ours",
                quick=quick,
            ),
            Row(
                f"plate-{shape}-max",
                f"largest error of the simulated six-input plate on the {shape}: at most 1 mm",
                "mm",
                "quality",
                Bar("<=", 1.0),
                judged="ours",
                published="<= 1 mm, simulated",
            ),
        ]
    return found


@bench.measure(*path_rows(), seconds=120, quick_seconds=20)
def paths(run: Run) -> Outcomes:
    found: dict[str, Outcome] = {}
    for name in ("tendon",) if run.quick else ("tendon", "plate"):
        for shape in PATHS[: 1 if run.quick else 3]:
            far = [1e3 * tracked(name, shape, run, seed).distances for seed in SEEDS]
            size = "25 mm across" if name == "tendon" else "2 mm across"
            note = f"{size}, a simulated plant; N2 = Nu = 1; median of {len(SEEDS)} noises"
            found[f"{name}-{shape}-max"] = Outcome(
                Side("predictive", tuple(float(each.max()) for each in far)), note=note
            )
            if name == "tendon":
                found[f"{name}-{shape}-mean"] = Outcome(
                    Side("predictive", tuple(float(each.mean()) for each in far)), note=note
                )
    return found


@bench.measure(
    Row(
        "newton-0", "no Newton step: the input stays, beside one step", "mm (mean)", "quality", Bar(">=", 2.0)
    ),
    Row("newton-5", "five Newton steps a tick beside one", "mm (mean)", "quality"),
    Row("analytic", "analytic derivatives beside central differences", "mm (mean)", "quality"),
    Row("second", "Newton's matrix beside Gauss and Newton's", "mm (mean)", "quality"),
    Row("scalar", "the published code's matrix beside Gauss and Newton's", "mm (mean)", "quality"),
    Row(
        "leak",
        "probes that advance the hidden state make the error visibly larger",
        "mm (mean)",
        "quality",
        Bar(">=", 1.1),
    ),
    seconds=120,
)
def ablations(run: Run) -> Outcomes:
    def mean(**changed: Any) -> tuple[float, ...]:
        return tuple(
            1e3 * float(tracked("tendon", "figure-eight", run, seed, **changed).distances.mean())
            for seed in SEEDS
        )

    plain = Side("one Gauss-Newton step, differences", mean())
    changes: dict[str, dict[str, Any]] = {
        "newton-0": {"newton_steps": 0},
        "newton-5": {"newton_steps": 5},
        "analytic": {"derivative": "analytic"},
        "second": {"hessian": "newton"},
        "scalar": {"hessian": "scalar"},
        "leak": {"leak": True},
    }
    return {row: Outcome(Side(row, mean(**changed)), plain) for row, changed in changes.items()}


@bench.measure(
    Row(
        "rig-tendon",
        "path error on the tendon rig",
        "mm",
        "quality",
        Bar("<=", 2.0),
        judged="ours",
        published="<= 2 mm",
    ),
    Row("power", "mean power on a Cortex-M4F", "mW", "quality", published="45.4 mW"),
    seconds=1,
)
def rigs(run: Run) -> Outcomes:
    raise Unavailable("the rig and its board are not here; the simulated plants' rows stand in for the first")
