"""BERT-base shapes with drawn weights: forward passes, training steps, attention, memory, and what it costs.

Dense and low-rank models take turns. Forward and training are of the whole model of twelve blocks with one
text; the crossing with Linformer is looked for in two of the blocks, whose shares of time are those of
twelve. PyTorch's fused attention is the baseline everywhere but in the rows that say otherwise.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Side
from haversack.bench.greenformers._bench import bench, workshop

LENGTHS = (32, 64, 128, 256, 512)
LONG = (128, 256, 512, 1024, 2048, 4096)
RANKS = {"256": 256, "04": 0.4}
MIXTURES, TEXTS, WITH_BAR = 128, 1, 256


def encoder(blocks: int = 12, attention: str = "sdpa", positions: int = 512) -> Any:
    """BERT-base with drawn weights, in training mode without dropout."""
    workshop()
    from transformers import BertConfig, BertModel

    config = BertConfig(  # type: ignore[call-arg]
        num_hidden_layers=blocks,
        attn_implementation=attention,
        max_position_embeddings=positions,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config)


def models(blocks: int = 12) -> dict[str, Any]:
    """The dense model and one for each of RANKS."""
    from haversack.shrink.structure import factorize

    dense = encoder(blocks)
    return {"dense": dense} | {name: factorize(dense, rank, "random")[0] for name, rank in RANKS.items()}


def forward(model: Any, texts: int, length: int) -> Callable[[], float]:
    """A function that runs a pass and returns its seconds."""
    torch = workshop()
    tokens = torch.randint(0, 1000, (texts, length), generator=torch.Generator().manual_seed(length))

    def once() -> float:
        with torch.inference_mode():
            start = perf_counter()
            model(tokens)
            return perf_counter() - start

    return once


def training_step(model: Any, texts: int, length: int) -> Callable[[], float]:
    """A function that runs a forward and a backward pass and an AdamW update.

    The update is PyTorch's fused one, the fastest for either side: written out tensor by tensor it takes more
    time than both passes at short texts, and flatters the model with fewer weights.
    """
    torch = workshop()
    tokens = torch.randint(0, 1000, (texts, length), generator=torch.Generator().manual_seed(length))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def once() -> float:
        start = perf_counter()
        optimizer.zero_grad(set_to_none=True)
        model(tokens).last_hidden_state.square().mean().backward()
        optimizer.step()
        return perf_counter() - start

    return once


def faster(
    run: Run, sides: dict[str, Callable[[], float]], rounds: int = MIN_PAIRS
) -> dict[str, list[float]]:
    """Passes a second of each side, taking turns, after one of each that is not counted."""
    for side in sides.values():
        side()
    return {name: [1 / s for s in taken] for name, taken in run.interleave(sides, rounds).items()}


def rows(kind: str, words: str, published: str) -> list[Row]:
    return [
        Row(
            f"{kind}-{name}-{length}",
            f"{words} of a BERT-base shape at {length} tokens, rank {rank}, beside dense",
            "passes/s",
            "time",
            Bar(">=", 1.25) if length <= WITH_BAR else None,
            published=published,
            quick=kind == "forward" and length == 128,
        )
        for length in LENGTHS
        for name, rank in RANKS.items()
    ]


@bench.measure(
    *rows("forward", "forward pass", "1.38x (4.15 to 3.01 s, 32 texts of 256 tokens, processor)"),
    seconds=80,
    quick_seconds=25,
)
def forwards(run: Run) -> Outcomes:
    found = {}
    made = models()
    for length in (128,) if run.quick else LENGTHS:
        taken = faster(run, {name: forward(model.eval(), TEXTS, length) for name, model in made.items()})
        for name in RANKS:
            found[f"forward-{name}-{length}"] = Outcome.of(
                taken, ours=name, baseline="dense", note="one text"
            )
    return found


@bench.measure(
    *rows("training", "training step", "1.38x (3.33 to 2.41 s, 8 texts of 256 tokens, processor)"),
    Row(
        "cost",
        "energy of pre-training BERT-base at rank 0.4: the published run times the measured ratio of steps",
        "kWh",
        "time",
        Bar("<=", 0.75),
        published="over 30 % less",
    ),
    seconds=110,
)
def training(run: Run) -> Outcomes:
    from haversack.shrink.structure.transformer_costs import BERT_BASE_PRE_TRAINING, training_cost

    found = {}
    made = models()
    for length in LENGTHS:
        taken = faster(
            run, {name: training_step(model.train(), TEXTS, length) for name, model in made.items()}
        )
        for model in made.values():
            model.zero_grad(set_to_none=True)
        for name in RANKS:
            found[f"training-{name}-{length}"] = Outcome.of(
                taken, ours=name, baseline="dense", note="one text, fused AdamW"
            )
        if length == 128:  # the length of nine tenths of BERT's pre-training
            ratios = [a / b for a, b in zip(taken["dense"], taken["04"], strict=True)]
            dense = training_cost(**BERT_BASE_PRE_TRAINING)
            thin = [training_cost(**BERT_BASE_PRE_TRAINING, step_time_ratio=ratio) for ratio in ratios]
            middle = training_cost(**BERT_BASE_PRE_TRAINING, step_time_ratio=statistics.median(ratios))
            found["cost"] = Outcome(
                Side("rank 0.4", tuple(one.energy_kwh for one in thin)),
                Side("dense", (dense.energy_kwh,) * len(thin)),
                f"steps of 128 tokens; {dense.energy_kwh:.0f} kWh, {dense.emissions_kg:.0f} kg CO2, "
                f"{dense.cost_usd:.0f} USD become {middle.energy_kwh:.0f}, {middle.emissions_kg:.0f}, "
                f"{middle.cost_usd:.0f}",
            )
    return found


@bench.measure(
    *[
        Row(
            f"bytes-{name}",
            f"stored bytes of a BERT-base shape at rank {rank}, beside dense",
            "bytes",
            "bytes",
            Bar("in", (value - 0.005, value + 0.005)),
            published=value,
        )
        for name, rank, value in (("256", 256, 0.61), ("04", 0.4, 0.53))
    ],
    seconds=30,
)
def stored(run: Run) -> Outcomes:
    import tempfile
    from pathlib import Path

    from haversack.shrink.structure import save

    def nbytes(model: Any) -> int:
        with tempfile.TemporaryDirectory() as folder:
            return sum(path.stat().st_size for path in save(model, Path(folder) / "model").iterdir())

    sizes = {name: nbytes(model) for name, model in models().items()}
    return {
        f"bytes-{name}": Outcome.single(
            sizes[name], sizes["dense"], against="dense", note="files as saved, names and ranks included"
        )
        for name in RANKS
    }


@bench.measure(
    Row(
        "attention-128",
        "at 128 tokens Linformer's attention (128 mixtures) is no faster than dense attention",
        "passes/s",
        "time",
        Bar("<=", 1.0),
    ),
    Row(
        "attention-2048",
        "at 2,048 tokens Linformer's attention (128 mixtures) beside dense attention",
        "passes/s",
        "time",
        Bar(">=", 2.0),
        quick=True,
    ),
    seconds=30,
    quick_seconds=10,
)
def attention(run: Run) -> Outcomes:
    found = {}
    for length in (2048,) if run.quick else (128, 2048):
        taken = faster(run, attention_sides(length), 2 * MIN_PAIRS)
        found[f"attention-{length}"] = Outcome.of(
            taken, ours="Linformer", baseline="dense", note="fused attention on both sides, 12 heads of 64"
        )
    return found


def attention_sides(length: int) -> dict[str, Callable[[], float]]:
    """Seconds of the part between the projections of a block: queries, keys and values to mixed values."""
    torch = workshop()
    query, keys, values = (torch.randn(1, length, 768) for _ in range(3))
    mix_keys, mix_values = (torch.randn(MIXTURES, length) / MIXTURES**0.5 for _ in range(2))
    repeats = max(1, 4096 // length)

    def attend(mixed: bool) -> None:
        some_keys, some_values = (mix_keys @ keys, mix_values @ values) if mixed else (keys, values)
        heads = [x.view(1, x.shape[1], 12, 64).transpose(1, 2) for x in (query, some_keys, some_values)]
        torch.nn.functional.scaled_dot_product_attention(*heads)

    def seconds(mixed: bool) -> float:
        with torch.inference_mode():
            start = perf_counter()
            for _ in range(repeats):
                attend(mixed)
            return (perf_counter() - start) / repeats

    return {"dense": lambda: seconds(False), "Linformer": lambda: seconds(True)}


LENGTH_CLAIM = "tokens from which Linformer (128 mixtures) is faster than rank 256, {}"


@bench.measure(
    *[
        Row(
            f"linformer-{length}",
            f"forward at {length} tokens: Linformer (128) beside dense",
            "passes/s",
            "time",
        )
        for length in LONG
    ],
    Row(
        "crossing",
        LENGTH_CLAIM.format("fused attention"),
        "tokens",
        "quality",
        Bar("in", (256, 1536)),
        judged="ours",
        published="512",
    ),
    Row(
        "crossing-written-out",
        LENGTH_CLAIM.format("scores written out as in the papers' time"),
        "tokens",
        "quality",
        Bar("in", (256, 1536)),
        judged="ours",
        published="512",
    ),
    *[
        Row(f"memory-{length}", f"what a forward pass at {length} tokens adds: Linformer (128) beside dense, "
            "scores written out", "MiB", "memory", quick=length == 2048)
        for length in (512, 2048, 4096)
    ],
    Row(
        "operations-crossing",
        "the same by counting operations alone",
        "tokens",
        "quality",
        judged="ours",
        published="512",
        quick=True,
    ),
    seconds=190,
    quick_seconds=15,
)  # fmt: skip
def linformer(run: Run) -> Outcomes:
    from haversack.shrink.structure import factorize, linformerize
    from haversack.shrink.structure.low_rank_plan_torch import growth_mib
    from haversack.shrink.structure.transformer_costs import Encoder, crossing

    torch = workshop()
    found: dict[str, Outcome] = {}
    point = crossing(Encoder(768, 3072, 12, 12, 256), Encoder(768, 3072, 12, 12, None, MIXTURES))
    found["operations-crossing"] = Outcome.single(point or float("nan"), note="time depends on more")
    for kind, row in (("sdpa", "crossing"), ("eager", "crossing-written-out")):
        if run.quick and kind == "sdpa":
            continue
        dense = encoder(2, kind, max(LONG)).eval()
        sides = {
            "dense": dense,
            "rank 256": factorize(dense, 256, "random")[0],
            "Linformer": linformerize(dense, max(LONG), MIXTURES),
        }
        if kind == "eager":
            for length in (2048,) if run.quick else (512, 2048, 4096):
                tokens = {"input_ids": torch.zeros(1, length, dtype=torch.long)}
                grown = {name: growth_mib(sides[name], tokens) for name in ("dense", "Linformer")}
                found[f"memory-{length}"] = Outcome.single(
                    grown["Linformer"], grown["dense"], name="Linformer", against="dense", note="two blocks"
                )
        if run.quick:
            continue
        ratios: dict[int, float] = {}
        for length in LONG if kind == "sdpa" else LONG[:-1]:
            timed = {name: forward(model, 1, length) for name, model in sides.items()}
            taken = faster(run, timed)
            if kind == "sdpa":
                found[f"linformer-{length}"] = Outcome.of(
                    taken, ours="Linformer", baseline="dense", note="two blocks, one text"
                )
            pairs = zip(taken["Linformer"], taken["rank 256"], strict=True)
            ratios[length] = statistics.median(a / b for a, b in pairs)
        where = meeting(ratios)
        shown = ", ".join(f"{length}: {ratio:.2f}" for length, ratio in ratios.items())
        found[row] = Outcome.single(where, note=f"speed of Linformer over rank 256 by length: {shown}")
    return found


def meeting(ratios: dict[int, float]) -> float:
    """The length at which the ratio passes 1, between the measured lengths on a logarithmic scale; infinite
    when it never does, the shortest when it always does."""
    lengths = sorted(ratios)
    if ratios[lengths[0]] >= 1:
        return float(lengths[0])
    for one, two in itertools.pairwise(lengths):
        if ratios[one] < 1 <= ratios[two]:
            low, high = math.log(ratios[one]), math.log(ratios[two])
            return float(one * (two / one) ** (-low / (high - low)))
    return math.inf
