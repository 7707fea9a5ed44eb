"""Packs of candidates in a scratch folder, and the chosen one under the name the user gave."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from haversack import __version__
from haversack.core._record import FamilyEntry
from haversack.core.budget import Budget
from haversack.core.measurement import Measurement, Quality, machine
from haversack.core.memory import MemoryPlan
from haversack.core.pack import Pack, PackWriter
from haversack.core.progress import Progress, progress
from haversack.plan._candidates import Candidate, Plan, choose, ranked, refusal
from haversack.plan._enumerate import wants_matrices
from haversack.plan._job import RECORD_NBYTES, Job, Outcome, add_files, device_budget, scratch_folder
from haversack.plan._predict import MIB
from haversack.plan._report import report_html
from haversack.plan._sealing import sealed_plan, sealer
from haversack.plan._search import Clock, mild
from haversack.plan._structure import OFFERED, Structures, layers_of
from haversack.shrink._pipeline import compress, memory_plan
from haversack.shrink._precision import calibrated
from haversack.shrink.structure._packed import Layer


class Shelf(ABC):
    """The packs of one job, each written when it is first asked for.

    `source` holds the weights, `path` is the folder with the other files, `config` its config.json.
    """

    kind: ClassVar[str] = "language"
    family: FamilyEntry | None = None
    """What the written pack belongs to."""

    def __init__(
        self,
        job: Job,
        source: Any,
        path: Path,
        config: Mapping[str, Any],
        walk: Any,
        scratch: Path,
        bar: Progress,
    ) -> None:
        self.job, self.source, self.path, self.config = job, source, path, config
        self.walk, self.scratch, self.bar = walk, scratch, bar
        self.structures = Structures(walk, source)
        self.layers: dict[tuple[str, str], tuple[Layer, ...]] = {}
        self.unreached: dict[tuple[str, str], list[str]] = {}
        self._packs: dict[tuple[str, str], Path] = {}

    @abstractmethod
    def texts(self) -> Any:
        """What calibrated methods read (the `texts` of shrink's `compress`)."""

    def add_files(self, writer: PackWriter) -> None:
        """What of the checkpoint belongs into its pack besides the weights."""
        add_files(writer, self.path)

    def prepare(self, writer: PackWriter, pack: Pack) -> None:  # noqa: B027 - most kinds have nothing to say
        """What `writer` must know before the first tensor of `pack` is copied; nothing here."""

    def plan_record(self, plan: Plan) -> dict[str, Any]:
        """What pack.json keeps of a plan."""
        return plan.record()

    def pack(self, plan: Plan) -> Path:
        """The candidate pack of `plan`, written when first asked for."""
        key = plan.stored
        if key not in self._packs:
            self._packs[key] = self.compressed(key)
        return self._packs[key]

    def compressed(self, key: tuple[str, str]) -> Path:
        """Compress by (precision, structure) into a new pack of the scratch folder."""
        path = self.scratch / f"{len(self._packs)}.pack"
        method = self.structures.compression(*key)
        with PackWriter(path, self.kind) as writer:
            compress(
                self.source,
                self.walk,
                method,
                writer,
                texts=self.texts() if calibrated(method) else None,
                policy=self.job.policy,
                folder=self.scratch,
                seed=self.job.seed,
                bar=self.bar,
                unreached=self.unreached.setdefault(key, []),
                matrices=wants_matrices(self.job.residency),
            )
            self.add_files(writer)
            record = self.plan_record(Plan(*key))
            writer.finish({"architecture": dict(self.config), "plan": record})
        self.layers[key] = layers_of(method)
        return path

    def adopt(self, plan: Plan, pack: Path) -> None:
        """Take `pack` for that of `plan`."""
        self._packs[plan.stored] = pack

    def storage_mib(self, plan: Plan) -> float:
        """Of the whole pack."""
        return (Pack.open(self.pack(plan)).nbytes + RECORD_NBYTES) / MIB

    def write(
        self,
        found: Sequence[Candidate],
        best: Candidate,
        *,
        quality: tuple[Quality, ...],
        facts: Sequence[tuple[str, str]],
        provenance: Mapping[str, str],
        plan: Mapping[str, str] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """The pack of `best` under the name the user gave, with its measurements and report.

        `facts` are the report's first lines; `provenance` is kept beside model, device and objective. `plan`:
        choices beside those of `best`; `files`: what they need in the pack.
        """
        job, pack = self.job, Pack.open(self.pack(best.plan))
        here = machine()
        estimated = ", ".join(job.device.estimated)
        measurement = Measurement(
            quality=quality,
            memory_mib=best.ram_mib,
            storage_mib=best.storage_mib,
            throughput=best.here,
            seed=job.seed,
        )
        page = report_html(
            title=f"{Path(job.model).name or job.model} in a haversack",
            model=job.model,
            device=job.device,
            budget=device_budget(job.budget, job.device),
            objective=job.objective,
            candidates=list(found),
            chosen=best,
            layers=self.layers.get(best.plan.stored, ()),
            facts=[
                *facts,
                ("measured on", f"{here['cpu']}, {here['cores']} cores, {here['isa']}"),
                (
                    "device",
                    job.device.title + (f"; estimated in its profile: {estimated}" if estimated else ""),
                ),
                ("haversack", __version__),
            ],
        )
        with PackWriter(job.output, self.kind, expected_bytes=pack.nbytes, sealer=sealer(job)) as writer:
            self.prepare(writer, pack)
            for name, entry in pack.tensors.items():
                data = [pack.bytes(name)]
                writer.add_tensor(name, entry.kind, entry.shape, data, entry.group, entry.layout)
            for name, form in pack.forms.items():
                writer.add_form(name, form)
            weights = {entry.file for entry in pack.tensors.values()}
            for name in (one for one in pack.record.files if one not in weights):
                writer.add_file(name, pack.read_file(name))
            for name, content in (files or {}).items():
                writer.add_file(name, content)
            writer.add_file("report.html", page.encode())
            writer.finish(
                {
                    "architecture": dict(self.config),
                    "plan": sealed_plan(job, {**self.plan_record(best.plan), **(plan or {})}),
                    "activations": best.plan.activations,
                    "family": self.family,
                    "measurements": [measurement.record()],
                    "provenance": {
                        "model": job.model,
                        "haversack": __version__,
                        "device": job.device.name,
                        "objective": job.objective,
                        **provenance,
                    },
                }
            )


class Workshop(Shelf):
    """A shelf of small models, each of whose fitting candidates can be measured."""

    @abstractmethod
    def loss(self, candidate: Candidate) -> float:
        """What `candidate` loses, measured where it can be."""

    @abstractmethod
    def figures(self, plan: Plan) -> tuple[float, float]:
        """Throughput and peak MiB of a fresh process."""

    @abstractmethod
    def write_best(self, found: Sequence[Candidate], best: Candidate) -> None:
        """`write`, with what this kind of model tells of itself."""

    def measured(self, candidate: Candidate) -> Candidate:
        """`candidate` with loss, speed, memory and storage as measured."""
        begun = time.monotonic()
        self.pack(candidate.plan)
        loss = self.loss(candidate)
        rate, ram_mib = self.figures(candidate.plan)
        return replace(
            candidate,
            loss=loss,
            here=rate,
            ram_mib=ram_mib,
            storage_mib=self.storage_mib(candidate.plan),
            source="measured",
            seconds=time.monotonic() - begun,
        )


def pack_measuring(
    job: Job,
    walk: Any,
    structures: Structures,
    choice: str,
    predictions: Callable[[tuple[str, ...]], list[Candidate]],
    workshop: Callable[[Path, Progress], Workshop],
    tell: Callable[[str], None],
) -> Outcome:
    """Predict, measure all that fit as far as the effort goes, choose, write.

    `predictions` gives the candidates of some structures; `choice` is the one asked for. Raises BudgetError
    before any work when nothing can fit.
    """
    begun = time.monotonic()
    budget = device_budget(job.budget, job.device)
    what = f"{job.model} on {job.device.name}"
    candidates = predictions((choice,))
    fitting = _fitting(candidates, budget)
    if not fitting and job.structure is None:
        candidates += predictions(OFFERED)
        fitting = _fitting(candidates, budget)
    if not fitting:
        raise refusal([mild(one) for one in candidates], budget, what)
    plans = [
        memory_plan(walk, structures.compression(*key), job.calibration_tokens, job.work_ram_mib)
        for key in {one.plan.stored for one in fitting}
    ]
    memory: MemoryPlan = max(plans, key=lambda plan: plan.total_bytes)
    with progress(f"packing {job.model}") as bar, scratch_folder(job.output) as scratch:
        shop = workshop(scratch, bar)
        clock = Clock(job.effort_s)
        known = {one.plan: one for one in candidates}
        for candidate in _order(fitting, job.objective):
            if choose(list(known.values()), budget, job.objective) is not None and clock.left_s <= 0:
                break
            tell(candidate.plan.label)
            known[candidate.plan] = shop.measured(candidate)
        found = list(known.values())
        best = choose(found, budget, job.objective)
        if best is None:
            raise refusal([one for one in found if one.source == "measured"] or found, budget, what)
        shop.write_best(found, best)
        layers = shop.layers.get(best.plan.stored, ())
    taken = time.monotonic() - begun
    return Outcome(job.output, best, tuple(found), budget, job.objective, taken, memory, layers)


def _fitting(candidates: list[Candidate], budget: Budget) -> list[Candidate]:
    return [one for one in candidates if budget.fits(mild(one).demand())]


def _order(candidates: list[Candidate], objective: str) -> list[Candidate]:
    """The best of every precision first, then the other ways to run them."""
    first: dict[tuple[str, str], Candidate] = {}
    order = ranked(candidates, objective)
    for one in order:
        first.setdefault(one.plan.stored, one)
    return [*first.values(), *(one for one in order if one not in first.values())]
