"""Every method side by side on one model: what each makes of it, and what making it takes.

Each method compresses in a process of its own, so that its peak memory is seen from outside and one that
fails takes nothing with it. The packs are measured here, one after the other, and removed; nothing is
written unless an output is named, which then gets the best of them. What was measured before an interrupt
is kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from haversack.core import index
from haversack.core._files import remove
from haversack.core.budget import Budget
from haversack.core.errors import UserError
from haversack.core.memory import run_measured
from haversack.core.method import parse_choice
from haversack.core.progress import progress
from haversack.plan._candidates import Candidate, Plan, choose, refusal
from haversack.plan._enumerate import (
    STATIC,
    STATIC_TRAIT,
    VARIED,
    create_precision,
    full_name,
    no_plan,
    packing_seconds,
    undefined,
)
from haversack.plan._job import Job, scratch_folder
from haversack.plan._measure import MeasuringError
from haversack.plan._sides import Side, side_of
from haversack.plan._structure import full_structure
from haversack.shrink._pipeline import memory_plan
from haversack.shrink._precision import refused_by
from haversack.shrink.bit_operations import FLOAT_BITS

WORKER = "import sys; from haversack.plan._compare_worker import main; sys.exit(main())"
PLAIN = "keep:kind=f16"
AS_NAMED = "as named"
"""The setting of a method whose bits are not the same everywhere."""


@dataclass(frozen=True)
class Setting:
    """Bits of weights and activations, as the field writes them; floats count as 16."""

    bits: int
    activations: tuple[str, ...]
    """Types of that width, the first that a method is defined for is taken."""

    @property
    def name(self) -> str:
        """For example w4a16."""
        return f"w{self.bits}a{FLOAT_BITS if 'f32' in self.activations else 8}"


INTEGERS = ("int8-dynamic", "int8-static")
SETTINGS = (
    Setting(8, INTEGERS),
    Setting(4, ("f32",)),
    Setting(3, ("f32",)),
    Setting(4, INTEGERS),
)


@dataclass(frozen=True)
class Way:
    """One row to be: a plan under a setting, or why there is none (`reason`)."""

    plan: Plan
    setting: str
    reason: str | None = None


@dataclass(frozen=True)
class Row:
    """What became of a way.

    `bit_operations` of a token (or window of sound): in the blocks' matrices and in all. `seconds` and
    `peak_mib` are those of compressing, `planned_mib` what it planned. `reason`: why a figure is missing.
    """

    way: Way
    candidate: Candidate | None = None
    bit_operations: tuple[float, float] | None = None
    seconds: float | None = None
    peak_mib: float | None = None
    planned_mib: float | None = None
    reason: str | None = None

    def record(self, budget: Budget) -> dict[str, Any]:
        """As `pack --compare --json` prints it."""
        operations = self.bit_operations
        return {
            "setting": self.way.setting,
            "plan": self.way.plan.record(),
            "measured": None if self.candidate is None else self.candidate.record(budget),
            "bit_operations": operations and {"matrices": operations[0], "all": operations[1]},
            "packing": {
                "seconds": None if self.seconds is None else round(self.seconds, 2),
                "ram_mib": {"planned": self.planned_mib, "measured": self.peak_mib},
            },
            "reason": self.reason,
        }


@dataclass
class Comparison:
    """The rows so far; `pack` is what was written, None where nothing was asked for; `interrupted` when not
    all ways were tried."""

    quality: str
    budget: Budget
    rows: list[Row] = field(default_factory=list)
    pack: Path | None = None
    chosen: Candidate | None = None
    interrupted: bool = False

    def record(self) -> dict[str, Any]:
        """As `pack --compare --json` prints it."""
        return {
            "quality": self.quality,
            "rows": [row.record(self.budget) for row in self.rows],
            "pack": None if self.pack is None else str(self.pack),
            "chosen": None if self.chosen is None else self.chosen.plan.record(),
            "interrupted": self.interrupted,
        }


def ways(job: Job, side: Side) -> Iterator[Way]:
    """Every method of the index under every setting that it has, the float model first, structures last.

    A precision or activations that the user fixed leave only theirs.
    """
    how = {"residency": job.residency or "mapped", "cache_type": job.cache_type or "f32"}
    structure = full_structure(job.structure)
    if job.precision is not None:
        create_precision(job.precision)
    yield Way(Plan(PLAIN, **how), "w16a16")
    for entry in index.methods("shrink", "precision"):
        fixed = parse_choice(job.precision) if job.precision is not None else None
        if entry.name == "keep" or (fixed is not None and fixed[0] != entry.name):
            continue
        given = {} if fixed is None else fixed[1]
        widths = next((one.allowed or () for one in entry.parameters if one.name == "bits"), ())
        if not widths and (fixed is not None or entry.name != "mixed"):  # whose bits the planner chooses
            method = index.create("shrink", "precision", str(job.precision) if fixed else entry.name)
            plan = Plan(full_name(method, given), structure, **how)
            plan = replace(plan, activations=job.activations or "f32")
            yield Way(plan, AS_NAMED, _refusal(job, side, plan.precision))
        for setting in SETTINGS:
            if setting.bits not in widths or given.get("bits", str(setting.bits)) != str(setting.bits):
                continue
            types = [one for one in setting.activations if job.activations in (None, one)]
            if STATIC_TRAIT in entry.provides and job.activations is None:
                types = [one for one in types if one == STATIC]
            wanted = {**_fitted(entry, types), **given, "bits": setting.bits}
            text = ",".join(f"{key}={value}" for key, value in wanted.items())
            choice = full_name(
                index.create("shrink", "precision", f"{entry.name}:{text}"),
                dict.fromkeys((*VARIED, *(name for name in wanted if name != "bits"))),
            )
            taken = next((one for one in types if not undefined(choice, one)), None)
            if taken is not None:
                plan = Plan(choice, structure, activations=taken, **how)
                yield Way(plan, setting.name, _refusal(job, side, choice))
    if job.precision is None and job.structure is None and job.activations in (None, "f32"):
        for entry in index.methods("shrink", "structure"):
            try:
                named = full_structure(entry.name)
            except UserError:  # it makes no packs
                continue
            yield Way(Plan(PLAIN, named, **how), "w16a16")


def _fitted(entry: index.MethodEntry, types: Sequence[str]) -> dict[str, str]:
    """The parameter of a method that is fitted for a type of activations, where it has one: the first of
    `types` that it knows."""
    known = next((one.allowed or () for one in entry.parameters if one.name == "activations"), ())
    fitting = [one for one in types if one in known]
    return {"activations": fitting[0]} if fitting else {}


def _refusal(job: Job, side: Side, choice: str) -> str | None:
    method = create_precision(choice)
    refused = refused_by(method, side.walk)
    if refused and job.policy.kept is None:
        name, reason = next(iter(refused.items()))
        return f"cannot take {len(refused)} matrices, as {name}: {reason} (--allow-kept leaves them in f16)"
    takes = packing_seconds(side.walk, method, job.calibration_tokens)
    if takes > job.effort_s and job.precision is None:
        return f"would take about {takes:.0f} s, more than --effort {job.effort_s:g}; name it by --precision"
    return None


def compare(
    job: Job,
    *,
    write: bool,
    tell: Callable[[str], None] = lambda text: None,
    done: Callable[[Row], None] = lambda row: None,
) -> Comparison:
    """Try every way, then write the best that fits the budget by the job's objective if `write`.

    `done` sees each row when it is known. Raises UserError for what the job cannot be, and BudgetError when a
    pack is to be written and none fits.
    """
    with progress(f"comparing methods on {job.model}") as bar, scratch_folder(job.output) as scratch:
        side = side_of(job, scratch, bar)
        found = Comparison(side.quality, job.budget)
        planned = list(ways(job, side))
        if len(planned) == 1 and job.precision is not None and not job.precision.startswith("keep"):
            raise no_plan(job.precision, job.activations)
        bar.total = float(len(planned))
        try:
            for number, way in enumerate(planned):
                tell(f"{way.setting} {way.plan.precision}")
                row = _tried(job, side, way, scratch / f"way-{number}.pack", keep=write)
                found.rows.append(row)
                done(row)
                bar.advance()
        except KeyboardInterrupt:
            found.interrupted = True
            return found
        if write:
            measured = [row.candidate for row in found.rows if row.candidate is not None]
            best = choose(measured, job.budget, job.objective)
            if best is None:
                raise refusal(measured, job.budget, job.model)
            side.write(measured, best)
            found.pack, found.chosen = job.output, best
    return found


def _tried(job: Job, side: Side, way: Way, goal: Path, *, keep: bool) -> Row:
    """Compress to `goal` in a fresh process, then measure here; a failure is the row's reason."""
    if way.reason is not None:
        return Row(way, reason=way.reason)
    asked = request(job, way.plan, goal)
    try:
        method = side.structures.compression(*way.plan.stored)
        planned = memory_plan(side.walk, method, job.calibration_tokens, job.work_ram_mib).total_mib
        candidate = side.candidate(way.plan)
        took = run_measured([sys.executable, "-c", WORKER], stdin=json.dumps(asked), files=side.files)
        if took.returncode != 0:
            return Row(way, reason=_said(took.stdout, took.stderr), planned_mib=planned)
        seconds = float(json.loads(took.stdout.splitlines()[-1])["seconds"])
        side.adopt(way.plan, goal)
        measured = replace(side.measured(candidate), seconds=seconds)
        return Row(way, measured, side.bit_operations(way.plan, method), seconds, took.peak_mib, planned)
    except (UserError, MeasuringError) as error:
        return Row(way, reason=str(error))
    finally:
        if not keep:
            remove(goal)


def _said(out: str, error: str) -> str:
    lines = (out.strip() or error.strip()).splitlines()
    try:
        return str(json.loads(lines[-1])["error"])
    except (IndexError, ValueError, KeyError, TypeError):
        return f"compressing failed: {lines[-1] if lines else 'it was killed'}"


def request(job: Job, plan: Plan, goal: Path) -> Mapping[str, Any]:
    """What a fresh process is told; plan/_compare_worker.py reads it."""
    return {
        "model": job.model,
        "device": job.device.name,
        "plan": list(plan.stored),
        "goal": str(goal),
        "policy": {name: getattr(job.policy, name) for name in ("output", "embedding", "kept")},
        "calibration": None if job.calibration is None else str(job.calibration.absolute()),
        "calibration_tokens": job.calibration_tokens,
        "work_ram_mib": job.work_ram_mib,
        "seed": job.seed,
    }
