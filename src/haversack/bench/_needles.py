"""Needles: facts hidden in long texts, a question about each, and how much of the answer a reply holds.

The test is the usual one (a fact of a sentence at ten depths of texts of 1,024 to 8,192 tokens, the question
at the end); its facts are of our own wording, about people and places that no text tells of. Prompts are made
of whole lines of any text for any tokenizer, and are the same in every run. What a reply scores is the share
of the expected words that it holds, upper and lower case and punctuation aside; a number in digits is another
word than the same in letters, so no fact asks for one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from haversack.core.errors import UserError

LENGTHS = tuple(1024 * count for count in range(1, 9))
DEPTHS = tuple(step / 9 for step in range(10))
STRIDE = 3
"""How far apart, in depths, neighbouring lengths are within a round."""
LONG_LINE = 400
"""Characters from which a line is cut at the ends of its sentences."""


@dataclass(frozen=True)
class Needle:
    """A `fact`, the `question` about it, and the words that an answer holds."""

    fact: str
    question: str
    expected: tuple[str, ...]


NEEDLES = (
    Needle(
        "The ferry to Holm Island leaves from the jetty behind the cannery, an hour before sunrise.",
        "From where does the ferry to Holm Island leave, and when?",
        ("jetty", "cannery", "hour", "sunrise"),
    ),
    Needle(
        "Marta Lindqvist keeps the spare key of the lighthouse under a blue flowerpot.",
        "Where does Marta Lindqvist keep the spare key of the lighthouse?",
        ("under", "blue", "flowerpot"),
    ),
    Needle(
        "The soup that Porto Varela is known for is made of leeks, smoked trout and saffron.",
        "What is the soup made of that Porto Varela is known for?",
        ("leeks", "smoked", "trout", "saffron"),
    ),
    Needle(
        "The observatory on Mount Keld was traded for a brass telescope.",
        "For what was the observatory on Mount Keld traded?",
        ("brass", "telescope"),
    ),
    Needle(
        "Captain Oduya calls her two dogs Pepper and Compass.",
        "What does Captain Oduya call her two dogs?",
        ("pepper", "compass"),
    ),
)


@dataclass(frozen=True)
class Frame:
    """What stands before and after the text; `{question}` of `after` is the needle's."""

    before: str
    after: str


ASKED = Frame(
    "Below is a long text. A question about it stands at its end.\n\n",
    "\n\nQuestion: {question} Answer in one sentence, in the words of the text.\nAnswer:",
)
BARE = Frame("", "{question}")
"""For models that complete: the question is the beginning of what they go on with."""


@dataclass(frozen=True)
class Cell:
    """One prompt of the test: its tokens at most, how deep its needle lies (0: at the beginning, 1: at the
    end)."""

    length: int
    depth: float
    needle: Needle


def rounds(
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    needles: Sequence[Needle] = NEEDLES,
) -> list[list[Cell]]:
    """All lengths at all depths, in as many rounds as there are depths: each has every length once, at depths
    that differ, so that a test that is cut short has seen both."""
    found = []
    for turn in range(len(depths)):
        places = [(turn + STRIDE * at) % len(depths) for at in range(len(lengths))]
        found.append(
            [
                Cell(length, depths[place], needles[(at + place) % len(needles)])
                for at, (length, place) in enumerate(zip(lengths, places, strict=True))
            ]
        )
    return found


def lines_of(text: str) -> list[str]:
    """The text in pieces that a needle may stand between: its lines, and the sentences of long ones.

    Raises UserError for a text of nothing but spaces.
    """
    if not text.strip():
        raise UserError("a text without words hides no needle; give another text.", field="text", given=text)
    found: list[str] = []
    for line in text.splitlines(keepends=True):
        cuts = [match.end() for match in re.finditer(r"[.!?]\s+", line)] if len(line) > LONG_LINE else []
        ends = [*cuts, len(line)]
        found += [line[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start]
    return found


def needle_prompt(
    count: Callable[[str], int],
    lines: Sequence[str],
    cell: Cell,
    *,
    frame: Frame = ASKED,
    seed: int = 0,
) -> str:
    """The prompt of `cell`: as many of `lines` as keep it within its length, the fact at its depth between
    two of them.

    `count` says how many tokens a prompt has, a chat's marks included. The lines begin at a place drawn by
    `seed`, length and depth, and begin anew where they end. Raises UserError for a length that does not hold
    fact and question.
    """
    drawn = np.random.default_rng([seed, cell.length, round(1000 * cell.depth)])
    start = int(drawn.integers(len(lines)))

    def text(held: int) -> str:
        filler = [lines[(start + at) % len(lines)] for at in range(held)]
        at = _place(filler, cell.depth)
        before, after = "".join(filler[:at]), "".join(filler[at:])
        if before and not before[-1].isspace():
            before += "\n"
        fact = cell.needle.fact + (" " if before.endswith(" ") else "\n")
        asked = frame.after.replace("{question}", cell.needle.question)
        return frame.before + before + fact + after + asked

    least = count(text(0))
    if least > cell.length:
        raise UserError(
            f"a prompt of {cell.length} tokens does not hold a needle and its question ({least} tokens); give"
            f" {least} or more.",
            field="length",
            given=cell.length,
            nearest=least,
        )
    fits, over = 0, 1
    while count(text(over)) <= cell.length:
        fits, over = over, 2 * over
    while over - fits > 1:
        middle = (fits + over) // 2
        if count(text(middle)) <= cell.length:
            fits = middle
        else:
            over = middle
    return text(fits)


def _place(filler: Sequence[str], depth: float) -> int:
    """How many pieces of `filler` stand before a needle at `depth`: at the edge nearest to it."""
    edges = np.cumsum([0, *(len(line) for line in filler)])
    return int(np.abs(edges - depth * edges[-1]).argmin())


def words_of(text: str) -> list[str]:
    """The words of a text: runs of letters and digits, in lower case."""
    return re.findall(r"[^\W_]+", text.casefold())


def share_of_words(expected: Sequence[str], reply: str) -> float:
    """The share of the `expected` words that `reply` holds."""
    held = set(words_of(reply))
    wanted = {word for one in expected for word in words_of(one)}
    return len(wanted & held) / len(wanted)
