"""Parameters of well-known models after factoring, to the unit, from the shapes of their layers alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.greenformers._bench import bench
from haversack.shrink.structure.low_rank import Shape


@dataclass(frozen=True)
class Known:
    """A model: its published parameters before and after, the layers that are factored, the rank."""

    id: str
    words: str
    before: int
    after: int
    layers: Sequence[Shape]
    rank: float

    def counted(self) -> int:
        """Parameters after, by the rule of ranks."""
        saved = 0
        for layer in self.layers:
            rank = layer.rank(self.rank)
            saved += layer.dense - (layer.dense if rank is None else layer.factored(rank))
        return self.before - saved


def encoder(width: int, blocks: int) -> list[Shape]:
    """Query, key, value, output and both feed-forward layers of each block."""
    square, wide, back = Shape(width, width), Shape(width, 4 * width), Shape(4 * width, width)
    return [square] * 4 * blocks + [wide, back] * blocks


def gpt_2(width: int, blocks: int) -> list[Shape]:
    """One layer for query, key and value together; the tied head is not among them."""
    joint = Shape(width, 3 * width)
    return [joint, Shape(width, width), Shape(width, 4 * width), Shape(4 * width, width)] * blocks


def vgg_16() -> list[Shape]:
    """Thirteen convolutions and three linear layers."""
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convolutions = [Shape(a, b, 9) for a, b in itertools.pairwise(channels)]
    return [*convolutions, Shape(25088, 4096), Shape(4096, 4096), Shape(4096, 1000)]


def resnext_50_stages() -> list[Shape]:
    """The last two stages of ResNeXt-50 32x4d."""
    found, inputs = [], 512
    for blocks, width, outputs in ((6, 512, 1024), (3, 1024, 2048)):
        for block in range(blocks):
            found += [Shape(inputs, width), Shape(width, width, 9, 32), Shape(width, outputs)]
            if block == 0:
                found.append(Shape(inputs, outputs))
            inputs = outputs
    return found


POOLER = [Shape(768, 768)]
BERT, GPT = encoder(768, 12) + POOLER, gpt_2(768, 12)
KNOWN = (
    Known("bert-256", "BERT-base, rank 256", 109_482_240, 66_818_304, BERT, 256),
    Known("bert-04", "BERT-base, rank 0.4", 109_482_240, 58_052_352, BERT, 0.4),
    Known(
        "bert-half", "BERT-base, last 6 layers and pooler, rank 0.2", 109_482_240, 74_965_248,
        encoder(768, 6) + POOLER, 0.2,
    ),
    Known(
        "bert-classifier", "BERT classifier, last 4 layers and pooler, rank 192", 108_311_810, 90_322_178,
        encoder(768, 4) + POOLER, 192,
    ),
    Known("gpt2-256", "GPT-2, rank 256", 124_439_808, 77_253_888, GPT, 256),
    Known("gpt2-04", "GPT-2, rank 0.4", 124_439_808, 73_383_168, GPT, 0.4),
    Known(
        "gpt2-large", "GPT-2 large, last 12 of 36 blocks, rank 384", 774_030_080, 632_472_320,
        gpt_2(1280, 12), 384,
    ),
    Known("vgg-256", "VGG-16, rank 256", 138_357_544, 25_596_712, vgg_16(), 256),
    Known("vgg-04", "VGG-16, rank 0.4", 138_357_544, 52_613_904, vgg_16(), 0.4),
    Known(
        "resnext", "ResNeXt-50 on ten classes, last two stages, rank 0.5", 23_000_394, 12_889_418,
        resnext_50_stages(), 0.5,
    ),
)  # fmt: skip


@bench.measure(
    *[
        Row(
            f"count-{known.id}",
            f"parameters of {known.words}, from shapes alone, equal the published number",
            "parameters",
            "bytes",
            Bar("==", known.after),
            judged="ours",
            published=known.after,
            quick=True,
        )
        for known in KNOWN
    ],
    seconds=1,
    quick_seconds=1,
)
def counts(run: Run) -> Outcomes:
    return {
        f"count-{known.id}": Outcome.single(known.counted(), known.before, against="dense") for known in KNOWN
    }
