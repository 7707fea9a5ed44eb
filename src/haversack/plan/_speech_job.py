"""The main job for speech models: every plan is predicted, the best are packed and measured, one is written.

Sound to calibrate on and to measure on are the user's; without any, quality is only predicted and speed is
measured on noise. Speed counts the states that the encoder makes and the tokens that the decoder writes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from haversack.core.errors import UserError, not_allowed
from haversack.core.measurement import Quality
from haversack.core.pack import PackWriter
from haversack.core.progress import Progress
from haversack.core.roofline import Cost, energy_mj, seconds
from haversack.formats.wav import write_wav
from haversack.models._architecture import Block
from haversack.models.audio._record import RATE
from haversack.plan._candidates import Candidate, Plan
from haversack.plan._enumerate import (
    activation_types,
    create_precision,
    no_plan,
    offered,
    precision_choices,
)
from haversack.plan._job import (
    RECORD_NBYTES,
    TOKENIZER_FILES,
    Job,
    Outcome,
)
from haversack.plan._measure import measured_run
from haversack.plan._predict import ACTIVATION_NOISE, LOSS_PER_NOISE, MIB, products_of
from haversack.plan._shelf import Workshop, pack_measuring
from haversack.plan._speech_quality import Said, audio_files, differing, say, windows_of
from haversack.plan._structure import OFFERED, Structures, full_structure
from haversack.run._cache import CACHE_TYPES
from haversack.run._encoder_weights import RESIDENCIES
from haversack.run._speech import Speech
from haversack.run._speech_source import SpeechModel, open_speech
from haversack.shrink._pipeline import stored_kinds, stored_nbytes
from haversack.shrink._precision import calibrated
from haversack.shrink._speech import Piece, Pieces, SpeechWalk

SPEECH_FILES = ("preprocessor_config.json",)
SAMPLE_S = 5.0  # of sound that speed is measured on
TOKENS = 32  # written of a window, where a prediction needs a number
MOST_EVALUATED = 64
SMALL_CALLS = 14
MEASURE = "share of tokens that it would write otherwise than the f32 model"


class SpeechShop(Workshop):
    """Packs candidates in a scratch folder and measures them against the model as it came."""

    kind = "speech"

    def __init__(self, job: Job, model: SpeechModel, scratch: Path, bar: Progress) -> None:
        walk = SpeechWalk(model.architecture, model.source)
        super().__init__(job, model.source, model.path, model.config, walk, scratch, bar)
        self.model = model
        self._losses: dict[tuple[str, str, str, str], float] = {}
        self.calibration_files, self.evaluation_files = audio_files(job.calibration, job.evaluation)

    @cached_property
    def samples(self) -> list[Said]:
        """What quality is measured on; empty where there is no sound for it."""
        if not self.evaluation_files:
            return []
        with Speech.open(self.model) as speech:
            found = windows_of(speech, self.evaluation_files, "evaluation", MOST_EVALUATED)
            return [say(speech, samples) for samples in found]

    @cached_property
    def calibration(self) -> Pieces:
        """What methods are calibrated on: as many windows as `calibration_tokens` states and tokens fill."""
        one = self.model.architecture
        with Speech.open(self.model) as speech:
            fixed = one.encoder.window is not None
            most = 4096 if not fixed else -(-self.job.calibration_tokens // one.encoder.frames(speech.window))
            found, left = [], self.job.calibration_tokens
            for samples in windows_of(speech, self.calibration_files, "calibration", max(most, 2)):
                rows = speech.rows(samples)[: speech.window]
                found.append(Piece(rows, say(speech, samples).tokens))
                left -= one.encoder.frames(len(rows)) + len(found[-1].tokens)
                if left <= 0:
                    break
        return Pieces(one, found)

    def texts(self) -> Any:
        """See Shelf."""
        return self.calibration

    def add_files(self, writer: PackWriter) -> None:
        """See Shelf; also what says how the model hears."""
        super().add_files(writer)
        for name in SPEECH_FILES:
            if (self.path / name).is_file():
                writer.add_file(name, self.path / name)

    def loss(self, candidate: Candidate) -> float:
        """See Workshop; as predicted where there is no sound to measure it on."""
        if not self.samples:
            return candidate.loss
        plan = candidate.plan
        key = (*plan.stored, plan.activations, plan.cache_type)
        if key not in self._losses:
            options: dict[str, Any] = {"activations": plan.activations, "cache_type": plan.cache_type}
            with Speech.open(self.pack(plan), residency=plan.residency, **options) as speech:
                self._losses[key] = differing(speech, self.samples)
        return self._losses[key]

    @cached_property
    def sample(self) -> Path:
        """A sound file that a fresh process transcribes: of the evaluation's beginning, else noise."""
        path = self.scratch / "sample.wav"
        count = int(SAMPLE_S * RATE)
        noise = 0.1 * np.random.default_rng(self.job.seed).standard_normal(count).astype(np.float32)
        samples = np.concatenate([said.samples for said in self.samples]) if self.samples else noise
        write_wav(path, samples[:count], RATE)
        return path

    def figures(self, plan: Plan) -> tuple[float, float]:
        """See Workshop; states and tokens a second of transcribing the sample."""
        asked = ("--audio", str(self.sample), "--max-tokens", str(TOKENS), "--cache-type", plan.cache_type)
        record, peak_mib = measured_run(self.pack(plan), plan, asked)
        work = record["windows"] * frames_of(self.model, record["seconds"]) + record["tokens"]
        return 1e3 * work / record["ms"], peak_mib

    def write_best(self, found: Sequence[Candidate], best: Candidate) -> None:
        """See Workshop."""
        heard = self.samples
        measured_on = (
            f"{len(heard)} windows of {len(self.evaluation_files)} files" if heard else "none: predicted"
        )
        calibrated_on = self.calibration.shape[0] if "calibration" in self.__dict__ else 0
        self.write(
            found,
            best,
            quality=(Quality(MEASURE, best.loss, "lower"),) if heard else (),
            facts=[
                ("loss", MEASURE if heard else f"predicted, not measured (no sound given): {MEASURE}"),
                ("evaluation", measured_on),
                ("calibration", f"{calibrated_on} windows"),
                ("speed", "states of the encoder and tokens written, a second"),
            ],
            provenance={"evaluation": measured_on, "calibration": f"{calibrated_on} windows"},
        )


def frames_of(model: SpeechModel, seconds_: float = SAMPLE_S) -> int:
    """States of a window of sound of so many seconds."""
    encoder = model.architecture.encoder
    return encoder.frames(encoder.window or int(seconds_ * RATE))


def predictions(
    job: Job, model: SpeechModel, files_nbytes: int, structures: Structures, choices: tuple[str, ...]
) -> list[Candidate]:
    """Every plan with a structure of `choices` as a predicted candidate."""
    walk = SpeechWalk(model.architecture, model.source)
    fixed = [job.residency] if job.residency else list(RESIDENCIES)
    for name in fixed:
        if name not in RESIDENCIES:
            raise UserError(
                f"residency {name} is not for speech models (allowed {', '.join(RESIDENCIES)}).",
                field="residency",
                given=name,
                nearest="copied",
            )
    cache_type = job.cache_type or "f32"
    weights = sum(int(np.prod(shape)) for shape in walk.shapes.values())
    found = []
    for structure, choice in itertools.product(choices, precision_choices(job.precision)):
        if job.precision is None and not offered(
            walk, choice, structure, job.calibration_tokens, job.effort_s
        ):
            continue
        method = structures.compression(choice, structure)
        reads = calibrated(method)
        if reads and job.calibration is None:
            by_precision = calibrated(create_precision(choice))
            if (job.precision if by_precision else job.structure) is None:
                continue  # nobody asked for it, and there is nothing to calibrate it on
            raise UserError(
                f"{choice} is calibrated on sound; give --calibration FOLDER of .wav files, or take "
                "round-to-nearest or keep.",
                field="calibration",
                nearest="round-to-nearest",
            )
        kinds = stored_kinds(walk, method, job.policy)
        nbytes = stored_nbytes(walk, kinds)
        types = {kind.kind for kind in kinds.values()}
        for activations, residency in itertools.product(
            activation_types(types, job.activations, choice), fixed
        ):
            plan = Plan(
                choice, structure, activations=activations, residency=residency, cache_type=cache_type
            )
            noise = method.noise() + ACTIVATION_NOISE[activations]
            took, work = job_seconds(job, model, nbytes / weights, activations, kinds)
            found.append(
                Candidate(
                    plan,
                    bits=8 * nbytes / weights,
                    loss=LOSS_PER_NOISE * noise,
                    storage_mib=(nbytes + files_nbytes) / MIB,
                    ram_mib=_memory_mib(job, model, nbytes, plan),
                    device=work / took,
                    latency_ms=1e3 * took,
                    energy_mj=energy_mj(took, job.device),
                    calibrated=reads,
                )
            )
    if not found and choices != OFFERED:
        raise no_plan(job.precision, job.activations)
    return found


def job_seconds(
    job: Job, model: SpeechModel, nbytes_a_weight: float, activations: str, kinds: Any
) -> tuple[float, int]:
    """The roofline of hearing a window of SAMPLE_S and writing TOKENS on the job's device: (seconds, states
    and tokens of it)."""
    arithmetic = "f32" if activations == "f32" else "int8"
    one, frames, costs = model.architecture, frames_of(model), []

    def block(record: Block, rows: int, times: int, seen: int) -> None:
        numbers = sum(linear.inputs * linear.outputs for linear in record.matrices())
        made = sum(products_of(kinds[each.weight], each.outputs, each.inputs) for each in record.matrices())
        for _ in range(times):
            operations = 2.0 * rows * made
            costs.append(Cost("products", numbers * nbytes_a_weight / 4, operations / 4, arithmetic, 4))
            costs.append(Cost("attention", 8.0 * seen * one.width, 4.0 * rows * seen * one.width, "f32"))
            costs.append(Cost("small", 16.0 * rows * one.width, 0.0, "f32", SMALL_CALLS))

    for record in one.encoder.blocks:
        block(record, frames, 1, frames)
    for record in one.decoder.blocks:
        block(record, 1, TOKENS, frames)
    for convolution in one.encoder.stem:
        matrix = convolution.matrix
        numbers = matrix.inputs * matrix.outputs
        rows = frames * convolution.stride
        costs.append(Cost("products", numbers * nbytes_a_weight, 2.0 * rows * numbers, arithmetic))
    head = one.head.inputs * one.head.outputs
    for _ in range(TOKENS):
        costs.append(Cost("products", head * nbytes_a_weight, 2.0 * head, arithmetic))
    return seconds(costs, job.device), frames + TOKENS


def _memory_mib(job: Job, model: SpeechModel, nbytes: int, plan: Plan) -> float:
    probe = Speech(model, plan.residency, "f32", plan.cache_type, None).memory_plan(SAMPLE_S)
    lines = {label: count for label, count in probe.lines if "weights" not in label and "mapped" not in label}
    lines["program"] = int(job.device.base_ram_mib * MIB)
    lines.pop("a matrix on its way", None)
    return (sum(lines.values()) + nbytes) / MIB


def pack_speech(job: Job, source: Any, tell: Callable[[str], None]) -> Outcome:
    """`pack_model` for a speech model: predict, measure, choose, write."""
    if job.cache_type is not None and job.cache_type not in CACHE_TYPES:
        raise not_allowed("cache_type", job.cache_type, CACHE_TYPES)
    model = open_speech(source)
    audio_files(job.calibration, job.evaluation)  # refused before the work
    files = [model.path / name for name in (*TOKENIZER_FILES, *SPEECH_FILES)]
    files_nbytes = sum(path.stat().st_size for path in files if path.is_file()) + RECORD_NBYTES
    walk = SpeechWalk(model.architecture, model.source)
    structures = Structures(walk, model.source)
    return pack_measuring(
        job,
        walk,
        structures,
        full_structure(job.structure),
        lambda choices: predictions(job, model, files_nbytes, structures, choices),
        lambda scratch, bar: SpeechShop(job, model, scratch, bar),
        tell,
    )
