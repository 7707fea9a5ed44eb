"""Kinds of models to the comparison of methods (plan/_compare.py): language, encoder, speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from haversack.core.errors import UserError
from haversack.core.progress import Progress
from haversack.models import read_architecture
from haversack.models._borrowed import open_folder
from haversack.models._bundled import model_folder
from haversack.models._checkpoint import checkpoint
from haversack.models._gguf import is_gguf
from haversack.models.audio import is_speech
from haversack.models.language import is_encoder
from haversack.plan._candidates import OUTPUT_TOKENS, Candidate, Plan
from haversack.plan._enumerate import Space, predicted
from haversack.plan._job import RECORD_NBYTES, Job
from haversack.plan._language_job import Bench
from haversack.plan._predict import PROMPT_TOKENS
from haversack.plan._search import measured
from haversack.plan._structure import Structures
from haversack.run._weights import check_tensors
from haversack.shrink._pipeline import Walk, stored_kinds
from haversack.shrink._precision import Precision
from haversack.shrink.bit_operations import Cost, token_products, window_products


class Side(Protocol):
    """A model to be compressed in several ways. `quality` says what a loss is a share of; `files` are those
    that compressing reads."""

    walk: Any
    structures: Structures
    quality: str
    files: Sequence[Path]

    def candidate(self, plan: Plan) -> Candidate:
        """What prediction says of `plan`."""

    def compress(self, plan: Plan) -> Path:
        """The pack of `plan`, written in the scratch folder."""

    def adopt(self, plan: Plan, pack: Path) -> None:
        """Take `pack` for that of `plan`."""

    def measured(self, candidate: Candidate) -> Candidate:
        """`candidate` as measured on its pack."""

    def bit_operations(self, plan: Plan, method: Precision) -> tuple[float, float]:
        """Of a token, or a window of sound: in the blocks' matrices, and in all."""

    def write(self, found: list[Candidate], best: Candidate) -> None:
        """The pack of `best` under the name that the job gives, with its report."""


def side_of(job: Job, scratch: Path, bar: Progress) -> Side:
    """The model of `job`. Raises UserError for one that is not compared."""
    if is_gguf(job.model):
        raise UserError(
            f"{job.model} is a GGUF file; methods are compared on the original checkpoint.",
            field="model",
            given=job.model,
        )
    source: Any = open_folder(model_folder(job.model))
    if is_encoder(source.config):
        raise UserError(
            f"{job.model} is an encoder; methods are compared on language and speech models. Fix one by "
            "--precision.",
            field="model",
            given=job.model,
        )
    if is_speech(source.config):
        return SpeechSide(job, source, scratch, bar)
    return LanguageSide(job, source, scratch, bar)


class LanguageSide:
    """A decoder of text, judged by bits per byte."""

    quality = "bits per byte"

    def __init__(self, job: Job, source: Any, scratch: Path, bar: Progress) -> None:
        architecture = read_architecture(source.config)
        source = checkpoint(source, architecture)
        check_tensors(source, architecture)
        self.job, self.files = job, source.files
        self.bench = Bench(job, source, scratch, bar)
        self.walk: Walk = self.bench.walk
        self.structures = self.bench.structures

    @cached_property
    def reference(self) -> float:
        """Bits per byte of the model as it came, in f32."""
        return self.bench.reference()

    def candidate(self, plan: Plan) -> Candidate:
        """See Side."""
        space = Space(
            architecture=self.bench.architecture,
            device=self.job.device,
            files_nbytes=RECORD_NBYTES,
            context=self.bench.architecture.context,
            policy=self.job.policy,
            precision=plan.precision,
            activations=plan.activations,
            residency=plan.residency,
            cache_type=plan.cache_type,
            structures=(plan.structure,),
            compression=self.structures.compression,
            attention=self.job.attention,
        )
        return replace(predicted(space)[0][0], plan=plan)

    def compress(self, plan: Plan) -> Path:
        """See Side."""
        return self.bench.pack(plan)

    def adopt(self, plan: Plan, pack: Path) -> None:
        """See Side."""
        self.bench.adopt(plan, pack)

    def measured(self, candidate: Candidate) -> Candidate:
        """See Side."""
        return measured(candidate, self.reference, self.bench)

    def bit_operations(self, plan: Plan, method: Precision) -> tuple[float, float]:
        """See Side; of the token after a prompt and half an answer."""
        kinds = stored_kinds(self.walk, method, self.job.policy)
        blocks, others = token_products(
            self.bench.architecture, kinds, plan.activations, PROMPT_TOKENS + OUTPUT_TOKENS
        )
        return Cost.of(blocks).bit_operations, Cost.of([*blocks, *others]).bit_operations

    def write(self, found: list[Candidate], best: Candidate) -> None:
        """See Side."""
        self.bench.write_best(found, best, self.reference)


class SpeechSide:
    """An encoder and decoder of sound, judged by the share of tokens that it would write otherwise."""

    def __init__(self, job: Job, source: Any, scratch: Path, bar: Progress) -> None:
        from haversack.plan._speech_job import MEASURE, SpeechShop
        from haversack.run._speech_source import open_speech

        self.job, self.quality = job, MEASURE
        self.shop = SpeechShop(job, open_speech(source), scratch, bar)
        self.walk, self.structures = self.shop.walk, self.shop.structures
        self.files: Sequence[Path] = tuple(self.shop.model.path.glob("*.safetensors"))

    def candidate(self, plan: Plan) -> Candidate:
        """See Side."""
        from haversack.plan._speech_job import predictions

        fixed = replace(
            self.job,
            precision=plan.precision,
            activations=plan.activations,
            residency=plan.residency,
            cache_type=plan.cache_type,
        )
        found = predictions(fixed, self.shop.model, RECORD_NBYTES, self.structures, (plan.structure,))
        return replace(found[0], plan=plan)

    def compress(self, plan: Plan) -> Path:
        """See Side."""
        return self.shop.pack(plan)

    def adopt(self, plan: Plan, pack: Path) -> None:
        """See Side."""
        self.shop.adopt(plan, pack)

    def measured(self, candidate: Candidate) -> Candidate:
        """See Side."""
        return self.shop.measured(candidate)

    def bit_operations(self, plan: Plan, method: Precision) -> tuple[float, float]:
        """See Side; of a window of sound and the tokens written of it."""
        from haversack.models.audio._record import RATE
        from haversack.plan._speech_job import SAMPLE_S, TOKENS

        one = self.shop.model.architecture
        rows = one.encoder.window or int(SAMPLE_S * RATE)
        kinds = stored_kinds(self.walk, method, self.job.policy)
        blocks, others = window_products(one, kinds, plan.activations, rows, TOKENS)
        return Cost.of(blocks).bit_operations, Cost.of([*blocks, *others]).bit_operations

    def write(self, found: list[Candidate], best: Candidate) -> None:
        """See Side."""
        self.shop.write_best(found, best)
