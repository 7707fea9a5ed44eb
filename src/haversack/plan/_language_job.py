"""The main job for language models: every plan is predicted, those on the front are packed and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from haversack.core.budget import BudgetError
from haversack.core.errors import UserError
from haversack.core.measurement import Quality
from haversack.core.pack import Pack, PackWriter
from haversack.core.progress import Progress, progress
from haversack.models import Tokenizer, read_architecture
from haversack.models._calibration import TokenText, segments, token_text
from haversack.models._checkpoint import checkpoint
from haversack.models._experts import identity
from haversack.models._hub_cache import hub_origin
from haversack.plan._attention import attention_of, teaching_memory
from haversack.plan._candidates import Candidate, Plan
from haversack.plan._enumerate import Space, predicted
from haversack.plan._gguf_job import GgufJob, Origin
from haversack.plan._job import (
    RECORD_NBYTES,
    TOKENIZER_FILES,
    Job,
    Outcome,
    device_budget,
    pack_files,
    scratch_folder,
)
from haversack.plan._measure import RunFigures, quality, run_figures
from haversack.plan._sealing import sealed_facts
from haversack.plan._search import Clock, screened, search
from haversack.plan._sensitivity import Refined, lines_of, promising, refined
from haversack.plan._shelf import Shelf
from haversack.plan._structure import NONE, OFFERED, Structures, advised
from haversack.plan._versions import family_of_job, version_facts
from haversack.run._source import traits_of
from haversack.run._weights import check_tensors, refuse_second_head
from haversack.shrink._pipeline import LISTED, ROUTER, kept_matrices, memory_plan
from haversack.shrink._precision import MATRICES
from haversack.shrink._text_to_text import walk_of

CALIBRATION_LENGTH = 512
FEWEST_CALIBRATION, FEWEST_EVALUATION = 2_048, 1_024
EVALUATION_TOKENS = 16_384
SEARCHED = 0.6
"""Share of the effort for uniform plans, where bits by layer may fit a budget better."""
WINDOW = 1_024
ATTENTION_LENGTH, ATTENTION_PIECES = 1_024, 24
PROMPT_CHARACTERS, SPEED_TOKENS = 240, 32


class Bench(Shelf):
    """Packs candidates in a scratch folder beside the output and measures them; the search's `Workshop`."""

    def __init__(
        self, job: Job, source: Any, scratch: Path, bar: Progress, gguf: GgufJob | None = None
    ) -> None:
        if gguf is not None:
            source = Origin(gguf.write(scratch / "origin.pack", origin=True), gguf.model.config)
        self.gguf = gguf
        self.architecture = read_architecture(source.config, reader=True)
        self.tokenizer = Tokenizer.of_folder(source.path)
        walk = walk_of(self.architecture)
        super().__init__(job, source, source.path, source.config, walk, scratch, bar)
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
        """Tokens of a window of the evaluation."""
        return min(WINDOW, int(self.architecture.context))

    def reference(self) -> float:
        """Quality of the model as it came, computed in f32."""
        return quality(self.path, None, self.evaluation, self.window, self.scratch)

    def texts(self) -> Any:
        """See Shelf."""
        length = min(CALIBRATION_LENGTH, self.architecture.context)
        count = -(-self.job.calibration_tokens // length)
        return segments(self.calibration.tokens, length, count, self.job.seed)

    def long_texts(self) -> Any:
        """Calibration text in the long pieces that attention is taught on."""
        length = min(ATTENTION_LENGTH, self.architecture.context)
        count = min(-(-self.job.calibration_tokens // length), ATTENTION_PIECES)
        return segments(self.calibration.tokens, length, count, self.job.seed)

    def compressed(self, key: tuple[str, str]) -> Path:
        """See Shelf; a GGUF file's own types are kept as they are."""
        if self.gguf is None or not self.gguf.kept:
            return super().compressed(key)
        if self.gguf.requantize is None:
            return self.path
        path = self.scratch / f"{len(self._packs)}.pack"
        self.gguf.write(path, origin=False)
        return path

    def prepare(self, writer: PackWriter, pack: Pack) -> None:
        """See Shelf; experts go to their store."""
        owned = self.walk.all_experts
        if owned is not None:
            records = owned.records(MATRICES in traits_of(pack))
            writer.keep_experts(identity(pack, self.architecture), records)

    def quality(self, plan: Plan) -> float:
        """Bits per byte of the plan's pack."""
        key = (*plan.stored, plan.activations, plan.cache_type)
        if key not in self._qualities:
            pack = self.pack(plan)
            self._qualities[key] = quality(pack, plan, self.evaluation, self.window, self.scratch)
        return self._qualities[key]

    def figures(self, plan: Plan) -> RunFigures:
        """Speed and memory of a run in a fresh process."""
        prompt = self.tokenizer.decode(self.evaluation.tokens[:PROMPT_CHARACTERS].tolist())[
            :PROMPT_CHARACTERS
        ]
        return run_figures(self.pack(plan), plan, prompt, SPEED_TOKENS)

    def write_best(
        self,
        found: Sequence[Candidate],
        best: Candidate,
        reference: float,
        by_layer: Refined | None = None,
    ) -> None:
        """`write`, with quality beside that of the model as it came, and what came of bits by layer."""
        assert best.quality is not None
        job, text = self.job, self.evaluation
        chosen = attention_of(job, self.pack(best.plan), best.plan.activations, self.long_texts, self.scratch)
        self.write(
            found,
            best,
            quality=(
                Quality("bits per byte", best.quality, "lower"),
                Quality("bits per byte of the f32 model", reference, "lower"),
            ),
            facts=[
                ("quality", f"bits per byte; the f32 model has {reference:.4f}"),
                ("evaluation", f"{text.source}: {len(text.tokens):,} tokens, {text.byte_count:,} bytes"),
                ("calibration", f"{self.calibration_source}, seed {job.seed}"),
                *self._kept(best),
                *self._experts(best),
                *sealed_facts(job),
                *version_facts(job, self.family),
                *(lines_of(by_layer) if by_layer is not None else ()),
                *chosen.facts,
            ],
            plan=chosen.plan,
            files=chosen.files,
            provenance={
                **hub_origin(self.path),
                **({"requantized": job.requantize} if job.requantize else {}),
                **({"adapter": job.adapter.resolve().name} if job.adapter else {}),
                "evaluation": text.source,
                "calibration": self.calibration_source,
            },
        )

    def _kept(self, best: Candidate) -> list[tuple[str, str]]:
        """A line on the matrices that the method could not take, where there are any."""
        if self.gguf is not None and self.gguf.kept:
            return []
        method = self.structures.compression(*best.plan.stored)
        kept = kept_matrices(self.walk, method, self.job.policy)
        kept = {name: one for name, one in kept.items() if one.reason != ROUTER}
        if not kept:
            return []
        return [("kept in f16", ", ".join(f"{name} ({one.reason})" for name, one in kept.items()))]

    def _experts(self, best: Candidate) -> list[tuple[str, str]]:
        """A line on the experts that no token of the calibration text chose, where the method reads it."""
        mixtures = [block.mixture for block in self.architecture.blocks if block.mixture is not None]
        count = sum(len(mixture.experts) for mixture in mixtures)
        if count == 0 or (self.gguf is not None and self.gguf.kept):
            return []
        if not self.structures.compression(*best.plan.stored).needs:
            return []
        missed = self.unreached.get(best.plan.stored, [])
        listed = ", ".join(missed[:LISTED]) + (" and others" if len(missed) > LISTED else "")
        said = f"{len(missed)} of {count}, rounded to nearest ({listed})" if missed else f"none of {count}"
        return [("experts without calibration tokens", said)]


def pack_language(job: Job, source: Any, gguf: GgufJob | None, tell: Callable[[str], None]) -> Outcome:
    """`pack_model` for a decoder, or an encoder with one, from a checkpoint folder or (`gguf`) a GGUF
    file."""
    from haversack.plan._text_to_text import TextToTextBench, refuse_methods

    begun = time.monotonic()
    walk = walk_of(read_architecture(source.config, reader=True))
    reads = walk.architecture.reader is not None
    if reads:
        refuse_methods(job)
    if gguf is None:
        source = checkpoint(source, walk.architecture)
        check_tensors(source, walk.architecture)
        refuse_second_head(source, walk.architecture)
    family = None if gguf is not None or reads else family_of_job(job, source)
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
        expert_store=job.key is None,
        structures=(structures.choice(job.structure),),
        compression=structures.compression,
        attention=job.attention,
    )
    what = f"{job.model} on {job.device.name}"
    kept = gguf if gguf is not None and gguf.kept else None
    candidates, noises = kept.predicted(space) if kept else predicted(space)
    try:
        fitting = screened(candidates, budget, what)
    except BudgetError:
        if gguf is not None or job.structure is not None or reads:
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
    memory = max(plans, key=lambda plan: plan.total_bytes) + teaching_memory(job)
    with progress(f"packing {job.model}") as bar, scratch_folder(job.output) as scratch:
        bench = (TextToTextBench if reads else Bench)(job, source, scratch, bar, gguf)
        bench.family = family
        clock = Clock(job.effort_s)
        tell("quality of the f32 model")
        reference = bench.reference()
        free = job.precision is None and job.structure is None and gguf is None and job.objective == "quality"
        free = free and not reads
        by_layer = free and promising(candidates, budget)
        first = Clock(SEARCHED * job.effort_s) if by_layer else clock
        found, chosen = search(candidates, noises, budget, job.objective, reference, bench, first, what, tell)
        result = Refined(found, chosen)
        if by_layer:
            result = refined(found, chosen, bench, space, budget, reference, clock, tell)
        found, chosen = result.found, result.chosen
        bench.write_best(found, chosen, reference, result)
        layers = bench.layers.get(chosen.plan.stored, ())
    seconds = time.monotonic() - begun
    advice = None if kept else advised(space, chosen)
    return Outcome(
        *(job.output, chosen, tuple(found), budget, job.objective, seconds, memory, layers),
        sensitivity=result.layers,
        advice=advice,
    )
