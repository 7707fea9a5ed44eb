"""One fact in a long text, asked for at the end: how much of it each way of choosing keys finds, at a quarter
and an eighth of the text's keys.

The protocol is the published one's, lengths of 1,024 to 8,192 tokens and ten depths, on the model here that
can do it: the recall model, a needle being one record among many. `code` reads real source with a tokenizer
of its own; its needle is a module's constant, named in full once, and the text ends where it is used. It is
eight million parameters large and finds little that is far away: its rows say how much, at any attention.
What a side may choose is chosen as in quality.py, on documents of another split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from haversack.bench import _needles
from haversack.bench._harness import Run
from haversack.bench._needles import DEPTHS, LENGTHS, Frame, Needle
from haversack.bench._own_model import OwnModel, Question, answered
from haversack.bench._rows import Outcome, Outcomes, Row
from haversack.bench.dhsa import _models, quality
from haversack.bench.dhsa._bench import FILES, bench
from haversack.bench.dhsa._models import TEST, TUNE, documents, sparse
from haversack.bench.dhsa._records import ASK, FIRST_WORD, STOP, WORDS, Document, document

TEXTS = 2
"""Documents of each length."""
ASKED_TOKENS, QUESTION_TOKENS = 150, 3
"""At the end of a document: all of its questions, and one of them with its answer."""
CODE_LENGTHS = (128, 256, 512, 1024, 2032)
"""Up to the context of `code`."""
CODE_KEYS = "density=0.25,query_block=16,local=16,sinks=16,tail=0"
NAMES = ("timeout", "table", "filter", "stream", "socket", "server", "thread", "signal", "buffer", "header")
"""Words that source code is made of, so that a tokenizer has few tokens for them."""
USE = "\n\n\ndef check(value):\n    return value < {question}"
REPLY_TOKENS = 8
UNIT = "share of words"
SIDES = {"": "DHSA", "-blocks": "blocks of keys by their means", "-sliding": "the last keys alone"}


def rows(name: str, what: str) -> list[Row]:
    """A side a row, each beside dense attention."""
    return [
        Row(f"{name}{side}", f"{what}: {said}, beside dense", UNIT, "quality") for side, said in SIDES.items()
    ]


BUDGETS = {"": 4, "-eighth": 8}
"""What a text's tokens are divided by."""
RECORD_ROWS = [
    row
    for size, part in BUDGETS.items()
    for row in rows(f"record-needle{size}", f"one record of up to 8,192 tokens, at 1/{part} of the keys")
]
CODE_ROWS = rows("code-needle", "a constant of source text, named by `code` far below, at 1/4 of the keys")


def asked_at_depths(rng: np.random.Generator, length: int) -> Document:
    """A document of `length` tokens whose questions, in drawn order, ask for the records nearest to the
    depths of DEPTHS."""
    made = document(rng, length - ASKED_TOKENS, share=0.0)
    end = int(np.flatnonzero(made.tokens == STOP)[-1]) + 1
    starts = np.flatnonzero(made.starts)
    tokens = (rng.integers(0, WORDS, length) + FIRST_WORD).astype(np.int32)
    tokens[:end] = made.tokens[:end]
    spare = length - end - QUESTION_TOKENS * len(DEPTHS)
    fills = rng.multinomial(spare, np.full(len(DEPTHS), 1 / len(DEPTHS)))
    first, at = np.zeros(length, bool), end
    for fill, depth in zip(fills.tolist(), rng.permutation(DEPTHS).tolist(), strict=True):
        record = int(starts[np.abs(starts - depth * end).argmin()])
        at += fill
        tokens[at : at + QUESTION_TOKENS] = [ASK, tokens[record], tokens[record + 1]]
        first[at + QUESTION_TOKENS - 1] = True
        at += QUESTION_TOKENS
    begins = np.zeros(length, bool)
    begins[starts] = True
    return Document(tokens, first.copy(), first, begins)


def chosen(run: Run) -> dict[str, Callable[[int], str]]:
    """Each side's attention by its budget, its own setting the best of four on the other split."""
    tune = documents(TUNE, quality.TUNED, quality.LENGTH)

    def best(mode: str, field: str, values: tuple[int, ...]) -> Callable[[int], str]:
        def attention(value: int, size: int) -> str:
            return sparse(mode, size, run.say, **{field: value})

        run.say(f"choosing {field} of {mode}")
        shares = [_models.answered(attention(one, quality.QUARTER), tune, run.say) for one in values]
        value = values[int(np.argmax(shares))]
        return lambda size: attention(value, size)

    return {
        "": best("dhsa", "apart", quality.APARTS),
        "-blocks": best("block", "key_block", quality.BLOCKS),
        "-sliding": lambda size: sparse("sliding", size, run.say),
    }


def _with_keys(attention: Callable[[int], str], part: int, length: int) -> str:
    return attention(length // part)


def by_length(shares: Mapping[int, float] | Mapping[str, float]) -> str:
    """What a note says of the lengths."""
    return ", ".join(f"{length}: {share:.2f}" for length, share in shares.items())


@bench.measure(*RECORD_ROWS, seconds=240)
def records(run: Run) -> Outcomes:
    texts = {
        length: [
            asked_at_depths(np.random.default_rng([TEST, run.seed, length, index]), length)
            for index in range(TEXTS)
        ]
        for length in LENGTHS
    }
    sides = chosen(run)

    def shares(attention: Callable[[int], str]) -> dict[int, float]:
        return {length: _models.answered(attention(length), each, run.say) for length, each in texts.items()}

    run.say("needles among records, densely")
    dense = shares(lambda length: "dense")
    found = {}
    for size, part in BUDGETS.items():
        for side, attention in sides.items():
            run.say(f"needles among records with 1/{part} of the keys: {SIDES[side]}")
            ours = shares(partial(_with_keys, attention, part))
            note = f"{TEXTS * len(DEPTHS)} needles a length; {by_length(ours)}; dense {by_length(dense)}"
            found[f"record-needle{size}{side}"] = Outcome.single(
                float(np.mean(list(ours.values()))),
                float(np.mean(list(dense.values()))),
                name=SIDES[side],
                against="dense",
                note=note,
            )
    return found


def constants() -> list[Needle]:
    """Constants of two words, of which the second is asked for."""
    pairs = [(name, NAMES[(at + 3) % len(NAMES)]) for at, name in enumerate(NAMES)]
    return [
        Needle(f"\n\n{first}_{second} = 47\n\n".upper(), f"{first}_".upper(), (second,))
        for first, second in pairs
    ]


def code_questions(own: OwnModel, text: str, seed: int) -> list[list[Question]]:
    """The prompts of `code`, in rounds."""
    lines = _needles.lines_of(text)
    found = []
    for cells in _needles.rounds(CODE_LENGTHS, needles=constants()):
        questions = []
        for cell in cells:
            prompt = _needles.needle_prompt(
                lambda text: len(own.tokens(text, chat=False)), lines, cell, frame=Frame("", USE), seed=seed
            )
            score = _scored(cell.needle)
            tokens = own.tokens(prompt, chat=False)
            questions.append(Question(tokens, REPLY_TOKENS, score, str(cell.length)))
        found.append(questions)
    return found


def _scored(needle: Needle) -> Callable[[str], float]:
    return lambda reply: _needles.share_of_words(needle.expected, reply)


@bench.measure(*CODE_ROWS, seconds=150, watches=(*FILES, "bench/_needles.py", "bench/_own_model.py"))
def code(run: Run) -> Outcomes:
    from haversack.bench.dhsa.text import code_predictor
    from haversack.bench.engine._models import code_folder
    from haversack.models._calibration import default_text

    folder = code_folder()
    own = OwnModel.open(folder)
    ways = {
        "dense": "dense",
        "": f"dhsa:{CODE_KEYS},predictor={code_predictor(folder, run)}",
        "-blocks": f"dhsa:mode=block,{CODE_KEYS}",
        "-sliding": f"dhsa:mode=sliding,{CODE_KEYS}",
    }
    told = answered(own, ways, code_questions(own, default_text("evaluation"), run.seed), run)
    counted = f"{told.count} needles; dense {by_length(told.means('dense'))}"
    return {
        f"code-needle{side}": Outcome.single(
            told.mean(side),
            told.mean("dense"),
            name=said,
            against="dense",
            note=f"{by_length(told.means(side))}; {counted}",
        )
        for side, said in SIDES.items()
    }
