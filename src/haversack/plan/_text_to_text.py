"""Packing an encoder with a decoder: judged by what it takes to write the spans left out of a text.

Evaluation and calibration texts lose spans as in the models' own training (models/_spans.py); where a
vocabulary has no sentinels the first half of a text is read and the second written. Quality is the bits that
a byte of what is written costs; sentinels and ends cost bits and count no bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from haversack.core import index
from haversack.core.errors import UserError
from haversack.models._calibration import segments
from haversack.models._spans import read_and_written
from haversack.plan._candidates import Plan
from haversack.plan._enumerate import takes_text_to_text
from haversack.plan._job import Job
from haversack.plan._language_job import PROMPT_CHARACTERS, SPEED_TOKENS, Bench
from haversack.plan._measure import RunFigures, open_engine, run_figures
from haversack.plan._structure import NONE
from haversack.run._sweep import F32, I32, read_blocks, target_bits, write_blocks
from haversack.shrink._activations import Activations

LENGTH = 512
"""Tokens of a text, of which spans are left out, at most."""
SEED = 0
"""Which spans the evaluation leaves out."""


def refuse_methods(job: Job) -> None:
    """Raises UserError for what packs decoders alone."""
    if job.precision is not None and not takes_text_to_text(job.precision):
        raise UserError(
            f"precision {job.precision} looks at whole blocks of a decoder; {job.model} has an encoder "
            "beside it: use round-to-nearest, gptq or edgemoe.",
            field="precision",
            given=job.precision,
            nearest="gptq",
        )
    if job.residency is not None:
        name = index.create("run", "residency", job.residency).name
        if "encoder-decoder" in index.find("run", "residency", name).excludes:
            raise UserError(
                f"--residency {name} is for decoders; {job.model} has an encoder beside it.",
                field="residency",
                given=job.residency,
                nearest="streamed:edgemoe",
            )
    if job.structure not in (None, NONE):
        raise UserError(
            f"structure {job.structure} is for decoders; {job.model} has an encoder beside it.",
            field="structure",
            given=job.structure,
            nearest=NONE,
        )


class TextToTextBench(Bench):
    """See Bench; of a model with an encoder."""

    @property
    def length(self) -> int:
        """Tokens of a text before spans are left out, so that what is read fits the context."""
        return min(LENGTH, int(self.architecture.context))

    def pieces(self, texts: I32, seed: int) -> list[tuple[I32, I32]]:
        """(what is read, what is written) of `texts` i32 [pieces, length]."""
        numbered = [self.tokenizer.token(f"<extra_id_{number}>") for number in range(100)]
        sentinels = [token for token in numbered if token is not None]
        ends = self.architecture.end_of_text
        reader = self.architecture.reader
        assert reader is not None
        end = ends[0] if ends else reader.start
        rng = np.random.default_rng(seed)
        return [read_and_written(text, sentinels, end, rng) for text in texts]

    def texts(self) -> Any:
        """See Shelf: what is read and what is written, one behind the other."""
        count = -(-self.job.calibration_tokens // self.length)
        drawn = segments(self.calibration.tokens, self.length, count, self.job.seed)
        made = self.pieces(drawn, self.job.seed)
        self.walk.reads = len(made[0][0])
        return np.stack([np.concatenate(one) for one in made])

    def reference(self) -> float:
        """See Bench."""
        return self._bits(self.path, None)

    def quality(self, plan: Plan) -> float:
        """Bits per byte of the plan's pack."""
        key = (*plan.stored, plan.activations, plan.cache_type)
        if key not in self._qualities:
            self._qualities[key] = self._bits(self.pack(plan), plan)
        return self._qualities[key]

    def figures(self, plan: Plan) -> RunFigures:
        """See Bench."""
        tokens = self.evaluation.tokens[:PROMPT_CHARACTERS].tolist()
        prompt = self.tokenizer.decode(tokens)[:PROMPT_CHARACTERS]
        return run_figures(self.pack(plan), plan, prompt, SPEED_TOKENS, "whole")

    def _bits(self, source: Path, plan: Plan | None) -> float:
        tokens = self.evaluation.tokens
        length = min(self.length, len(tokens))
        texts = tokens[: len(tokens) // length * length].reshape(-1, length)
        made = self.pieces(texts, SEED)
        counted = sum(
            len(self.tokenizer.bytes_of(token) or b"") for _, text in made for token in text.tolist()
        )
        return written_bits(source, plan, made, self.scratch) / max(counted, 1)


def written_bits(source: Path, plan: Plan | None, pieces: Sequence[tuple[I32, I32]], folder: Path) -> float:
    """Bits that it takes the pack or checkpoint at `source`, run as `plan` says (None: f32 throughout), to
    write the second text of every pair of `pieces` when it has read the first.

    All pass one block before the next is read from storage; their states are in memory, or in `folder`.
    """
    read, written = [one for one, _ in pieces], [one for _, one in pieces]
    with open_engine(source, plan, "streamed:keep=0", "whole") as engine:
        width, reader = engine.architecture.width, engine.architecture.reader
        assert reader is not None
        shifted = [np.concatenate([[reader.start], text[:-1]]).astype(np.int32) for text in written]
        longest = max(map(len, read)), max(map(len, written))
        with (
            Activations(len(read), longest[0], width, folder, exact=True) as states,
            Activations(len(read), longest[1], width, folder, exact=True) as after,
        ):
            read_blocks(engine, read, states)
            write_blocks(engine, [len(text) for text in read], states, shifted, after)

            def before_targets(index: int) -> F32:
                return after.read(index)[: len(written[index])]

            costs = target_bits(engine, before_targets, written)
    return sum(float(each.sum()) for each in costs)
