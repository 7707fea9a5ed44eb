"""The main job for encoders: every plan is predicted, the best are packed and measured, one is written.

An encoder has no cache and writes no tokens: its speed is that of reading a text, its quality how near its
vectors stay to those of the model as it came (or how well it still fills masked words in).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from haversack.core.errors import UserError
from haversack.core.measurement import Quality
from haversack.core.progress import Progress
from haversack.core.roofline import Cost, energy_mj, seconds
from haversack.models._calibration import default_text
from haversack.plan._candidates import Candidate, Plan
from haversack.plan._encoder_quality import loss, masked_bits
from haversack.plan._enumerate import activation_types, no_plan, offered, precision_choices
from haversack.plan._job import RECORD_NBYTES, TOKENIZER_FILES, Job, Outcome
from haversack.plan._measure import measured_run
from haversack.plan._predict import ACTIVATION_NOISE, LOSS_PER_NOISE, MIB, products_of
from haversack.plan._shelf import Workshop, pack_measuring
from haversack.plan._structure import Structures
from haversack.run._answers import mask_token
from haversack.run._encode import Tokens
from haversack.run._encoder import Encoder
from haversack.run._encoder_source import EncoderModel, open_encoder
from haversack.run._encoder_weights import RESIDENCIES
from haversack.shrink._encoder import EncoderWalk
from haversack.shrink._pipeline import stored_kinds, stored_nbytes
from haversack.shrink._precision import calibrated

PROMPT_TOKENS = 64  # of the text whose reading is predicted
EVALUATION_TEXTS = 64
CALIBRATION_LENGTH = 128
SMALL_CALLS = 9
LEAST_CHARACTERS = 24


class EncoderShop(Workshop):
    """Packs candidates in a scratch folder and measures them against the encoder as it came."""

    def __init__(self, job: Job, model: EncoderModel, scratch: Path, bar: Progress) -> None:
        walk = EncoderWalk(model.architecture, model.source)
        super().__init__(job, model.source, model.path, model.config, walk, scratch, bar)
        self.model = model
        self._losses: dict[tuple[str, str, str], float] = {}
        with Encoder.open(model) as encoder:
            self.samples = self.pieces(encoder, "evaluation", job.evaluation)[:EVALUATION_TEXTS]
            self.vectors = encoder.embed_tokens(self.samples)
            head = model.architecture.head
            self.bits: float | None = None
            if head is not None and head.kind == "masked-language":
                self.bits = masked_bits(encoder, self.samples, mask_token(encoder)[1], 0)

    def pieces(self, encoder: Encoder, purpose: str, path: Path | None) -> list[Tokens]:
        """The lines of a text as tokens, the model's special ones around each; short lines are joined."""
        text = default_text(purpose) if path is None else _read(path, purpose)
        found, part = [], ""
        for line in text.splitlines():
            part = f"{part} {line.strip()}".strip()
            if len(part) >= 4 * LEAST_CHARACTERS:
                found.append(part)
                part = ""
        if len(part) >= LEAST_CHARACTERS:
            found.append(part)
        if len(found) < 4:
            raise UserError(
                f"the {purpose} text is too short: {len(found)} pieces of {4 * LEAST_CHARACTERS} characters, "
                "4 are needed.",
                field=purpose,
                given=str(path or "default"),
            )
        rng = np.random.default_rng(self.job.seed)
        order = rng.permutation(len(found))[: 4096 if purpose == "calibration" else EVALUATION_TEXTS]
        return encoder.tokens([found[at] for at in sorted(order)], truncate=True)

    @cached_property
    def calibration(self) -> Any:
        """Pieces of like length for the methods that are calibrated, i32 [pieces, length]."""
        with Encoder.open(self.model) as encoder:
            texts = self.pieces(encoder, "calibration", self.job.calibration)
        length = min(CALIBRATION_LENGTH, self.model.architecture.context)
        first, last = texts[0].ids[:1], texts[0].ids[-1:]
        inner = np.concatenate([text.ids[1:-1] for text in texts])[: self.job.calibration_tokens]
        count = len(inner) // (length - 2)
        if count < 1:
            raise UserError("the calibration text is too short.", field="calibration", given=len(inner))
        rows = inner[: count * (length - 2)].reshape(count, length - 2)
        ends = [np.broadcast_to(end, (count, 1)) for end in (first, last)]
        return np.ascontiguousarray(np.concatenate([ends[0], rows, ends[1]], axis=1), np.int32)

    def texts(self) -> Any:
        """See Shelf."""
        return self.calibration

    def plan_record(self, plan: Plan) -> dict[str, Any]:
        """See Shelf; also how vectors are pooled."""
        return {**plan.record(), "pooling": self.model.pooling.record()}

    def loss(self, candidate: Candidate) -> float:
        """See Workshop; how far vectors, or filled words, moved."""
        plan = candidate.plan
        key = (*plan.stored, plan.activations)
        if key not in self._losses:
            pack = self.pack(plan)
            with Encoder.open(pack, residency=plan.residency, activations=plan.activations) as encoder:
                self._losses[key] = loss(encoder, self.vectors, self.samples, self.bits)
        return self._losses[key]

    def figures(self, plan: Plan) -> tuple[float, float]:
        """See Workshop; tokens a second of embedding the evaluation texts."""
        texts = self.scratch / "texts.txt"
        if not texts.exists():
            with Encoder.open(self.model, residency="mapped") as encoder:
                lines = [encoder.tokenizer.decode(text.ids.tolist()).strip() for text in self.samples]
            texts.write_text("\n".join(line.replace("\n", " ") for line in lines if line), encoding="utf-8")
        asked = (str(texts), "--lines", "--embed", "--truncate")
        record, peak_mib = measured_run(self.pack(plan), plan, asked)
        return float(record["tokens_per_s"]), peak_mib

    def write_best(self, found: Sequence[Candidate], best: Candidate) -> None:
        """See Workshop."""
        measure = "1 - mean cosine of its vectors to the f32 model's"
        if self.bits is not None:
            measure = "increase of the bits of a masked token over the f32 model's"
        source = "default" if self.job.evaluation is None else self.job.evaluation.name
        self.write(
            found,
            best,
            quality=(Quality(measure, best.loss, "lower"),),
            facts=[("loss", measure), ("evaluation", f"{source}: {len(self.samples)} texts")],
            provenance={"evaluation": source},
        )


def _read(path: Path, purpose: str) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the {purpose} file {path} is not UTF-8 text.", field=purpose, given=str(path)
        ) from error
    except OSError as error:
        raise UserError(
            f"the {purpose} file {path} cannot be read: {error.strerror}.", field=purpose, given=str(path)
        ) from error
    return text


def predictions(
    job: Job, model: EncoderModel, files_nbytes: int, structures: Structures, choices: tuple[str, ...]
) -> list[Candidate]:
    """Every plan with a structure of `choices` as a predicted candidate."""
    walk = EncoderWalk(model.architecture, model.source)
    fixed = [job.residency] if job.residency else list(RESIDENCIES)
    for name in fixed:
        if name not in RESIDENCIES:
            raise UserError(
                f"residency {name} is not for encoders (allowed {', '.join(RESIDENCIES)}).",
                field="residency",
                given=name,
                nearest="copied",
            )
    weights = sum(int(np.prod(shape)) for shape in walk.shapes.values())
    found = []
    for structure, choice in itertools.product(choices, precision_choices(job.precision)):
        if job.precision is None and not offered(
            walk, choice, structure, job.calibration_tokens, job.effort_s
        ):
            continue
        method = structures.compression(choice, structure)
        kinds = stored_kinds(walk, method, job.policy)
        nbytes = stored_nbytes(walk, kinds)
        products = sum(
            products_of(kinds[one.weight], one.outputs, one.inputs)
            for block in model.architecture.blocks
            for one in block.matrices()
        )
        types = {kind.kind for kind in kinds.values()}
        for activations, residency in itertools.product(
            activation_types(types, job.activations, choice), fixed
        ):
            plan = Plan(choice, structure, activations=activations, residency=residency)
            # One scale a token or matrix: the noise that a vector keeps is about that of its products.
            noise = method.noise() + ACTIVATION_NOISE[activations]
            took = reading_seconds(job, model, nbytes, activations, products)
            found.append(
                Candidate(
                    plan,
                    bits=8 * nbytes / weights,
                    loss=LOSS_PER_NOISE * noise,
                    storage_mib=(nbytes + files_nbytes) / MIB,
                    ram_mib=_memory_mib(job, model, nbytes, residency),
                    device=PROMPT_TOKENS / took,
                    latency_ms=1e3 * took,
                    energy_mj=energy_mj(took, job.device),
                    calibrated=calibrated(method),
                )
            )
    if not found:
        raise no_plan(job.precision, job.activations)
    return found


def reading_seconds(job: Job, model: EncoderModel, nbytes: int, activations: str, products: int) -> float:
    """The roofline of reading a text of PROMPT_TOKENS tokens on the job's device, whose blocks multiply
    `products` times a token.
    """
    arithmetic = "f32" if activations == "f32" else "int8"
    costs = []
    matrices = [linear for block in model.architecture.blocks for linear in block.matrices()]
    share = sum(linear.inputs * linear.outputs for linear in matrices)
    total = sum(int(np.prod(shape)) for shape in model.architecture.tensors().values())
    for block in model.architecture.blocks:
        numbers = sum(linear.inputs * linear.outputs for linear in block.matrices())
        read = nbytes * min(1.0, share / total) * numbers / share
        made = 2.0 * PROMPT_TOKENS * products * numbers / share
        costs.append(Cost("products", read / 4, made / 4, arithmetic, 4))
        attention = 4.0 * PROMPT_TOKENS**2 * model.architecture.width
        costs.append(Cost("attention", 8.0 * PROMPT_TOKENS * model.architecture.width, attention, "f32"))
        costs.append(Cost("small", 16.0 * PROMPT_TOKENS * model.architecture.width, 0.0, "f32", SMALL_CALLS))
    return seconds(costs, job.device)


def _memory_mib(job: Job, model: EncoderModel, nbytes: int, residency: str) -> float:
    probe = Encoder(model, residency, "f32", None).memory_plan(PROMPT_TOKENS)
    lines = {label: count for label, count in probe.lines if "weights" not in label and "mapped" not in label}
    lines["program"] = int(job.device.base_ram_mib * MIB)
    lines.pop("a matrix on its way", None)
    return (sum(lines.values()) + nbytes) / MIB


def pack_encoder(job: Job, source: Any, tell: Callable[[str], None]) -> Outcome:
    """`pack_model` for an encoder: predict, measure, choose, write."""
    if job.cache_type is not None:
        raise UserError(
            "an encoder has no cache; leave --cache-type out.", field="cache_type", given=job.cache_type
        )
    model = open_encoder(source)
    files = [model.path / name for name in TOKENIZER_FILES]
    files_nbytes = sum(path.stat().st_size for path in files if path.is_file()) + RECORD_NBYTES
    walk = EncoderWalk(model.architecture, model.source)
    structures = Structures(walk, model.source)
    return pack_measuring(
        job,
        walk,
        structures,
        structures.choice(job.structure),
        lambda choices: predictions(job, model, files_nbytes, structures, choices),
        lambda scratch, bar: EncoderShop(job, model, scratch, bar),
        tell,
    )
