"""The published comparison on a checkpoint of the user's: needles and LongBench, dense and sparse in one run.

`HAVERSACK_BENCH_MODEL` names the model, and LongBench's files lie in the folder `longbench` of the one that
HAVERSACK_DATA names (docs/data.md); where one is absent, its rows say so. Every side reads the same prompts,
at a quarter of their keys. The boundary predictor in the model's folder is used (`haversack pack MODEL
--attention dhsa` puts one there); else one is taught on a few documents, far fewer than the paper's. Rows
take what time a run has left and say how many questions that was for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path

from haversack.bench import _longbench, _needles
from haversack.bench._cache import cached
from haversack.bench._harness import Run
from haversack.bench._own_model import Answered, OwnModel, Question, answered, own_model
from haversack.bench._rows import Outcome, Outcomes, Row, Unavailable
from haversack.bench._store import content_hash
from haversack.bench.dhsa._bench import FILES, bench
from haversack.bench.dhsa._models import PREDICTOR_FILES

WATCHED = (*FILES, "bench/_longbench*.py", "bench/_needles.py", "bench/_own_model.py")
KEYS = "density=0.25"
WIDE = 64
"""Keys of the blocks that DHSA is set beside, as wide as such blocks mostly are."""
DOCUMENTS, DOCUMENT_TOKENS, PASSES = 6, 1024, 4
"""That a predictor is taught on, and how often: what a model of billions allows in minutes."""
TAUGHT_SHARE = 0.9
"""Of the text; needles lie in the rest."""
REPLY_TOKENS = 48
NEEDLE_SHARE = 0.4
"""Of the time that is left when both kinds of questions can be put."""
LONGEST_PROMPT = 8192
FOLDER = "longbench"
NEEDLE_ROWS = (
    Row(
        "needle",
        "needle in a haystack, 1k to 8k tokens at 10 depths: DHSA at a quarter of the keys, beside dense",
        "share of words",
        "quality",
        published="equal to dense (Gemma-2-2B)",
    ),
    Row(
        "needle-blocks",
        f"the same beside blocks of {WIDE} keys",
        "share of words",
        "quality",
        published="6 to 18 % better than block-sparse attention",
    ),
)
LONGBENCH_ROWS = (
    Row(
        "longbench",
        "LongBench, English tasks: DHSA at a quarter of the keys, beside dense",
        "score of 100",
        "quality",
        published="equal to dense (Gemma-2-2B, 11 English tasks)",
    ),
    Row(
        "longbench-blocks",
        f"the same beside blocks of {WIDE} keys",
        "score of 100",
        "quality",
        published="6 to 18 %, in the later version 12 to 20 %, better than block-sparse attention",
    ),
)


def prose() -> tuple[str, str, str]:
    """A text to teach on, one to hide needles in, and what it is: plays in the public domain where they are
    at hand, else source code."""
    from haversack.core._datasets import local_path
    from haversack.models._calibration import default_text

    path = local_path("tiny-shakespeare")
    if path is None:
        return default_text("calibration"), default_text("evaluation"), "Python source"
    text = path.read_text(encoding="utf-8")
    cut = int(TAUGHT_SHARE * len(text))
    return text[:cut], text[cut:], "Tiny Shakespeare"


def taught_predictor(own: OwnModel, text: str, run: Run) -> Path | None:
    """The file of a predictor taught on `text`; None for a model that has one. Raises UserError where it
    cannot be taught."""
    import numpy as np

    from haversack.core.pack import Pack
    from haversack.models._calibration import segments
    from haversack.run.attention._predictor import FILE, fingerprint
    from haversack.train.boundaries import train_boundary_predictor

    source = own.model.source
    if FILE in source.record.files if isinstance(source, Pack) else (own.model.path / FILE).is_file():
        return None
    tokens = np.asarray(own.tokenizer.encode(text, special=False), np.int32)
    length = min(DOCUMENT_TOKENS, own.context, len(tokens) // 2)
    pieces = segments(tokens, length, DOCUMENTS, 0)

    def make(goal: Path) -> None:
        run.say(f"teaching the boundary predictor of {own.name}")
        taught = train_boundary_predictor(own.model, list(pieces), passes=PASSES)
        taught.predictor.write(goal / FILE)

    inputs = {
        "model": fingerprint(source, own.model.architecture),
        "taught": [pieces.shape, int(pieces.sum()), PASSES],
        "program": content_hash(PREDICTOR_FILES),
    }
    return cached("dhsa-own", inputs, make) / FILE


def ways(own: OwnModel, text: str, run: Run) -> dict[str, str]:
    """The sides by name: attention as `Engine.open` takes it."""
    predictor = taught_predictor(own, text, run)
    ours = f"dhsa:{KEYS}" + (f",predictor={predictor}" if predictor else "")
    return {"dense": "dense", "DHSA": ours, "blocks": f"dhsa:mode=block,{KEYS},key_block={WIDE}"}


def outcomes(rows: Sequence[Row], told: Answered, scale: float, note: str) -> dict[str, Outcome]:
    """DHSA beside dense, and beside blocks."""
    means = {way: scale * told.mean(way) for way in told.scores}
    parts = "; ".join(
        f"{way} " + ", ".join(f"{group}: {scale * mean:.3g}" for group, mean in told.means(way).items())
        for way in told.scores
    )
    return {
        row.id: Outcome.single(
            means["DHSA"], means[other], name="DHSA", against=other, note=f"{note}; {parts}"
        )
        for row, other in zip(rows, ("dense", "blocks"), strict=True)
    }


def needle_rounds(own: OwnModel, text: str, lengths: Sequence[int], seed: int) -> Iterator[list[Question]]:
    """The test's prompts as the model is asked them, in rounds of all `lengths`."""
    lines = _needles.lines_of(text)
    for cells in _needles.rounds(lengths):
        questions = []
        for cell in cells:
            prompt = _needles.needle_prompt(lambda text: len(own.tokens(text)), lines, cell, seed=seed)

            def score(reply: str, needle: _needles.Needle = cell.needle) -> float:
                return _needles.share_of_words(needle.expected, reply)

            questions.append(Question(own.tokens(prompt), REPLY_TOKENS, score, str(cell.length)))
        yield questions


@bench.measure(*NEEDLE_ROWS, seconds=1, watches=WATCHED)
def needles(run: Run) -> Outcomes:
    own = own_model()
    lengths = [length for length in _needles.LENGTHS if length + REPLY_TOKENS <= own.context]
    if not lengths:
        raise Unavailable(
            f"the context of {own.name} is {own.context} tokens and needles lie in {_needles.LENGTHS[0]} and "
            "more"
        )
    taught, text, said = prose()
    seconds = run.seconds_left * (NEEDLE_SHARE if longbench_files() else 1.0)
    told = answered(own, ways(own, taught, run), needle_rounds(own, text, lengths, run.seed), run, seconds)
    whole = len(lengths) * len(_needles.DEPTHS)
    note = f"{own.name}; {told.count} of {whole} needles in {said}, to {lengths[-1]:,} tokens"
    return outcomes(NEEDLE_ROWS, told, 1.0, note)


def longbench_files() -> list[Path]:
    """The tasks' files that are at hand and can be scored."""
    folder = os.environ.get("HAVERSACK_DATA")
    found = sorted((Path(folder) / FOLDER).glob("*.jsonl")) if folder else []
    return [path for path in found if path.stem.removesuffix("_e") not in _longbench.CHINESE]


def longbench_rounds(
    own: OwnModel, files: Sequence[Path], prompts: Mapping[str, str]
) -> Iterator[list[Question]]:
    """An example of every task a round; a file that ends earlier has none in the last ones."""
    room = min(own.context, LONGEST_PROMPT)
    streams = [_longbench.read_examples(path) for path in files]
    for examples in zip_longest(*streams):
        questions = []
        for path, example in zip(files, examples, strict=True):
            if example is None:
                continue
            task = _longbench.task_of(example.dataset)
            tokens = _longbench.fitted(
                _longbench.prompt_of(example, prompts),
                room - task.tokens,
                partial(own.tokenizer.encode, special=False),
                own.tokenizer.decode,
                partial(own.tokens, chat=task.chat),
            )

            def score(reply: str, example: _longbench.Example = example) -> float:
                return _longbench.score_of(example, reply)

            questions.append(Question(tokens, task.tokens, score, path.stem))
        yield questions


@bench.measure(*LONGBENCH_ROWS, seconds=1, watches=WATCHED)
def longbench(run: Run) -> Outcomes:
    own, files = own_model(), longbench_files()
    if not files:
        raise Unavailable(
            f"no LongBench files are at hand: put its tasks' .jsonl files into {FOLDER}/ of the folder that "
            "HAVERSACK_DATA names"
        )
    prompts = _longbench.read_prompts(files[0].parent)
    sides = ways(own, prose()[0], run)
    told = answered(own, sides, longbench_rounds(own, files, prompts), run)
    asked = "the benchmark's prompts" if prompts else "prompts of our own wording"
    note = f"{own.name}; {told.count} examples of {len(files)} tasks, {asked}"
    return outcomes(LONGBENCH_ROWS, told, 100.0, note)
