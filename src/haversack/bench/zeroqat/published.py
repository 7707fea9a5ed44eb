"""Figures of large models, which need a GPU, 7B weights and a phone: rows without a measurement here."""

from __future__ import annotations

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcomes, Row, Unavailable
from haversack.bench.zeroqat._bench import bench

ABSENT = "Llama2-7B, OPT-1.3B to 13B and a GPU are not at hand; train fit runs on them by their hub names"
FIGURES = (
    (
        "7b-w2a16",
        "Llama2-7B, W2A16: perplexity on WikiText-2",
        "perplexity",
        "quality",
        0.95,
        "29.61 to 37.37",
    ),
    ("7b-w4a4", "Llama2-7B, W4A4: perplexity on WikiText-2", "perplexity", "quality", 0.95, "12.95 to 14.26"),
    ("7b-w6a6", "Llama2-7B, W6A6: perplexity on WikiText-2", "perplexity", "quality", 1.0, "5.76 to 5.87"),
    ("13b-memory", "OPT-13B fine-tuned, W2A16g128, batch 16", "GB", "memory", 0.5, "6.8 to 17.2"),
    (
        "phone-memory",
        "OPT-6.7B fine-tuned on a phone, W4A4",
        "GB",
        "memory",
        1.0,
        "6.4, where f16 does not fit",
    ),
)


@bench.measure(
    *[
        Row(name, claim, unit, kind, Bar("<=", bar), published=published)
        for name, claim, unit, kind, bar, published in FIGURES
    ],
    seconds=1,
)
def large_models(run: Run) -> Outcomes:
    return {name: Unavailable(ABSENT) for name, *_ in FIGURES}
