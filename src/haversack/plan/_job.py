"""The main job: a model and a budget in, a pack and its report out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from haversack import __version__
from haversack.core import index
from haversack.core._files import explain_write_errors, partial_path, remove, remove_stale_partials
from haversack.core._pack_writer import check_goal
from haversack.core.budget import Budget, BudgetError
from haversack.core.device import Device
from haversack.core.errors import UserError, not_allowed
from haversack.core.measurement import Measurement, Quality, machine
from haversack.core.memory import MemoryPlan
from haversack.core.pack import Pack, PackWriter
from haversack.core.progress import Progress, progress
from haversack.formats.safetensors import HubFolder
from haversack.models import Tokenizer, read_architecture
from haversack.models._bundled import model_folder
from haversack.models._calibration import TokenText, segments, token_text
from haversack.models._checkpoint import checkpoint
from haversack.models._experts import identity
from haversack.models._factored import factored
from haversack.models._gguf import is_gguf
from haversack.models._hub_cache import hub_origin
from haversack.models.audio import is_speech
from haversack.models.language import is_encoder
from haversack.models.tokenizers import can_be_made, tokenizer_json
from haversack.plan._candidates import OBJECTIVES, Candidate, Plan
from haversack.plan._enumerate import Space, predicted, wants_matrices
from haversack.plan._gguf_job import GgufJob, Origin
from haversack.plan._measure import RunFigures, quality, run_figures
from haversack.plan._predict import MIB
from haversack.plan._report import report_html
from haversack.plan._search import Clock, screened, search
from haversack.plan._structure import NONE, OFFERED, Structures, advised, full_structure, layers_of
from haversack.run._source import traits_of
from haversack.run._weights import check_tensors
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import LISTED, ROUTER, Policy, compress, kept_matrices, memory_plan
from haversack.shrink._precision import MATRICES, calibrated
from haversack.shrink.structure._packed import Layer

CALIBRATION_TOKENS = 32_768
CALIBRATION_LENGTH = 512
FEWEST_CALIBRATION, FEWEST_EVALUATION = 2_048, 1_024
EVALUATION_TOKENS = 16_384
WINDOW = 1_024
PROMPT_CHARACTERS, SPEED_TOKENS = 240, 32
# Files of a checkpoint folder that belong into its pack, besides the weights.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "LICENCE")
RECORD_NBYTES = 96 << 10  # pack.json, report.html and the weights' header, about


@dataclass(frozen=True)
class Job:
    """What the user asked for.

    `effort_s` bounds the search; the rest is named as in `haversack pack --help`.
    """

    model: str
    output: Path
    device: Device
    budget: Budget
    objective: str = "quality"
    effort_s: float = 120.0
    precision: str | None = None
    structure: str | None = None
    architecture: str | None = None
    activations: str | None = None
    residency: str | None = None
    cache_type: str | None = None
    policy: Policy = field(default_factory=Policy)
    calibration: Path | None = None
    evaluation: Path | None = None
    calibration_tokens: int = CALIBRATION_TOKENS
    work_ram_mib: float | None = None
    seed: int = 0
    requantize: str | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise not_allowed("objective", self.objective, OBJECTIVES)
        if self.structure is not None:
            full_structure(self.structure)
        if self.architecture is not None and self.architecture != "none":
            name = index.create("shrink", "architecture", self.architecture).name
            raise UserError(
                f"architecture {name} makes no packs yet; use none here.",
                field="architecture",
                given=self.architecture,
                nearest="none",
            )
        if self.device.runtime != "python":
            raise UserError(
                f"{self.device.name} does not run language packs (its runtime is {self.device.runtime}).",
                field="device",
                given=self.device.name,
                nearest="raspberry-pi-zero-2w",
            )


@dataclass(frozen=True)
class Outcome:
    """The written pack, the chosen candidate, all candidates, and what the packing took."""

    pack: Path
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    budget: Budget
    objective: str
    seconds: float
    memory: MemoryPlan
    layers: tuple[Layer, ...] = ()
    """What a structure method did to each matrix of the pack."""
    advice: str | None = None
    """Which plan without the structure is better, where one is predicted to be."""

    def record(self) -> dict[str, Any]:
        """As `pack --json` prints it."""
        return {
            "pack": str(self.pack),
            "plan": self.chosen.plan.record(),
            "candidates": [candidate.record(self.budget) for candidate in self.candidates],
            "layers": [layer.record() for layer in self.layers],
            "advice": self.advice,
            "seconds": round(self.seconds, 2),
        }


def device_budget(budget: Budget, device: Device) -> Budget:
    """`budget` with the device's memory and storage as limits where none is set."""
    return replace(
        budget,
        ram_mib=budget.ram_mib if budget.ram_mib is not None else device.ram_mib,
        storage_mib=budget.storage_mib if budget.storage_mib is not None else device.storage_mib,
    )


class Bench:
    """Packs candidates in a scratch folder beside the output and measures them; the search's `Workshop`."""

    def __init__(
        self, job: Job, source: Any, scratch: Path, bar: Progress, gguf: GgufJob | None = None
    ) -> None:
        if gguf is not None:
            source = Origin(gguf.write(scratch / "origin.pack", origin=True), gguf.model.config)
        self.gguf = gguf
        self.job, self.source, self.scratch, self.bar = job, source, scratch, bar
        self.architecture = read_architecture(source.config)
        self.tokenizer = Tokenizer.of_folder(source.path)
        self.walk = LanguageWalk(self.architecture)
        self.structures = Structures(self.walk, source)
        self.layers: dict[tuple[str, str], tuple[Layer, ...]] = {}
        self.unreached: dict[tuple[str, str], list[str]] = {}
        self._packs: dict[tuple[str, str], Path] = {}
        self._qualities: dict[tuple[str, str, str, str], float] = {}

    @cached_property
    def evaluation(self) -> TokenText:
        """The text that quality is measured on."""
        text = self._text("evaluation", self.job.evaluation, FEWEST_EVALUATION)
        return text.part(EVALUATION_TOKENS)

    @cached_property
    def calibration(self) -> TokenText:
        """The text that methods are calibrated on."""
        return self._text("calibration", self.job.calibration, FEWEST_CALIBRATION)

    def _text(self, purpose: str, path: Path | None, fewest: int) -> TokenText:
        def encode(part: str) -> list[int]:
            return list(self.tokenizer.encode(part, special=False))

        return token_text(encode, self.architecture.vocabulary, purpose, path, fewest)

    @property
    def calibration_source(self) -> str:
        """What was calibrated on, in words."""
        used = self.__dict__.get("calibration")
        return "none" if used is None else f"{used.source}: up to {self.job.calibration_tokens:,} tokens"

    @property
    def window(self) -> int:
        return min(WINDOW, int(self.architecture.context))

    def reference(self) -> float:
        """Quality of the model as it came, computed in f32."""
        return quality(self.source.path, None, self.evaluation, self.window, self.scratch)

    def pack(self, plan: Plan) -> Path:
        """The candidate pack of `plan`, written when first asked for."""
        key = plan.stored
        if key not in self._packs:
            path = self.scratch / f"{len(self._packs)}.pack"
            if self.gguf is not None and self.gguf.kept:
                kept = self.source.path if self.gguf.requantize is None else path
                if kept == path:
                    self.gguf.write(path, origin=False)
                self._packs[key] = kept
                return kept
            method = self.structures.compression(*key)
            texts = None
            if calibrated(method):
                length = min(CALIBRATION_LENGTH, self.architecture.context)
                count = -(-self.job.calibration_tokens // length)
                texts = segments(self.calibration.tokens, length, count, self.job.seed)
            with PackWriter(path) as writer:
                compress(
                    self.source,
                    self.walk,
                    method,
                    writer,
                    texts=texts,
                    policy=self.job.policy,
                    folder=self.scratch,
                    seed=self.job.seed,
                    bar=self.bar,
                    unreached=self.unreached.setdefault(key, []),
                    matrices=wants_matrices(self.job.residency),
                )
                add_files(writer, self.source.path)
                writer.finish({"architecture": self.source.config, "plan": Plan(*key).record()})
            self.layers[key] = layers_of(method)
            self._packs[key] = path
        return self._packs[key]

    def adopt(self, plan: Plan, pack: Path) -> None:
        """Take `pack` for that of `plan`."""
        self._packs[plan.stored] = pack

    def quality(self, plan: Plan) -> float:
        key = (*plan.stored, plan.activations, plan.cache_type)
        if key not in self._qualities:
            pack = self.pack(plan)
            self._qualities[key] = quality(pack, plan, self.evaluation, self.window, self.scratch)
        return self._qualities[key]

    def figures(self, plan: Plan) -> RunFigures:
        prompt = self.tokenizer.decode(self.evaluation.tokens[:PROMPT_CHARACTERS].tolist())[
            :PROMPT_CHARACTERS
        ]
        return run_figures(self.pack(plan), plan, prompt, SPEED_TOKENS)

    def storage_mib(self, plan: Plan) -> float:
        return (Pack.open(self.pack(plan)).nbytes + RECORD_NBYTES) / MIB


def pack_files(folder: Path) -> dict[str, bytes | Path]:
    """What of a checkpoint belongs into its pack besides the weights: tokenizer and licence, where it has
    them. A tokenizer of older files is made here, once for all."""
    found: dict[str, bytes | Path] = {
        name: folder / name for name in (*TOKENIZER_FILES, *LICENCE_FILES) if (folder / name).is_file()
    }
    if "tokenizer.json" not in found and can_be_made(folder):
        found["tokenizer.json"] = tokenizer_json(folder)
    return found


def add_files(writer: PackWriter, folder: Path) -> None:
    """Write the checkpoint's `pack_files` into a pack."""
    for name, data in pack_files(folder).items():
        writer.add_file(name, data)


@contextmanager
def scratch_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` for candidate packs, removed at the end whatever happens."""
    remove_stale_partials(output)
    folder = partial_path(output)
    with explain_write_errors(output):
        folder.mkdir()
    try:
        yield folder
    finally:
        remove(folder)


def pack_model(job: Job, tell: Callable[[str], None] = lambda text: None) -> Outcome:
    """Search, measure, choose, write. Raises UserError (BudgetError) before any work when nothing can fit."""
    begun = time.monotonic()
    check_goal(job.output)
    gguf = GgufJob.of(job.model, job.precision, job.requantize) if is_gguf(job.model) else None
    if gguf is None and job.requantize is not None:
        raise UserError(
            f"--requantize is for GGUF files; {job.model} is none.", field="requantize", given=job.requantize
        )
    source: Any = gguf.model if gguf else factored(HubFolder.open(model_folder(job.model)))
    if gguf is None and is_encoder(source.config):
        from haversack.plan._encoder_job import pack_encoder

        return pack_encoder(job, source, tell)
    if gguf is None and is_speech(source.config):
        from haversack.plan._speech_job import pack_speech

        return pack_speech(job, source, tell)
    walk = LanguageWalk(read_architecture(source.config))
    if gguf is None:
        source = checkpoint(source, walk.architecture)
        check_tensors(source, walk.architecture)
    budget = device_budget(job.budget, job.device)
    files = sum(
        len(data) if isinstance(data, bytes) else data.stat().st_size
        for name, data in (gguf.files() if gguf else pack_files(source.path)).items()
        if name in TOKENIZER_FILES
    )
    if gguf is not None and job.structure not in (None, NONE):
        raise UserError(
            f"{job.model} is a GGUF file, which is packed without a structure; pack the original checkpoint.",
            field="structure",
            given=job.structure,
            nearest=NONE,
        )
    structures = Structures(walk, source)
    space = Space(
        architecture=walk.architecture,
        device=job.device,
        files_nbytes=files + RECORD_NBYTES,
        context=walk.architecture.context,
        policy=job.policy,
        precision=job.precision,
        activations=job.activations,
        residency=job.residency,
        cache_type=job.cache_type,
        effort_s=job.effort_s,
        calibration_tokens=job.calibration_tokens,
        structures=(structures.choice(job.structure),),
        compression=structures.compression,
    )
    what = f"{job.model} on {job.device.name}"
    kept = gguf if gguf is not None and gguf.kept else None
    candidates, noises = kept.predicted(space) if kept else predicted(space)
    try:
        fitting = screened(candidates, budget, what)
    except BudgetError:
        if gguf is not None or job.structure is not None:
            raise
        more, noisier = predicted(replace(space, structures=OFFERED))
        candidates, noises = [*candidates, *more], {**noises, **noisier}
        fitting = screened(candidates, budget, what)
    plans = (
        [kept.memory_plan(job.work_ram_mib)]
        if kept
        else [
            memory_plan(walk, structures.compression(*one), job.calibration_tokens, job.work_ram_mib)
            for one in {candidate.plan.stored for candidate in fitting}
        ]
    )
    memory = max(plans, key=lambda plan: plan.total_bytes)
    with progress(f"packing {job.model}") as bar, scratch_folder(job.output) as scratch:
        bench = Bench(job, source, scratch, bar, gguf)
        clock = Clock(job.effort_s)
        tell("quality of the f32 model")
        reference = bench.reference()
        found, chosen = search(candidates, noises, budget, job.objective, reference, bench, clock, what, tell)
        write_pack(job, bench, budget, found, chosen, reference)
        layers = bench.layers.get(chosen.plan.stored, ())
    seconds = time.monotonic() - begun
    advice = None if kept else advised(space, chosen)
    return Outcome(job.output, chosen, tuple(found), budget, job.objective, seconds, memory, layers, advice)


def write_pack(
    job: Job, bench: Bench, budget: Budget, found: list[Candidate], chosen: Candidate, reference: float
) -> None:
    """The chosen candidate's tensors under the name the user gave, with its measurements and report."""
    pack = Pack.open(bench.pack(chosen.plan))
    assert chosen.quality is not None
    measurement = Measurement(
        quality=(
            Quality("bits per byte", chosen.quality, "lower"),
            Quality("bits per byte of the f32 model", reference, "lower"),
        ),
        memory_mib=chosen.ram_mib,
        storage_mib=chosen.storage_mib,
        throughput=chosen.here,
        seed=job.seed,
    )
    title = f"{Path(job.model).name or job.model} in a haversack"
    page = report_html(
        title=title,
        model=job.model,
        device=job.device,
        budget=budget,
        objective=job.objective,
        candidates=found,
        chosen=chosen,
        layers=bench.layers.get(chosen.plan.stored, ()),
        facts=facts(job, bench, reference, chosen),
    )
    with PackWriter(job.output, expected_bytes=pack.nbytes) as writer:
        if bench.walk.all_experts is not None:
            owned = bench.walk.all_experts
            records = owned.records(MATRICES in traits_of(pack))
            writer.keep_experts(identity(pack, bench.architecture), records)
        for name, entry in pack.tensors.items():
            writer.add_tensor(name, entry.kind, entry.shape, [pack.bytes(name)], entry.group, entry.layout)
        for name, form in pack.forms.items():
            writer.add_form(name, form)
        add_files(writer, bench.source.path)
        writer.add_file("report.html", page.encode())
        known = {entry.file for entry in pack.tensors.values()} | set(pack_files(bench.source.path))
        for name in (one for one in pack.record.files if one not in known):  # what the method wrote
            writer.add_file(name, pack.read_file(name))
        writer.finish(
            {
                "architecture": bench.source.config,
                "plan": chosen.plan.record(),
                "activations": chosen.plan.activations,
                "measurements": [measurement.record()],
                "provenance": {
                    "model": job.model,
                    **hub_origin(bench.source.path),
                    **({"requantized": job.requantize} if job.requantize else {}),
                    "haversack": __version__,
                    "device": job.device.name,
                    "objective": job.objective,
                    "evaluation": bench.evaluation.source,
                    "calibration": bench.calibration_source,
                },
            }
        )


def facts(job: Job, bench: Bench, reference: float, chosen: Candidate) -> list[tuple[str, str]]:
    """Labelled lines for the report: what quality and speed were measured on."""
    here = machine()
    text = bench.evaluation
    estimated = ", ".join(job.device.estimated)
    return [
        ("quality", f"bits per byte; the f32 model has {reference:.4f}"),
        ("evaluation", f"{text.source}: {len(text.tokens):,} tokens, {text.byte_count:,} bytes"),
        ("calibration", f"{bench.calibration_source}, seed {job.seed}"),
        *kept_facts(bench, chosen),
        *expert_facts(bench, chosen),
        ("measured on", f"{here['cpu']}, {here['cores']} cores, {here['isa']}"),
        ("device", job.device.title + (f"; estimated in its profile: {estimated}" if estimated else "")),
        ("haversack", __version__),
    ]


def kept_facts(bench: Bench, chosen: Candidate) -> list[tuple[str, str]]:
    """A line on the matrices that a method could not take, where there are any."""
    if bench.gguf is not None and bench.gguf.kept:
        return []
    method = bench.structures.compression(*chosen.plan.stored)
    kept = kept_matrices(bench.walk, method, bench.job.policy)
    kept = {name: one for name, one in kept.items() if one.reason != ROUTER}
    if not kept:
        return []
    return [("kept in f16", ", ".join(f"{name} ({one.reason})" for name, one in kept.items()))]


def expert_facts(bench: Bench, chosen: Candidate) -> list[tuple[str, str]]:
    """A line on the experts of mixtures that no token of the calibration text chose, where it was read."""
    mixtures = [block.mixture for block in bench.architecture.blocks if block.mixture is not None]
    count = sum(len(mixture.experts) for mixture in mixtures)
    method = bench.structures.compression(*chosen.plan.stored)
    if bench.gguf is not None or count == 0 or not method.needs:
        return []
    missed = bench.unreached.get(chosen.plan.stored, [])
    listed = ", ".join(missed[:LISTED]) + (" and others" if len(missed) > LISTED else "")
    said = f"{len(missed)} of {count}, rounded to nearest ({listed})" if missed else f"none of {count}"
    return [("experts without calibration tokens", said)]


def half_of_this_machine_mib() -> float:
    """The default of `--work-ram-mib`."""
    return float(machine()["ram_mib"]) / 2
