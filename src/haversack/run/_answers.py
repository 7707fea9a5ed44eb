"""What an encoder's head says of a text, in words: masked words filled, classes, a label for every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.kernels import softmax
from haversack.run._encoder import Encoder, Text

F32 = npt.NDArray[np.float32]
TASKS = {"masked-language": "fill", "sequence": "classify", "token": "label"}
MASKS = ("[MASK]", "<mask>")


@dataclass(frozen=True)
class Choice:
    """A class, a label or a token, and its score: a probability, or the number itself of a regression."""

    name: str
    score: float
    token: int | None = None


@dataclass(frozen=True)
class Labelled:
    """A token of the text, as the tokenizer writes it, and its likeliest label."""

    token: str
    label: str
    score: float


def task_of(encoder: Encoder) -> str:
    """What follows from an encoder's head: fill, classify or label, and embed without one."""
    head = encoder.architecture.head
    return "embed" if head is None else TASKS[head.kind]


def mask_token(encoder: Encoder) -> tuple[str, int]:
    """The text and number of the token that stands for a masked word. Raises UserError without one."""
    for text in MASKS:
        token = encoder.tokenizer.token(text)
        if token is not None:
            return text, token
    raise UserError(
        f"{encoder.model.path}: its tokenizer has no mask token ({' or '.join(MASKS)}).", field="tokenizer"
    )


def fill(encoder: Encoder, texts: Sequence[str], *, top: int = 5, truncate: bool = False) -> Any:
    """For every text, for every mask in it, the `top` likeliest tokens: list of list of list of Choice.

    Raises UserError for a text without a mask.
    """
    if not 1 <= top <= encoder.architecture.vocabulary:
        raise UserError(f"top={top} is outside 1 to the vocabulary.", field="top_k", given=top, nearest=5)
    written, mask = mask_token(encoder)
    batch = encoder.tokens(texts, truncate=truncate)
    for index, text in enumerate(batch):
        if not (text.ids == mask).any():
            raise UserError(
                f"text {index} has no mask; write {written} where a word is to be filled in.",
                field="texts",
                nearest=written,
            )
    said = encoder.encode_tokens(batch)
    found = []
    for text, hidden in zip(said.texts, said.sequence, strict=True):
        rows = np.ascontiguousarray(hidden[text.ids == mask])
        logits = encoder.forward.head(rows, [len(rows)], encoder.weights)
        masks = []
        for probabilities in softmax(finite(encoder, logits)):
            order = np.argsort(-probabilities, kind="stable")[:top]
            masks.append([Choice(_word(encoder, int(t)), float(probabilities[t]), int(t)) for t in order])
        found.append(masks)
    return found


def classify(encoder: Encoder, texts: Sequence[Text], *, truncate: bool = False) -> list[list[Choice]]:
    """For every text (or pair) its classes, the best first.

    Scores are probabilities of one of the classes, or of each by itself, or a regression's numbers: what the
    config's `problem_type` says; one class alone counts by itself.
    """
    numbers = finite(encoder, encoder.encode(texts, want=("head",), truncate=truncate).head)
    head = encoder.architecture.head
    assert head is not None
    if head.problem == "one":
        numbers = softmax(numbers)
    elif head.problem == "many":
        numbers = np.float32(1) / (np.float32(1) + np.exp(-numbers))
    names = encoder.architecture.labels
    return [
        [Choice(names[index], float(row[index])) for index in np.argsort(-row, kind="stable")]
        for row in numbers
    ]


def label(encoder: Encoder, texts: Sequence[str], *, truncate: bool = False) -> list[list[Labelled]]:
    """For every text its tokens with their labels, the tokenizer's special ones left out."""
    said = encoder.encode(texts, want=("head",), truncate=truncate)
    names = encoder.architecture.labels
    found = []
    for text, logits in zip(said.texts, said.head, strict=True):
        probabilities = softmax(finite(encoder, np.ascontiguousarray(logits)))
        best = probabilities.argmax(axis=-1)
        found.append(
            [
                Labelled(encoder.tokenizer.written(int(token)), names[choice], float(row[choice]))
                for token, choice, row in zip(text.ids, best, probabilities, strict=True)
                if not encoder.tokenizer.is_special(int(token))
            ]
        )
    return found


def finite(encoder: Encoder, numbers: F32) -> F32:
    """`numbers` when they are finite, else UserError: the head's weights hold NaN or overflow."""
    if not np.isfinite(numbers).all():
        raise UserError(
            f"the head of {encoder.model.path} gives numbers that are not finite; the checkpoint is damaged.",
            field="model",
            given=str(encoder.model.path),
        )
    return numbers


def _word(encoder: Encoder, token: int) -> str:
    return encoder.tokenizer.decode([token]).strip() or encoder.tokenizer.written(token)
