"""What ZeroQAT learns from: plain text, token by token, or a table of texts whose labels are said in words.

Paper: ZeroQAT (arXiv 2509.00031, 2025), its two objectives; see zeroqat.py. Of a table each row is a prompt
in one fixed template, and each class an answer; the score of an answer is the mean log-likelihood of its
tokens, and the loss is the cross-entropy of the softmax of the scores. What step i reads follows from the
seed and i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.formats.tables import Table
from haversack.train._texts import Rows as TextRows
from haversack.train._texts import Texts, held_out_rows
from haversack.train.gradient._zeroqat_decoder import I32, RoundedDecoder, Rows

PROMPT, ANSWER = "{text}\nLabel:", " {label}"
HELD_OUT = 5
"""One row of so many is kept apart, of each class."""
JUDGED_TEXTS = 16


class Task(Protocol):
    """A task of one model."""

    kind: str

    def loss(self, decoder: RoundedDecoder, step: int) -> float:
        """Of what `step` reads, in nats."""

    def judged(self, decoder: RoundedDecoder) -> dict[str, float]:
        """On what was kept apart: `loss`, and `accuracy` of a table."""

    def calibration(self, count: int) -> npt.NDArray[np.int32]:
        """At most `count` texts to calibrate on, i32 [rows, n], of what is learned from."""


class PlainText:
    """`rows` texts of `length` tokens a step."""

    kind = "text"

    def __init__(self, texts: Texts, rows: int, length: int, seed: int) -> None:
        self.rows = TextRows(texts.learned, rows, length, seed)
        self.kept = held_out_rows(texts.held_out, JUDGED_TEXTS, length)
        self.length = length

    def loss(self, decoder: RoundedDecoder, step: int) -> float:
        """See Task."""
        return decoder.loss(Rows.of_texts(self.rows.at(step)))

    def judged(self, decoder: RoundedDecoder) -> dict[str, float]:
        """See Task."""
        return {"loss": decoder.loss(Rows.of_texts(self.kept))}

    def calibration(self, count: int) -> npt.NDArray[np.int32]:
        """See Task."""
        whole = len(self.rows.tokens) // self.length
        places = np.linspace(0, whole - 1, min(count, whole)).astype(int) * self.length
        return np.stack([self.rows.tokens[at : at + self.length] for at in places]).astype(np.int32)


@dataclass(frozen=True)
class Example:
    """A prompt, the answers there are, and the place of the right one."""

    prompt: I32
    answers: tuple[I32, ...]
    label: int


def examples_of(
    table: Table, classes: Sequence[str], encode: Callable[[str], list[int]], length: int
) -> list[Example]:
    """The rows of `table` in the template; a prompt longer than `length` tokens loses its beginning.

    Raises UserError for a class that the tokenizer makes nothing of, and for two that it makes the same of.
    """
    answers = tuple(np.asarray(encode(ANSWER.format(label=name)), np.int32) for name in classes)
    seen: dict[bytes, str] = {}
    for name, tokens in zip(classes, answers, strict=True):
        other = seen.setdefault(tokens.tobytes(), name)
        if not len(tokens) or other != name:
            said = "no token" if not len(tokens) else f"the same tokens as {other}"
            raise UserError(
                f"the class {name} is {said} to this model's tokenizer; name it otherwise.",
                field="data",
                given=name,
            )
    most = length - max(map(len, answers))
    if most < 1:
        raise UserError(
            f"length={length} leaves no room for a text beside the longest class.",
            field="length",
            given=length,
        )
    found = []
    for text, label in zip(table.texts, table.labels, strict=True):
        prompt = np.asarray(encode(PROMPT.format(text=text)), np.int32)[-most:]
        found.append(Example(prompt, answers, list(classes).index(label)))
    return found


def option_rows(examples: Sequence[Example]) -> Rows:
    """Every answer of every example as an entry; what two answers share before their last token is read
    once."""
    texts: dict[bytes, int] = {}
    tokens: list[I32] = []
    of, places, targets = [], [], []
    for example in examples:
        for answer in example.answers:
            whole = np.concatenate([example.prompt, answer[:-1]])
            key = whole.tobytes()
            if key not in texts:
                texts[key] = len(tokens)
                tokens.append(whole)
            of.append(texts[key])
            places.append(np.arange(len(example.prompt) - 1, len(whole), dtype=np.int32))
            targets.append(answer)
    return Rows(tokens, places, targets, of)


def option_scores(decoder: RoundedDecoder, examples: Sequence[Example]) -> npt.NDArray[np.float64]:
    """Mean log-likelihood [examples, classes] of each answer."""
    losses = decoder.token_losses(option_rows(examples))
    count = len(examples[0].answers)
    return -np.array([each.mean() for each in losses]).reshape(len(examples), count)


def option_loss(scores: npt.NDArray[np.float64], labels: Sequence[int]) -> npt.NDArray[np.float64]:
    """Cross-entropy of each example in nats: of the softmax of its scores [examples, classes]."""
    top = scores.max(axis=1, keepdims=True)
    normal = np.log(np.exp(scores - top).sum(axis=1)) + top[:, 0]
    found: npt.NDArray[np.float64] = normal - scores[np.arange(len(scores)), list(labels)]
    return found


class Answers:
    """`rows` examples of `learned` a step; `kept` are judged on."""

    kind = "table"

    def __init__(
        self, learned: Sequence[Example], kept: Sequence[Example], rows: int, length: int, seed: int
    ) -> None:
        self.learned, self.kept, self.rows, self.length, self.seed = learned, kept, rows, length, seed

    def loss(self, decoder: RoundedDecoder, step: int) -> float:
        """See Task."""
        chosen = self._at(step)
        scores = option_scores(decoder, chosen)
        return float(option_loss(scores, [one.label for one in chosen]).mean())

    def judged(self, decoder: RoundedDecoder) -> dict[str, float]:
        """See Task."""
        scores = np.concatenate(
            [option_scores(decoder, self.kept[at : at + 16]) for at in range(0, len(self.kept), 16)]
        )
        labels = [one.label for one in self.kept]
        right = scores.argmax(axis=1) == np.array(labels)
        return {"loss": float(option_loss(scores, labels).mean()), "accuracy": float(right.mean())}

    def calibration(self, count: int) -> npt.NDArray[np.int32]:
        """See Task: prompts one behind the other, cut into pieces."""
        flat = np.concatenate([np.append(one.prompt, one.answers[one.label]) for one in self.learned])
        length = min(self.length, len(flat))
        whole = len(flat) // length
        return flat[: whole * length].reshape(whole, length)[:count].astype(np.int32)

    def _at(self, step: int) -> list[Example]:
        count = len(self.learned)
        found = []
        for place in range(step * self.rows, (step + 1) * self.rows):
            order = np.random.default_rng([self.seed, place // count]).permutation(count)
            found.append(self.learned[order[place % count]])
        return found


def split_examples(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """(to learn from, kept apart): of each class one of HELD_OUT, at least one where it has two."""
    learned: list[Example] = []
    kept: list[Example] = []
    by_class: dict[int, list[Example]] = {}
    for example in examples:
        by_class.setdefault(example.label, []).append(example)
    for label, own in sorted(by_class.items()):
        order = np.random.default_rng([seed, label]).permutation(len(own))
        count = max(1, len(own) // HELD_OUT) if len(own) > 1 else 0
        kept += [own[i] for i in order[:count]]
        learned += [own[i] for i in order[count:]]
    return learned, kept


def mark_of(task: Any) -> str:
    """Tells whether a task is that of an earlier run."""
    import zlib

    if isinstance(task, PlainText):
        return f"{zlib.crc32(task.rows.tokens.tobytes()):08x}"
    found = 0
    for example in [*task.learned, *task.kept]:
        found = zlib.crc32(example.prompt.tobytes(), zlib.crc32(bytes([example.label % 256]), found))
    return f"{found:08x}"
