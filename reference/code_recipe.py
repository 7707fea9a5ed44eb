"""What the runs of the `code` models share: the recipe, intermediates by content, the order of reading."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from tokenizers import Tokenizer

from code_tokenizer import train_tokenizer
from haversack.models._train_loop_torch import Schedule
from haversack.models.language.llama_torch import Llama, LlamaShape
from haversack.models.language.smallthinker_torch import SmallThinker, SmallThinkerShape


@dataclass(frozen=True)
class Stage:
    """From step ``first_step`` on, a step reads ``rows`` windows of ``length`` tokens."""

    first_step: int
    rows: int
    length: int


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on besides the text and the machine type."""

    shape: LlamaShape | SmallThinkerShape
    schedule: Schedule
    stages: tuple[Stage, ...]
    seed: int = 7
    average_half_life_steps: float = 30.0


def model_of(shape: LlamaShape | SmallThinkerShape) -> Llama | SmallThinker:
    """The module of a shape, its weights not yet drawn."""
    return Llama(shape) if isinstance(shape, LlamaShape) else SmallThinker(shape)


def fingerprint(*parts: object) -> str:
    """Sixteen hexadecimal digits that name what was made from ``parts``."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def make_tokenizer(texts: list[tuple[str, str]], vocabulary: int, work: Path) -> Tokenizer:
    """The tokenizer for this text, from the cache when it was trained before."""
    path = work / f"tokenizer-{fingerprint(texts, vocabulary)}.json"
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        train_tokenizer((text for _, text in texts), vocabulary).save(str(path))
    return Tokenizer.from_file(str(path))


class Windows:
    """Rows of consecutive tokens; every epoch cuts the stream at another offset and visits the rows in
    another order.
    """

    def __init__(self, stream: numpy.ndarray, stages: tuple[Stage, ...], seed: int) -> None:
        self.stream, self.stages, self.seed = stream, stages, seed
        self.orders: dict[tuple[int, int], numpy.ndarray] = {}

    def starts(self, stage: int, epoch: int) -> numpy.ndarray:
        """Where the rows of one epoch of one stage begin, in the order of reading."""
        if (stage, epoch) not in self.orders:
            length = self.stages[stage].length
            generator = numpy.random.default_rng([self.seed, stage, epoch])
            offset = int(generator.integers(length))
            starts = numpy.arange(offset, len(self.stream) - length - 1, length)
            self.orders = {(stage, epoch): generator.permutation(starts)}
        return self.orders[stage, epoch]

    def rows(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and the tokens that follow them, int64 [rows, length] each."""
        index = max(i for i, stage in enumerate(self.stages) if stage.first_step <= step)
        stage = self.stages[index]
        per_epoch = (len(self.stream) - 2 * stage.length) // stage.length // stage.rows
        epoch, place = divmod(step - stage.first_step, per_epoch)
        starts = self.starts(index, epoch)[place * stage.rows : (place + 1) * stage.rows]
        block = numpy.stack([self.stream[start : start + stage.length + 1] for start in starts])
        return torch.from_numpy(block[:, :-1].copy()), torch.from_numpy(block[:, 1:].copy())
